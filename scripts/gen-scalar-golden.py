#!/usr/bin/env python3
"""Writes core/tensor/tests/golden/scalars.txt: scalar operations as mpmath, NumPy and Python compute them.

    pip install numpy mpmath
    python3 scripts/gen-scalar-golden.py

Lines: `unary OP X Y`, `binary OP X Y Z` and `fma X Y Z W` hold f64 bits in hexadecimal, the last of them the result,
exact or rounded once to f64; `f32fma` the same for f32 operands rounded once to f32; `int OP TYPE A B C` decimal
integers.
"""
import fractions
import itertools
import math
import pathlib
import random
import struct

import mpmath
import numpy as np

TARGET = pathlib.Path(__file__).parent.parent / "core/tensor/tests/golden/scalars.txt"
INF, NAN = math.inf, math.nan
mpmath.mp.prec = 400

POINTS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 1e-3, -1e-3, 1e-20, -1e-20, 1.1, -1.1, 0.9999, -0.9999, 3.0, 10.5,
          -10.5, 0.3, -0.3, 0.84375, 1.25, 2.857, -2.857, 6.0, 40.0, -40.0, 88.5, -103.9, 700.0, -740.0, 1e5, -1e5, 1e15,
          math.pi, math.pi / 2, -3 * math.pi / 4, 2.5, 3.5, -2.5, 1.46163, 100.25, -0.75, 7.0, 1e38, 1e-38, 1e-310]

UNARY = {
    "sqrt": mpmath.sqrt, "rsqrt": lambda x: 1 / mpmath.sqrt(x), "exp": mpmath.exp, "exp2": lambda x: mpmath.mpf(2) ** x,
    "expm1": mpmath.expm1, "log": mpmath.log, "log2": lambda x: mpmath.log(x, 2), "log1p": mpmath.log1p,
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "asin": mpmath.asin, "acos": mpmath.acos,
    "atan": mpmath.atan, "sinh": mpmath.sinh, "cosh": mpmath.cosh, "tanh": mpmath.tanh, "asinh": mpmath.asinh,
    "acosh": mpmath.acosh, "atanh": mpmath.atanh, "erf": mpmath.erf,
    "lgamma": lambda x: mpmath.log(abs(mpmath.gamma(x))),
}
NUMPY_UNARY = {"sign": np.sign, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "round_even": np.rint,
               "neg": np.negative, "abs": np.abs}
SPECIALS = [INF, -INF, NAN, 0.0, -0.0, 1.0, -1.0, 2.5]
NUMPY_SPECIAL = {"sqrt": np.sqrt, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2,
                 "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
                 "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
                 "acosh": np.arccosh, "atanh": np.arctanh}
NUMPY_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "rem": np.fmod,
                "mod": np.remainder, "max": np.maximum, "min": np.minimum, "max_num": np.fmax, "min_num": np.fmin,
                "pow": np.power, "atan2": np.arctan2, "copysign": np.copysign}


def bits(x):
    return f"{struct.unpack('<Q', struct.pack('<d', x))[0]:016x}"


def unary():
    for name, function in UNARY.items():
        for x in POINTS:
            if name == "lgamma" and x <= 0 and x == int(x):
                continue
            try:
                y = function(mpmath.mpf(x))
            except (ZeroDivisionError, ValueError, OverflowError):
                continue
            if not mpmath.isfinite(y) or isinstance(y, mpmath.mpc) and y.imag != 0:
                continue
            y = mpmath.re(y)
            if y != 0 and not 2.2250738585072014e-308 <= abs(y) <= 1.79e308:
                continue
            if y == 0 and x == 0:
                continue  # The sign of zero is among the specials.
            yield f"unary {name} {bits(x)} {bits(float(y))}"
    for name, function in (NUMPY_UNARY | NUMPY_SPECIAL).items():
        for x in SPECIALS + (POINTS if name in NUMPY_UNARY else []):
            y = float(function(np.float64(x)))
            if name == "sign" and x == 0:
                continue  # NumPy drops the sign of zero.
            if x == 2.5 and name not in NUMPY_UNARY and not math.isnan(y):
                continue  # Only mpmath's values are good to the last place.
            if name in NUMPY_UNARY or not math.isfinite(y) or y == 0 or y == int(y):
                yield f"unary {name} {bits(x)} {bits(y)}"


