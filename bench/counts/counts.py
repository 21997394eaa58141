#!/usr/bin/env python3
"""Counts the instructions of kernels under emulation, beside what clang -O3 and gcc -O3 make of plain C (plain.c).

    scripts/setup --emulators;  apt-get install gcc-riscv64-linux-gnu gcc-aarch64-linux-gnu
    cargo build --release -p tongtu-cli
    ~/.cache/tongtu/venv/bin/python bench/counts/counts.py [--chips riscv64-v256,aarch64-sve256] [--program PATH]

A model of one operation runs on `emulator:CHIP`, where a plugin of the emulator (counter.c) counts what the kernels execute; the C
programs are counted as a whole at one turn and at two, and the difference is that of a turn. Counts are exact and the same every
time; they are not cycles, and an instruction on a group of registers counts once.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ROWS, COLUMNS, DEPTH, IMAGE, CHANNELS = 64, 256, 192, 28, 32
RUNS = 3
LOADED = 0x1000_0000

# Per chip: the emulator of the C programs, and how clang and gcc are told of it (gcc 12 has no vectors for RISC-V).
CHIPS = {
    "riscv64": ("qemu-riscv64 -cpu rv64", "-march=rv64gc", "-march=rv64gc"),
    "riscv64-v128": ("qemu-riscv64 -cpu rv64,v=true,vlen=128,vext_spec=v1.0", "-march=rv64gcv_zvl128b", None),
    "riscv64-v256": ("qemu-riscv64 -cpu rv64,v=true,vlen=256,vext_spec=v1.0", "-march=rv64gcv_zvl256b", None),
    "riscv64-v512": ("qemu-riscv64 -cpu rv64,v=true,vlen=512,vext_spec=v1.0", "-march=rv64gcv_zvl512b", None),
    "aarch64-neon": ("qemu-aarch64 -cpu max,sve=off", "-march=armv8.2-a", "-march=armv8.2-a"),
    "aarch64-sve256": (
        "qemu-aarch64 -cpu max,sve256=on",
        "-march=armv8.2-a+sve -msve-vector-bits=256",
        "-march=armv8.2-a+sve -msve-vector-bits=256",
    ),
    "aarch64-sve512": (
        "qemu-aarch64 -cpu max,sve512=on",
        "-march=armv8.2-a+sve -msve-vector-bits=512",
        "-march=armv8.2-a+sve -msve-vector-bits=512",
    ),
}


def models(folder):
    """Writes the operations of plain.c as ONNX models; gives their names."""
    rng = np.random.default_rng(1)

    def constant(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name)

    def write(name, nodes, inputs, output, constants=()):
        value = lambda n, shape: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
        graph = helper.make_graph(
            nodes, name, [value(n, s) for n, s in inputs], [value("y", output)], list(constants)
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, folder / f"{name}.onnx")

    node = helper.make_node
    rows = [("x", [ROWS, COLUMNS])]
    write("matmul", [node("MatMul", ["x", "b"], ["y"])], [("x", [ROWS, DEPTH])], [ROWS, COLUMNS], [constant("b", DEPTH, COLUMNS)])
    write(
        "conv",
        [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        [("x", [1, CHANNELS, IMAGE, IMAGE])],
        [1, CHANNELS, IMAGE, IMAGE],
        [constant("w", CHANNELS, CHANNELS, 3, 3)],
    )
    write("softmax", [node("Softmax", ["x"], ["y"], axis=1)], rows, [ROWS, COLUMNS])
    write(
        "layernorm",
        [node("LayerNormalization", ["x", "g", "h"], ["y"], axis=1)],
        rows,
        [ROWS, COLUMNS],
        [constant("g", COLUMNS), constant("h", COLUMNS)],
    )
    write(
        "add_relu",
        [node("Add", ["x", "z"], ["s"]), node("Relu", ["s"], ["y"])],
        [("x", [ROWS, COLUMNS]), ("z", [ROWS, COLUMNS])],
        [ROWS, COLUMNS],
    )
    return ["matmul", "conv", "softmax", "layernorm", "add_relu"]


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr.strip()}")
    return done.stdout


def counted(command, plugin, above, folder):
    """What a command's emulators count, in all."""
    out = folder / "counts"
    out.unlink(missing_ok=True)
    env = {**os.environ, "QEMU_PLUGIN": f"{plugin},out={out},above={above:#x}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0 or not out.exists():
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr.strip()}")
    return sum(np.array([int(n) for n in line.split()]) for line in out.read_text().splitlines())


def plain(compiler, flags, arch, kernel, emulator, plugin, folder):
    """The counts of one turn of a C function."""
    if shutil.which(compiler) is None or flags is None:
        return None
    turns = []
    for n in (1, 2):
        program = folder / "plain"
        command = [compiler, *flags.split(), "-O3", "-ffp-contract=fast", "-fno-math-errno", "-static"]
        if "clang" in compiler:
            command += [f"--target={arch}-linux-gnu", "-fuse-ld=lld"]
        run([*command, f"-DKERNEL={kernel}", f"-DTURNS={n}", HERE / "plain.c", "-o", program, "-lm"])
        turns.append(counted([*emulator.split(), program], plugin, 0, folder))
    return turns[1] - turns[0]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--chips", default=",".join(CHIPS))
    args.add_argument("--program", default=ROOT / "target/release/tongtu")
    args = args.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        plugin = folder / "counter.so"
        run(["clang-22", "-O2", "-shared", "-fPIC", HERE / "counter.c", "-o", plugin])
        kernels = models(folder)
        print("| chip | kernel | instructions | on vectors | multiply-adds | clang -O3 | gcc -O3 | of the better |")
        print("|---|---|--:|--:|--:|--:|--:|--:|")
        for chip in args.chips.split(","):
            emulator, clang, gcc = CHIPS[chip]
            arch = chip.split("-")[0]
            for kernel in kernels:
                # One run binds sizes.
                command = [args.program, "profile", folder / f"{kernel}.onnx", "--on", f"emulator:{chip}"]
                command += ["--runs", str(RUNS), "--no-peak"]
                own = counted(command, plugin, LOADED, folder)
                each, rest = np.divmod(own, RUNS + 1)
                if rest.any():
                    sys.exit(f"{chip}, {kernel}: the runs differ: {own}")
                peers = [
                    plain("clang-22", clang, arch, kernel, emulator, plugin, folder),
                    plain(f"{arch}-linux-gnu-gcc", gcc, arch, kernel, emulator, plugin, folder),
                ]
                best = min((p[0] for p in peers if p is not None), default=None)
                cells = [f"{p[0]:,}" if p is not None else "-" for p in peers]
                ratio = f"{each[0] / best:.2f}" if best else "-"
                print(f"| {chip} | {kernel} | {each[0]:,} | {each[1]:,} | {each[2]:,} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
