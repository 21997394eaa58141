"""Values of mathematical functions in 60 digits, rounded to f64: writes compile/tests/golden/math_f64.txt.

Each line: operation, operands and result as hexadecimal bit patterns. Needs mpmath. Run from the repository's root.
"""

import math
import random
import struct
from mpmath import mp, mpf
import mpmath as m

mp.prec = 1400
random.seed(1)


def bits(x):
    return struct.unpack("<Q", struct.pack("<d", x))[0]


def nearest(x):
    if isinstance(x, float):
        return x
    if abs(x) < mpf(2) ** -1022:
        # Subnormal: round to a multiple of the least one.
        k = m.nint(x * mpf(2) ** 1074)
        return math.ldexp(float(k), -1074)
    if abs(x) >= mpf(2) ** 1024 - mpf(2) ** 970:
        return math.inf if x > 0 else -math.inf
    with mp.workprec(53):
        return float(+x)


def spread(lo, hi, n):
    """n numbers of both signs whose exponents are even between lo and hi."""
    return [random.choice((1, -1)) * math.ldexp(random.uniform(1, 2), random.randint(lo, hi)) for _ in range(n)]


def uniform(lo, hi, n):
    return [random.uniform(lo, hi) for _ in range(n)]


pos = lambda xs: [abs(x) for x in xs]
near1 = [1 + x for x in spread(-52, -3, 40)]
FUNCTIONS = {
    "exp": (m.exp, uniform(-745, 709, 80) + spread(-60, 3, 60)),
    "exp2": (lambda x: mpf(2) ** x, uniform(-1074, 1023, 80) + spread(-60, 3, 60)),
    "expm1": (m.expm1, uniform(-40, 709, 60) + spread(-60, 4, 80)),
    "log": (m.log, pos(spread(-1074, 1023, 80)) + near1),
    "log2": (lambda x: m.log(x) / m.log(2), pos(spread(-1074, 1023, 80)) + near1),
    "log1p": (m.log1p, pos(spread(-80, 1000, 80)) + [-abs(x) for x in spread(-60, -1, 60) if abs(x) < 1]),
    "sin": (m.sin, spread(-40, 20, 80) + spread(20, 1023, 60) + [math.pi * k for k in range(1, 20)] + [5.319372648326541e255]),
    "cos": (m.cos, spread(-40, 20, 80) + spread(20, 1023, 60) + [math.pi * (k + 0.5) for k in range(20)] + [5.319372648326541e255]),
    "tan": (m.tan, spread(-40, 20, 80) + spread(20, 1023, 60)),
    "asin": (m.asin, uniform(-1, 1, 60) + spread(-40, -1, 40)),
    "acos": (m.acos, uniform(-1, 1, 60) + [1 - abs(x) for x in spread(-50, -2, 30)]),
    "atan": (m.atan, spread(-60, 60, 100)),
    "sinh": (m.sinh, uniform(-710, 710, 60) + spread(-60, 5, 60)),
    "cosh": (m.cosh, uniform(-710, 710, 60) + spread(-60, 5, 60)),
    "tanh": (m.tanh, spread(-60, 5, 100)),
    "asinh": (m.asinh, spread(-60, 1000, 120) + spread(-3, 3, 40)),
    "acosh": (m.acosh, [1 + abs(x) for x in spread(-50, 500, 120)]),
    "atanh": (m.atanh, uniform(-1, 1, 60) + spread(-60, -1, 60)),
    "erf": (m.erf, uniform(-6, 6, 80) + spread(-60, 2, 60)),
    "lgamma": (lambda x: m.log(abs(m.gamma(x))) if abs(x) < 100 else m.loggamma(x).real, uniform(0.001, 30, 80) + pos(spread(-60, 900, 60)) + near1 + [1 + x for x in near1] + uniform(-0.45, -0.01, 10)),
}
PAIRS = {
    "pow": (lambda x, y: mpf(x) ** mpf(y), [(abs(x), y) for x, y in zip(spread(-20, 20, 100), spread(-6, 5, 100))] + [(x, y) for x, y in zip(near1, spread(20, 40, 40))] + [(-3.5, 7.0), (-2.0, 1023.0), (10.0, 308.0), (10.0, -320.0), (0.5, 1074.0)]),
    "atan2": (lambda y, x: m.atan2(y, x), list(zip(spread(-30, 30, 100), spread(-30, 30, 100))) + list(zip(spread(-1070, 1020, 40), spread(-1070, 1020, 40)))),
    "rem": (lambda x, y: mpf(math.fmod(x, y)), list(zip(spread(-30, 60, 60), spread(-30, 30, 60))) + list(zip(spread(500, 1020, 20), spread(-1074, -500, 20)))),
}

with open("compile/tests/golden/math_f64.txt", "w") as out:
    for name, (f, xs) in FUNCTIONS.items():
        for x in xs:
            out.write(f"{name} {bits(x):016x} {bits(nearest(f(mpf(x)))):016x}\n")
    for name, (f, pairs) in PAIRS.items():
        for x, y in pairs:
            out.write(f"{name} {bits(x):016x} {bits(y):016x} {bits(nearest(f(x, y))):016x}\n")
