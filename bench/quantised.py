"""Makes products in 8 and 4 bit, and quantised forms of exported models, with data sets.

    python bench/quantised.py [NAME...]      (in the environment of scripts/setup --peers, after bench/export.py)

Products have a constant right operand of random numbers: mm-MxKxN in f32, and in 8 bit as -qdq-u8s8 and -qdq-s8s8 (activations
between quantise and dequantise pairs), -dynamic (DynamicQuantizeLinear and MatMulInteger) and -integer-s8s8 and
-integer-u8s8 (MatMulInteger of bytes); gemv-1gib in f32; nbits-* with MatMulNBits in 4 bit, its activations in f32 or
(-a8) left to the runtime to quantise to 8 bit (accuracy_level 4). Quantised models come from ONNX Runtime's own quantiser: static, -u8s8
and -s8s8 by the types of activations and weights, and -dynamic. All go to ~/.cache/tongtu/models as scripts/fetch-models does it.
"""

import argparse
import pathlib
import shutil
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
import onnxdata

VERSION = 1
"""Raised when a model or its data sets change; part of every stamp."""

TYPES = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("uint8"): TensorProto.UINT8, np.dtype("int8"): TensorProto.INT8,
         np.dtype("int32"): TensorProto.INT32}


def numbers(seed=0):
    return np.random.default_rng(seed)


def save(folder, nodes, inputs, output, constants, rtol, atol):
    """A model of a few nodes, and its data set from ONNX Runtime."""
    values = [helper.make_tensor_value_info(name, TYPES[value.dtype], value.shape) for name, value in inputs.items()]
    name, dtype = output
    graph = helper.make_graph(nodes, folder.name.strip("."), values, [helper.make_tensor_value_info(name, dtype, None)],
                              [numpy_helper.from_array(value, key) for key, value in constants.items()])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains)
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")
    onnxdata.add_data_sets(folder, [inputs], threads=2)
    onnxdata.write_meta(folder, source="bench/quantised.py, random weights", licence="Apache-2.0", rtol=rtol, atol=atol)


def product(m, k, n, kind):
    """`[m, k]` times a constant `[k, n]`."""
    node = helper.make_node
    rng = numbers()
    activations = np.int8 if kind.endswith("s8s8") else np.uint8
    middle = np.array(0 if activations is np.int8 else 128, activations)

    def whole(*shape, dtype=np.int8):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape, dtype)

    def write(folder):
        x = rng.standard_normal((m, k), np.float32)
        if kind == "":
            w = rng.standard_normal((k, n), np.float32)
            save(folder, [node("MatMul", ["x", "w"], ["y"])], {"x": x}, ("y", TensorProto.FLOAT), {"w": w}, 1e-3, 1e-3)
            return
        w = whole(k, n)
        constants = {"w": w, "zw": np.zeros(n, np.int8), "sw": rng.uniform(0.5, 1.5, n).astype(np.float32) / 127}
        if kind.startswith("integer"):
            nodes = [node("MatMulInteger", ["x", "w", "zx"], ["y"])]
            constants = {"w": w, "zx": middle}
            save(folder, nodes, {"x": whole(m, k, dtype=activations)}, ("y", TensorProto.INT32), constants, 0, 0)
            return
        if kind == "dynamic":
            nodes = [
                node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("MatMulInteger", ["q", "w", "z", "zw"], ["i"]),
                node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), node("Mul", ["s", "sw"], ["c"]), node("Mul", ["f", "c"], ["y"]),
            ]
            save(folder, nodes, {"x": x}, ("y", TensorProto.FLOAT), constants, 1e-3, 1e-2)
            return
        constants |= {"sx": np.float32(4 / 127), "zx": middle, "sy": np.float32(np.sqrt(k) * 4 / 127), "zy": middle}
        nodes = [
            node("QuantizeLinear", ["x", "sx", "zx"], ["q"]), node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
            node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=1), node("MatMul", ["d", "dw"], ["f"]),
            node("QuantizeLinear", ["f", "sy", "zy"], ["r"]), node("DequantizeLinear", ["r", "sy", "zy"], ["y"]),
        ]
        # A result that lies between two steps may go to either.
        step = float(constants["sy"])
        save(folder, nodes, {"x": x}, ("y", TensorProto.FLOAT), constants, 1e-3, 1.01 * step)

    return write