def binary():
    numbers = [0.0, -0.0, 1.0, -2.5, 3.0, -1e-20, 1e300, INF, -INF, NAN]
    for (name, function), x, y in itertools.product(NUMPY_BINARY.items(), numbers, numbers):
        z = float(function(np.float64(x), np.float64(y)))
        if name in ("max", "min", "max_num", "min_num") and x == y == 0:
            continue  # NumPy does not order zeros.
        if name == "div" and x == x and y == 0 or z == z:
            yield f"binary {name} {bits(x)} {bits(y)} {bits(z)}"
        else:
            yield f"binary {name} {bits(x)} {bits(y)} {bits(NAN)}"


def round_f32(exact):
    """A fraction rounded to the nearest f32, ties to even."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-INF)), near, np.nextafter(near, np.float32(INF))]
    around = [x for x in around if np.isfinite(x)]

    def key(x):
        return abs(fractions.Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1

    return float(min(around, key=key))


def fma():
    rng = random.Random(1)
    triples = []
    for _ in range(60):
        triples.append(tuple(float(np.float32(rng.uniform(-4, 4) * 2.0 ** rng.randint(-20, 20))) for _ in range(3)))
    # Sums a little off a tie of two f32, by less than f64 holds.
    for k in range(40, 60):
        half = 1 + 2.0**-23 * (k % 3) + 0.0
        triples.append((2.0**-12 + 2.0**-25, 2.0**-12, half))
        triples.append((2.0**-24, 1.0, half))
        triples.append((float(np.float32(2.0**-24 * (1 + 2.0**-20))), float(np.float32(1 + 2.0**-22)), half))
        triples.append((2.0 ** -(k), 2.0**-20, half + 0.0))
        triples.append((float(np.float32(1 + 2.0**-12)), float(np.float32(1 + 2.0**-12)), -(2.0**-k)))
        triples.append((float(np.float32(1 + 2.0**-23)), float(np.float32(2.0**-24)), 1.0))
        triples.append((2.0**-24, float(np.float32(1 - 2.0**-24)), 1 + 2.0**-23))
    triples.append((2.0**-149, 0.5, 2.0**-149))
    for a, b, c in dict.fromkeys(triples):
        exact = fractions.Fraction(a) * fractions.Fraction(b) + fractions.Fraction(c)
        yield f"f32fma {bits(a)} {bits(b)} {bits(c)} {bits(round_f32(exact))}"
        wide = [x * (1 + 2.0**-50) for x in (a, b)]
        exact = fractions.Fraction(wide[0]) * fractions.Fraction(wide[1]) + fractions.Fraction(c)
        yield f"fma {bits(wide[0])} {bits(wide[1])} {bits(c)} {bits(float(exact))}"


def integers():
    def c_div(a, b):
        return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)

    def shift(a, b, width, left):
        if left:
            return a << b if 0 <= b < width else 0
        return a >> b if 0 <= b < width else (-1 if a < 0 else 0)

    def power(a, b):
        if b >= 0:
            return a**b
        return {1: 1, -1: 1 if b % 2 == 0 else -1}.get(a, 0)

    operations = {
        "add": lambda a, b, w: a + b, "sub": lambda a, b, w: a - b, "mul": lambda a, b, w: a * b,
        "div": lambda a, b, w: c_div(a, b), "rem": lambda a, b, w: 0 if b == 0 else a - b * c_div(a, b),
        "mod": lambda a, b, w: 0 if b == 0 else a % b, "max": lambda a, b, w: max(a, b),
        "min": lambda a, b, w: min(a, b), "and": lambda a, b, w: a & b, "or": lambda a, b, w: a | b,
        "xor": lambda a, b, w: a ^ b, "shl": lambda a, b, w: shift(a, b, w, True),
        "shr": lambda a, b, w: shift(a, b, w, False), "pow": lambda a, b, w: power(a, b),
    }
    for kind, width in [("i", 8), ("u", 8), ("i", 4), ("i", 64), ("u", 64)]:
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if kind == "i" else (0, (1 << width) - 1)
        picks = [low, high, 0, 1, 3, min(width, high)] + ([-1, -3] if kind == "i" else [2])
        for name, function in operations.items():
            for a, b in itertools.product(dict.fromkeys(picks), repeat=2):
                if name == "pow" and b > 70:
                    continue
                c = function(a, b, width) % (1 << width)
                c = c - (1 << width) if kind == "i" and c > high else c
                yield f"int {name} {kind}{width} {a} {b} {c}"


if __name__ == "__main__":
    np.seterr(all="ignore")
    lines = dict.fromkeys(itertools.chain(unary(), binary(), fma(), integers()))
    TARGET.write_text("\n".join(lines) + "\n")
