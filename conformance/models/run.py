"""Runs models with their data sets through the compiled path and compares.

    python conformance/models/run.py [NAME...] [--program PATH] [--all] [--on MACHINE]

Without names: the small models beside this file and the real models that scripts/fetch-models brings; with --all,
everything under ~/.cache/tongtu/models. With --on, on another machine, such as emulator:riscv64-v256, where each model runs with one
data set only: the one of conformance/simulated, which are of the smallest sizes the models allow, or its smallest. Exits with 1 when a
data set does not pass.
"""

import argparse
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import fetch_models
import onnxdata


def run(program, folder, data_set, on, seconds):
    """None, or the line that says what went wrong."""
    command = [program, "run", str(folder / "model.onnx"), "--data-set", str(data_set), *on]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done after {seconds} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    telling = [line for line in lines if line.startswith(("DIFFERS", "error"))] or lines or ["no output"]
    return f"exit code {done.returncode}: {telling[0][:200]}"


def smallest(folder):
    """The data set to run with where that takes long."""
    size = lambda data_set: sum(f.stat().st_size for f in data_set.iterdir())
    simulated = HERE.parent / "simulated" / folder.name
    return sorted(simulated.glob("test_data_set_*")) or sorted(folder.glob("test_data_set_*"), key=size)[:1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--program", default=str(ROOT / "target" / "release" / "tongtu"))
    parser.add_argument("--all", action="store_true", help="every model in the cache, exported ones too")
    parser.add_argument("--on", metavar="MACHINE", help="another machine, as `tongtu run --on` takes it")
    parser.add_argument("--timeout", type=int, default=300, help="seconds that one run may take")
    arguments = parser.parse_args()
    cached = onnxdata.cache_dir() / "models"
    known = {path.parent.name: path.parent for folder in (cached, HERE) for path in sorted(folder.glob("*/model.onnx"))}
    if arguments.names:
        chosen = arguments.names
    elif arguments.all:
        chosen = sorted(known)
    else:
        small = sorted(path.parent.name for path in HERE.glob("*/model.onnx"))
        chosen = small + [model.name for model in [*fetch_models.MODELS, *fetch_models.VARIANTS]]
    passed = failed = 0
    for name in chosen:
        if name not in known:
            print(f"FAILED {name}: not there (scripts/fetch-models, bench/export.py)")
            failed += 1
            continue
        start, wrong = time.monotonic(), []
        folder = known[name]
        data_sets = smallest(folder) if arguments.on else sorted(folder.glob("test_data_set_*"))
        on = ["--on", arguments.on] if arguments.on else []
        for data_set in data_sets:
            problem = run(arguments.program, folder, data_set, on, arguments.timeout)
            if problem is None:
                passed += 1
            else:
                failed += 1
                wrong.append(f"FAILED {name} {data_set.name}: {problem}")
        print("\n".join(wrong) if wrong else f"ok {name} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
