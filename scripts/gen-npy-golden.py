#!/usr/bin/env python3
"""Writes core/tensor/tests/golden/*.npy and .npz: array files made by NumPy.

    pip install numpy ml_dtypes
    python3 scripts/gen-npy-golden.py

Each array holds 0, 1, 2, ... (bool: odd or not) in row-major order of its shape.
"""
import pathlib

import ml_dtypes
import numpy as np

TARGET = pathlib.Path(__file__).parent.parent / "core/tensor/tests/golden"


def counting(dtype, shape=(2, 3)):
    count = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return (count % 2 == 1) if dtype == np.bool_ else count.astype(dtype)


def write(name, array, version=None):
    with open(TARGET / f"{name}.npy", "wb") as file:
        np.lib.format.write_array(file, array, version=version)


def main():
    TARGET.mkdir(parents=True, exist_ok=True)
    for code in ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">i4", ">f8", ">u2"]:
        name = code.replace("<", "").replace(">", "be_").replace("?", "bool")
        write(name, counting(np.dtype(code)))
    for name in ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4", "uint2"]:
        shape = (3,) if name in ("uint2", "float4_e2m1fn") else (2, 3)
        write(name, counting(getattr(ml_dtypes, name), shape))
    write("fortran", np.asfortranarray(counting(np.int32, (2, 3, 4))))
    write("fortran_be", np.asfortranarray(counting(np.dtype(">f4"), (2, 3, 4))))
    write("scalar", np.array(0.0, np.float32))
    write("empty", np.zeros((3, 0, 2), np.int64))
    write("version2", counting(np.float32), (2, 0))
    write("version3", counting(np.float32), (3, 0))
    write("fields", np.zeros(2, [("a", "<i4"), ("b", "<f4")]))
    write("complex", np.zeros(2, np.complex64))
    np.savez(TARGET / "plain.npz", a=counting(np.float32), b=counting(np.int64, (4,)))
    np.savez_compressed(TARGET / "deflated.npz", a=counting(np.float32), b=counting(np.int64, (4,)))


if __name__ == "__main__":
    main()
