#!/usr/bin/env python3
"""Writes core/tensor/tests/golden/dtypes.txt: conversions of narrow element types as ml_dtypes, en_dtypes (HiFloat8)
and NumPy do them.

    pip install numpy ml_dtypes en_dtypes
    python3 scripts/gen-dtype-golden.py

Lines: `decode TYPE VALUE...` gives the value of each code in order as the bits of an f32; `encode TYPE INPUT:CODE...`
gives the code of an f64, both in hexadecimal.
"""
import pathlib
import struct

import en_dtypes
import ml_dtypes
import numpy as np

# Our name: (type, bits, whether conversion from f64 rounds once). ml_dtypes goes through f32, so its inputs are f32 values.
TYPES = {
    "f16": (np.float16, 16, True),
    "bf16": (ml_dtypes.bfloat16, 16, False),
    "f8e4m3fn": (ml_dtypes.float8_e4m3fn, 8, False),
    "f8e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, 8, False),
    "f8e5m2": (ml_dtypes.float8_e5m2, 8, False),
    "f8e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, 8, False),
    "f8e8m0": (ml_dtypes.float8_e8m0fnu, 8, False),
    "f6e2m3": (ml_dtypes.float6_e2m3fn, 6, False),
    "f6e3m2": (ml_dtypes.float6_e3m2fn, 6, False),
    "f4e2m1": (ml_dtypes.float4_e2m1fn, 4, False),
    "hif8": (en_dtypes.hifloat8, 8, False),
}


def values_of(dtype, bits):
    codes = np.arange(1 << bits, dtype=np.uint16 if bits == 16 else np.uint8)
    return codes.view(dtype).astype(np.float32)


def hard_inputs(values, exact):
    """Every value, every midpoint of two neighbours and the numbers next to it, and what lies outside."""
    finite = np.unique(np.abs(values[np.isfinite(values)]).astype(np.float64))
    if len(finite) > 300:
        finite = np.concatenate([finite[:40], finite[40:-40:997], finite[-40:]])
    # As if the range went on by a step.
    finite = np.append(finite, 2 * finite[-1] - finite[-2])
    middle = (finite[1:] + finite[:-1]) / 2
    wide = np.float64 if exact else np.float32
    middle = middle[middle.astype(wide) == middle].astype(wide)
    below, above = np.nextafter(middle, wide(0)), np.nextafter(middle, wide(np.inf))
    least = finite[finite > 0][0]
    outside = np.array([0, least / 2, least / 4, least / 4 * 3, finite[-1] * 1.25, finite[-1] * 4, 1e30, np.inf])
    inputs = np.concatenate([finite, middle, below, above, outside]).astype(np.float64)
    inputs = inputs[inputs.astype(wide) == inputs]
    return np.append(np.unique(np.concatenate([inputs, -inputs[::7], [-np.inf]])), [-0.0, np.nan])


def main():
    lines = []
    for name, (dtype, bits, exact) in TYPES.items():
        values = values_of(dtype, bits)
        if bits <= 8:
            lines.append(f"decode {name} " + " ".join(f"{v:08x}" for v in values.view(np.uint32)))
        inputs = hard_inputs(values, exact)
        if name == "f8e8m0":
            # From subnormal f32 ml_dtypes 0.6 does not round to nearest.
            inputs = inputs[~((inputs > 0) & (inputs < 2.0**-126) & (inputs != 2.0**-127))]
        source = inputs if exact else inputs.astype(np.float32)
        with np.errstate(all="ignore"):
            codes = source.astype(dtype).view(np.uint16 if bits == 16 else np.uint8)
        pairs = (f"{struct.unpack('<Q', struct.pack('<d', x))[0]:x}:{c:x}" for x, c in zip(inputs, codes))
        lines.append(f"encode {name} " + " ".join(pairs))
    target = pathlib.Path(__file__).parent.parent / "core/tensor/tests/golden/dtypes.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
