"""Polynomial coefficients of the math expansions: writes compile/src/expand/coefficients.rs.

Each function is approximated on its reduced range by weighted interpolation at Chebyshev nodes in 60 digits, which is
within a small factor of the best polynomial of its degree. Needs mpmath. Run from the repository's root:

    python3 scripts/minimax.py
"""

import struct
from mpmath import mp, mpf, cos, pi, exp, log, sin, sqrt, atan, asin, erf, erfc, loggamma, lu_solve, matrix, floor, euler, zeta

mp.dps = 60


def fit(g, lo, hi, degree):
    """Coefficients, lowest first, of the polynomial that meets g at the Chebyshev nodes of [lo, hi]."""
    n = degree + 1
    lo, hi = mpf(lo), mpf(hi)
    xs = [(lo + hi) / 2 + (hi - lo) / 2 * cos(pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    a = matrix(n, n)
    b = matrix(n, 1)
    for i, x in enumerate(xs):
        for j in range(n):
            a[i, j] = x ** j
        b[i] = g(x)
    return [c for c in lu_solve(a, b)]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", float(x)))[0]


def near0(g, series):
    """g away from 0, its value at 0 by the limit."""
    return lambda x: g(x) if abs(x) > mpf(10) ** -20 else series


ln2 = log(mpf(2))
R = ln2 / 2 * mpf("1.01")
S = sqrt(mpf(2))
Q = pi / 4 * mpf("1.02")


def exp_tail(r):  # exp(r) = 1 + r + r^2 tail
    return (exp(r) - 1 - r) / r ** 2


def exp2_tail(r):  # 2^r = 1 + r tail
    return (mpf(2) ** r - 1) / r


def sin_tail(y):  # sin r = r + r y tail(y), y = r^2
    r = sqrt(y)
    return (sin(r) - r) / r ** 3


def cos_tail(y):  # cos r = 1 - y/2 + y^2 tail(y)
    return (cos(sqrt(y)) - 1 + y / 2) / y ** 2


def log_tail(f):  # log(1 + f) = f - f^2/2 + f^3 tail(f)
    return (log(1 + f) - f + f * f / 2) / f ** 3


def log_odd(z):  # log((1+s)/(1-s)) = 2 s + s z tail(z), z = s^2
    s = sqrt(z)
    return (log((1 + s) / (1 - s)) - 2 * s) / (s * z)


def log_odd5(z):  # log((1+s)/(1-s)) = 2 s + 2/3 s^3 + s^5 tail(z)
    s = sqrt(z)
    return (log((1 + s) / (1 - s)) - 2 * s - 2 * s * z / 3) / (s * z * z)


def atan_tail(y):  # atan t = t + t y tail(y)
    t = sqrt(y)
    return (atan(t) - t) / t ** 3


def asin_tail(y):
    t = sqrt(y)
    return (asin(t) - t) / t ** 3


def erf_small(y):  # erf x = x tail(y)
    x = sqrt(y)
    return erf(x) / x


def erfc_log(x):  # erfc x = exp(tail(x))
    return log(erfc(x))


K_ERFC = mpf(4)


def erfcx(t):  # (1 + 2 x) exp(x^2) erfc(x), x = K (1 + t) / (1 - t)
    x = K_ERFC * (1 + t) / (1 - t)
    return (1 + 2 * x) * exp(x * x) * erfc(x)


def lgamma1(z):  # log gamma(1 + z) = z tail(z)
    return loggamma(1 + z).real / z


def lgamma2(z):  # log gamma(2 + z) = z tail(z)
    return loggamma(2 + z).real / z


def stirling(w):  # log gamma(x) = (x - 1/2) log x - x + log(2 pi)/2 + tail(1/x^2)/x, w = 1/x^2
    x = 1 / sqrt(w)
    return (loggamma(x).real - (x - mpf(1) / 2) * log(x) + x - log(2 * pi) / 2) * x


eps = mpf(10) ** -12
TABLE = [
    # name, meaning, function, range, degree f32 or None, degree f64
    ("EXP", "exp(r) = 1 + r + r² tail(r), |r| ≤ ln 2 / 2", near0(exp_tail, mpf(1) / 2), -R, R, 4, 9),
    ("EXP_FAST", "the same with three terms less", near0(exp_tail, mpf(1) / 2), -R, R, 3, 7),
    ("EXP2", "2^r = 1 + r tail(r), |r| ≤ 1/2", near0(exp2_tail, ln2), mpf("-0.505"), mpf("0.505"), 5, 11),
    ("SIN", "sin r = r + r³ tail(r²), |r| ≤ π/4", near0(sin_tail, mpf(-1) / 6), 0, Q * Q, 3, 6),
    ("COS", "cos r = 1 - r²/2 + r⁴ tail(r²), |r| ≤ π/4", near0(cos_tail, mpf(1) / 24), 0, Q * Q, 2, 5),
    ("LOG", "log(1 + f) = f - f²/2 + f³ tail(f), √½ - 1 ≤ f ≤ √2 - 1", near0(log_tail, mpf(1) / 3), 1 / S - 1 - mpf("0.001"), S - 1 + mpf("0.001"), 8, None),
    ("LOG_ODD", "log((1+s)/(1-s)) = 2s + s³ tail(s²), |s| ≤ 3 - 2√2", near0(log_odd, mpf(2) / 3), 0, mpf("0.0297"), None, 7),
    ("LOG_ODD5", "log((1+s)/(1-s)) = 2s + 2/3 s³ + s⁵ tail(s²)", near0(log_odd5, mpf(2) / 5), 0, mpf("0.0297"), 4, 7),
    ("ATAN", "atan t = t + t³ tail(t²), |t| ≤ tan(π/8)", near0(atan_tail, mpf(-1) / 3), 0, mpf("0.174"), 4, 11),
    ("ASIN", "asin t = t + t³ tail(t²), |t| ≤ 1/2", near0(asin_tail, mpf(1) / 6), 0, mpf("0.2505"), 5, 13),
    ("ERF", "erf x = x tail(x²), |x| ≤ 1", near0(erf_small, 2 / sqrt(pi)), 0, mpf("1.0"), 6, 13),
    ("ERFC_LOG", "log erfc x for 0.9 ≤ x ≤ 4", erfc_log, mpf("0.9"), mpf("4.0"), 8, None),
    ("ERFCX", "(1 + 2x) exp(x²) erfc x in t = (x - 4)/(x + 4), 0.9 ≤ x ≤ 6.2", erfcx, (mpf("0.9") - 4) / (mpf("0.9") + 4), (mpf("6.2") - 4) / (mpf("6.2") + 4), None, 17),
    ("LGAMMA1", "log Γ(1 + z) = z tail(z), |z| ≤ 1/2", near0(lgamma1, -euler), mpf("-0.5"), mpf("0.5"), None, 28),
    ("LGAMMA2", "log Γ(2 + z) = z tail(z), |z| ≤ 1/2", near0(lgamma2, 1 - euler), mpf("-0.5"), mpf("0.5"), None, 18),
    ("STIRLING", "log Γ(x) = (x - ½) log x - x + log(2π)/2 + tail(1/x²)/x, x ≥ 8", lambda w: stirling(w) if w > mpf(10) ** -15 else mpf(1) / 12, 0, mpf(1) / 64, None, 7),
]


def rust(xs):
    return "".join(f"    {float(x)!r},\n" for x in xs)


def chunks(x, bits, count):
    """x as `count` values of at most `bits` bits each and a rest."""
    out = []
    for _ in range(count):
        e = int(floor(mp.log(abs(x), 2))) + 1
        q = mpf(2) ** (bits - e)
        part = floor(abs(x) * q) / q * (1 if x > 0 else -1)
        out.append(part)
        x -= part
    return out, x


def main():
    out = ["//! Generated by scripts/minimax.py: coefficients, lowest power first, and constants in parts.", ""]
    for name, doc, g, lo, hi, d32, d64 in TABLE:
        for suffix, degree, rounding in (("F32", d32, f32), ("F64", d64, float)):
            if degree is None:
                continue
            cs = [rounding(c) for c in fit(g, lo, hi, degree)]
            out += [f"/// {doc}.", f"pub(super) const {name}_{suffix}: &[f64] = &[", rust(cs).rstrip("\n"), "];"]
    parts = [
        ("PI_2_F32", "π/2 in parts of 24 bits", pi / 2, 24, 3),
        ("PI_2_F64", "π/2 in parts of 33 bits", pi / 2, 33, 3),
        ("LN2_F32", "ln 2: a part of 15 bits and the rest", ln2, 15, 1),
        ("LN2_F64", "ln 2: a part of 41 bits and the rest", ln2, 41, 1),
    ]
    for name, doc, x, bits, count in parts:
        head, rest = chunks(x, bits, count)
        single = name.endswith("F32")
        values = [float(v) for v in head] + [f32(rest) if single else float(rest)]
        out += [f"/// {doc}.", f"pub(super) const {name}: &[f64] = &[", rust(values).rstrip("\n"), "];"]
    both = ("F32", "F64")
    pairs = [
        ("PI", pi, both),
        ("PI_2_PAIR", pi / 2, both),
        ("PI_4", pi / 4, both),
        ("LOG2_E", 1 / ln2, both),
        ("TWO_PI", 2 * pi, both),
        ("TWO_THIRDS", mpf(2) / 3, both),
        ("HALF_LOG_2PI", log(2 * pi) / 2, both[1:]),
        ("LN_PI", log(pi), both[1:]),
    ]
    for name, x, kinds in pairs:
        for kind in kinds:
            rounding = f32 if kind == "F32" else float
            hi = rounding(x)
            lo = rounding(x - mpf(hi))
            out += [f"/// High and low part for arithmetic in {kind.lower()}."]
            out += [f"pub(super) const {name}_{kind}: (f64, f64) = ({hi!r}, {lo!r});"]
    mp.prec = 1400
    digits = int(floor(1 / (2 * mp.pi) * mpf(2) ** (32 * 40)))
    words = [(digits >> (32 * (39 - i))) & 0xFFFFFFFF for i in range(40)]
    out += ["/// The binary digits of 1/(2π) after the point, 32 a word.", "pub(super) const TURN: &[u32] = &["]
    out += ["    " + ", ".join(f"0x{w:08x}" for w in words[i:i + 8]) + "," for i in range(0, 40, 8)] + ["];", ""]
    open("compile/src/expand/coefficients.rs", "w").write("\n".join(out))


main()
