"""Makes the data sets beside this file: inputs so small that real models run on a simulated chip, with outputs from ONNX Runtime.

    python conformance/simulated/make.py      (in the environment that scripts/setup makes, after scripts/fetch-models)

The result is committed. Models are those that scripts/fetch-models brings; each has its folder here, with data sets in ONNX's layout
and the tolerance of its own.
"""

import json
import pathlib
import shutil
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "scripts"))
import onnxdata


def minilm(inputs):
    """A sentence of two words, its mask and kinds by name."""
    words = np.random.default_rng(1).integers(1000, 20000, (1, 2))
    kinds = {"input_ids": words, "attention_mask": np.ones((1, 2)), "token_type_ids": np.zeros((1, 2))}
    return {name: kinds[name].astype(np.int64) for name in inputs}


def line(inputs):
    """A picture of 48 x 8: one column of a text line."""
    picture = np.random.default_rng(2).normal(0, 0.5, (1, 3, 48, 8))
    return {inputs[0]: picture.astype(np.float32)}


def page(inputs):
    """A picture of 32 x 32, which is as small as these models take."""
    picture = np.random.default_rng(3).normal(0, 0.5, (1, 3, 32, 32))
    return {inputs[0]: picture.astype(np.float32)}


CASES = {"minilm-l6": minilm, "ppocr-v4-rec": line, "ppocr-v6-rec": line, "ppocr-v4-det": page, "ppocr-v6-det": page}


def main():
    models = onnxdata.cache_dir() / "models"
    for name, build in CASES.items():
        runner = onnxdata.session(models / name / "model.onnx")
        case = build([value.name for value in runner.get_inputs()])
        outputs = runner.run(None, case)
        folder = HERE / name / "test_data_set_0"
        shutil.rmtree(folder, ignore_errors=True)
        names = [value.name for value in runner.get_outputs()]
        onnxdata.write_data_set(folder, list(case), list(case.values()), names, outputs)
        own = json.loads((models / name / "meta.json").read_text())
        tolerance = {"atol": own["atol"], "rtol": own["rtol"]}
        (HERE / name / "meta.json").write_text(json.dumps(tolerance, indent=1) + "\n")
        print(name, [value.shape for value in outputs])


if __name__ == "__main__":
    main()