def gemv(k, n):
    """A vector times a constant matrix of f32."""

    def write(folder):
        rng = numbers()
        x, w = rng.standard_normal((1, k), np.float32), rng.standard_normal((k, n), np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        save(folder, nodes, {"x": x}, ("y", TensorProto.FLOAT), {"w": w}, 1e-3, 1e-2)

    return write


def four_bit(m, k, n, level):
    """`[m, k]` times 4-bit weights in blocks of 32 along the summed dim."""

    def write(folder):
        rng = numbers()
        x = rng.standard_normal((m, k), np.float32)
        blocks = k // 32
        constants = {
            "w": rng.integers(0, 256, (n, blocks, 16), np.uint8),
            "s": rng.uniform(0.5, 1.5, n * blocks).astype(np.float32) / np.float32(8 * np.sqrt(k)),
        }
        node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=k, N=n, bits=4,
                                block_size=32, accuracy_level=level)
        tolerance = {0: (1e-3, 1e-3), 4: (2e-2, 2e-2)}[level]
        save(folder, [node], {"x": x}, ("y", TensorProto.FLOAT), constants, *tolerance)

    return write


def data_set(folder, number, kind="input"):
    """The inputs or outputs of one data set."""
    files = sorted((folder / f"test_data_set_{number}").glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    tensors = [TensorProto.FromString(path.read_bytes()) for path in files]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def quantised(source, kind):
    """A quantised form of an exported model, calibrated on its first two data sets."""
    from onnxruntime.quantization import (CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static,
                                          shape_inference)

    original = onnxdata.cache_dir() / "models" / source
    cases = [data_set(original, number) for number in (0, 1)]

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter(cases)

        def get_next(self):
            return next(self.feeds, None)

    def write(folder):
        prepared = folder / "prepared.onnx"
        shape_inference.quant_pre_process(str(original / "model.onnx"), str(prepared), skip_symbolic_shape=True)
        target = folder / "model.onnx"
        if kind == "dynamic":
            quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True)
        else:
            activations = QuantType.QInt8 if kind == "s8s8" else QuantType.QUInt8
            quantize_static(prepared, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                            activation_type=activations, weight_type=QuantType.QInt8)
        prepared.unlink()
        onnxdata.add_data_sets(folder, cases, threads=2)
        outputs = [value for number in (0, 1) for value in data_set(folder, number, "output").values()]
        largest = float(min(np.abs(value).max() for value in outputs))
        # Sums that are rounded otherwise go to the next step now and then, which the layers behind carry on: runtimes differ by a
        # quarter of the largest value.
        onnxdata.write_meta(folder, source=f"{kind} of {source}, by ONNX Runtime's quantiser", licence="Apache-2.0",
                            rtol=0.4, atol=0.4 * largest)

    return write


KINDS = ("", "qdq-u8s8", "qdq-s8s8", "dynamic", "integer-u8s8", "integer-s8s8")
SHAPES = ((1024, 1024, 1024), (4096, 1024, 4096), (128, 768, 3072), (128, 3072, 768), (128, 768, 768))

MODELS = {
    f"mm-{m}x{k}x{n}" + (f"-{kind}" if kind else ""): product(m, k, n, kind) for m, k, n in SHAPES for kind in KINDS
}
MODELS |= {"gemv-1gib": gemv(16384, 16384)}
MODELS |= {
    f"nbits-{m}x{k}x{n}" + ("-a8" if level else ""): four_bit(m, k, n, level)
    for m, k, n in ((1, 4096, 4096), (1, 32768, 32768), (128, 4096, 4096)) for level in (0, 4)
}


def choices():
    """Everything that can be made, by name."""
    models = dict(MODELS)
    for source in ("resnet50", "mobilenet-v3-large", "bert-base", "minilm-l6"):
        for kind in ("u8s8", "s8s8") + (("dynamic",) if source in ("bert-base", "minilm-l6") else ()):
            models[f"{source}-{kind}"] = lambda folder, source=source, kind=kind: quantised(source, kind)(folder)
    return models


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to make (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--force", action="store_true", help="make again what is already there")
    arguments = parser.parse_args()
    known = choices()
    if arguments.list:
        print("\n".join(known))
        return 0
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"unknown models: {', '.join(unknown)} (see --list)")
    import onnxruntime

    stamp = f"{onnxdata.FORMAT}.{VERSION} onnxruntime {onnxruntime.__version__} onnx {onnx.__version__}"
    models = onnxdata.cache_dir() / "models"
    for name in arguments.names or known:
        target = models / name
        if onnxdata.is_current(target, stamp) and not arguments.force:
            continue
        folder = models / f".{name}.new"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        known[name](folder)
        onnxdata.finish(folder, stamp)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        print(f"made {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
