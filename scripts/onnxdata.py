"""Writing models and their data sets in ONNX's test layout.

A model folder holds `model.onnx`, `meta.json` and `test_data_set_N/` with `input_I.pb` and `output_I.pb`, each a
serialised TensorProto, SequenceProto or OptionalProto. Expected outputs come from ONNX Runtime with its graph
optimisations off, so that they follow the model's own operators.
"""

import argparse
import json
import os
import pathlib
import shutil

import numpy as np
import onnx
from onnx import numpy_helper

FORMAT = 1
"""Raised when the layout or the way of making expected outputs changes; part of every stamp."""


def cache_dir():
    """The folder outside the tree that holds everything downloaded or generated."""
    explicit = os.environ.get("TONGTU_CACHE")
    if explicit:
        return pathlib.Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tongtu"


def session(path, threads=1, optimise=False):
    """An ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_data_set(folder, input_names, inputs, output_names, outputs):
    """Write one data set: `inputs` and `outputs` are lists of arrays in the model's order."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, names, values in (("input", input_names, inputs), ("output", output_names, outputs)):
        for index, (name, value) in enumerate(zip(names, values, strict=True)):
            tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
            (folder / f"{kind}_{index}.pb").write_bytes(tensor.SerializeToString())


def add_data_sets(folder, cases, threads=1):
    """Run `folder/model.onnx` on every case (a dict from input name to array) and write the data sets.

    Refuses outputs that are not finite or that are all zero: such a data set would check nothing.
    """
    for old in folder.glob("test_data_set_*"):
        shutil.rmtree(old)
    runner = session(folder / "model.onnx", threads)
    input_names = [value.name for value in runner.get_inputs()]
    output_names = [value.name for value in runner.get_outputs()]
    for number, case in enumerate(cases):
        if set(case) != set(input_names):
            raise ValueError(f"{folder.name}: inputs are {input_names}, the case has {sorted(case)}")
        outputs = runner.run(None, case)
        for name, value in zip(output_names, outputs):
            if value.dtype.kind == "f" and value.size:
                if not np.isfinite(value).all():
                    raise ValueError(f"{folder.name}: output {name} of case {number} is not finite")
                if np.abs(value).max() < 1e-20:
                    raise ValueError(f"{folder.name}: output {name} of case {number} is zero")
        write_data_set(
            folder / f"test_data_set_{number}",
            input_names,
            [case[name] for name in input_names],
            output_names,
            outputs,
        )


def write_meta(folder, **entries):
    """Write `meta.json`: where the model is from, its licence, its opset and the tolerance of its data sets."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    entries.setdefault("opset", {o.domain or "ai.onnx": o.version for o in model.opset_import})
    entries.setdefault("rtol", 1e-3)
    entries.setdefault("atol", 1e-4)
    (folder / "meta.json").write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def is_current(folder, stamp):
    """Whether `folder` was completed with this stamp."""
    path = folder / ".stamp"
    return path.is_file() and path.read_text() == stamp


def finish(folder, stamp):
    """Mark `folder` complete."""
    (folder / ".stamp").write_text(stamp)


def write_suite(description, name, stamp, write):
    """The program that writes a suite of tests to the folder `name` in the cache unless it is there with this stamp:
    `write(folder)` writes the tests and gives their names, which go to `index.txt`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--force", action="store_true", help="write the tests even if they are there")
    arguments = parser.parse_args()
    target = cache_dir() / name
    if is_current(target, stamp) and not arguments.force:
        print(f"{target}: current")
        return
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    names = write(fresh)
    (fresh / "index.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
    finish(fresh, stamp)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    print(f"{target}: {len(names)} tests")
