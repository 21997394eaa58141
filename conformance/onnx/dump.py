"""Writes the ONNX backend tests that the onnx package carries to files that any runner can read.

    python conformance/onnx/dump.py [--force]

Result, under ~/.cache/tongtu/onnx-tests:

    KIND/NAME/model.onnx
    KIND/NAME/test_data_set_N/{input,output}_I.pb    TensorProto, SequenceProto, OptionalProto or MapProto,
                                                     as the type of the model's input or output says
    KIND/NAME/meta.json                              opset, ops, element types, tolerances
    index.txt                                        KIND/NAME of every test, sorted

KIND is node, simple, real, pytorch-converted or pytorch-operator. A model that lists initialisers among its
inputs has files for the other inputs only, numbered in order. Nothing is downloaded. The tolerances are those
of ONNX's own runner: |got - want| <= atol + rtol * |want|, with `rtol_bfloat16` in place of `rtol` for bfloat16.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import warnings

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import onnxdata

VERSION = 1
"""Raised when the files change; part of the stamp."""

KINDS = ["node", "simple", "real", "pytorch-converted", "pytorch-operator"]
EXPECTED = {"node": 1884, "simple": 23, "real": 9, "pytorch-converted": 82, "pytorch-operator": 35}


def graphs_of(model):
    """Every list of nodes in the model: the graph, its subgraphs and the bodies of its functions."""
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        nodes = pending.pop()
        yield nodes
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    pending.append(attribute.g.node)
                pending.extend(graph.node for graph in attribute.graphs)


def type_names(type_proto):
    """The element type of a value, with what wraps it: `float32`, `sequence(int64)`, `optional(...)`, `map`."""
    kind = type_proto.WhichOneof("value")
    if kind == "tensor_type":
        return TensorProto.DataType.Name(type_proto.tensor_type.elem_type).lower()
    if kind == "sequence_type":
        return f"sequence({type_names(type_proto.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({type_names(type_proto.optional_type.elem_type)})"
    return str(kind).removesuffix("_type")


def write_meta(folder, model, case):
    initializers = {tensor.name for tensor in model.graph.initializer}
    meta = {
        "rtol": case.rtol,
        "rtol_bfloat16": max(case.rtol, 2.0**-6),
        "atol": case.atol,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ops": sorted({f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
                       for nodes in graphs_of(model) for node in nodes}),
        "inputs": [type_names(value.type) for value in model.graph.input if value.name not in initializers],
        "outputs": [type_names(value.type) for value in model.graph.output],
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


def to_proto(value, info):
    """The message that holds a value of the type that `info` declares."""
    if isinstance(value, TensorProto):
        return value
    writers = {
        "map_type": numpy_helper.from_dict,
        "sequence_type": numpy_helper.from_list,
        "optional_type": numpy_helper.from_optional,
        "tensor_type": numpy_helper.from_array,
    }
    return writers[info.type.WhichOneof("value")](value, info.name)


def dump_generated(case, folder):
    """A node test: its model and data are made in memory by the package."""
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    for number, (inputs, outputs) in enumerate(case.data_sets):
        data_set = folder / f"test_data_set_{number}"
        data_set.mkdir()
        for kind, values, infos in (("input", inputs, case.model.graph.input),
                                    ("output", outputs, case.model.graph.output)):
            for index, (value, info) in enumerate(zip(values, infos, strict=True)):
                (data_set / f"{kind}_{index}.pb").write_bytes(to_proto(value, info).SerializeToString())
    return case.model


def dump_stored(case, folder):
    """A test whose files are in the package."""
    source = pathlib.Path(case.model_dir)
    shutil.copy(source / "model.onnx", folder)
    for data_set in sorted(source.glob("test_data_set_*")):
        shutil.copytree(data_set, folder / data_set.name)
    return onnx.load(folder / "model.onnx")


def dump_light(case, folder):
    """A real network without its weights: the inputs are a ramp, the expected outputs are in the package."""
    source = pathlib.Path(onnx.__file__).parent.parent / case.url
    shutil.copy(source, folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    data_set = folder / "test_data_set_0"
    data_set.mkdir()
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    for index, value in enumerate(inputs):
        shape = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        count = int(np.prod(shape))
        ramp = (np.arange(count).reshape(shape) / count).astype(np.float32)
        (data_set / f"input_{index}.pb").write_bytes(numpy_helper.from_array(ramp, value.name).SerializeToString())
    for index in range(len(model.graph.output)):
        shutil.copy(source.with_name(f"{source.stem}_output_{index}.pb"), data_set / f"output_{index}.pb")
    return model


def load_cases(kind):
    from onnx.backend.test.loader import load_model_tests

    # The package draws the data of many node tests from NumPy's global generator.
    np.random.seed(0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return load_model_tests(kind=kind)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="write again what is already there")
    arguments = parser.parse_args()
    target = onnxdata.cache_dir() / "onnx-tests"
    stamp = f"{VERSION} onnx {onnx.__version__} numpy {np.__version__}"
    if onnxdata.is_current(target, stamp) and not arguments.force:
        return 0
    print(f"writing the tests of onnx {onnx.__version__} to {target}", flush=True)
    fresh = target.with_name(f".onnx-tests.{os.getpid()}")
    names = []
    for kind in KINDS:
        cases = load_cases(kind)
        if len(cases) != EXPECTED[kind]:
            print(f"error: {len(cases)} {kind} tests, expected {EXPECTED[kind]}", file=sys.stderr)
            return 1
        for case in cases:
            folder = fresh / kind / case.name
            folder.mkdir(parents=True)
            if case.model is not None:
                model = dump_generated(case, folder)
            elif case.model_dir is not None:
                model = dump_stored(case, folder)
            else:
                model = dump_light(case, folder)
            write_meta(folder, model, case)
            names.append(f"{kind}/{case.name}")
    (fresh / "index.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
    onnxdata.finish(fresh, stamp)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    print(f"{len(names)} tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
