"""Measures Tongtu beside other runtimes on the same models, inputs and threads.

    python bench/run.py [MODEL...] [--threads 1,2] [--precision f32|bf16] [--runs 20] [--rounds 3] [--peers NAME,...]
                        [--out DIR]

MODEL is a name under ~/.cache/tongtu/models, optionally with the data set to use as input (resnet50:1).
The peers are those of onnxruntime and openvino that this Python has (scripts/setup --peers makes one that has both); PyTorch, as it is
and compiled, where scripts/setup --torch has installed it, with the programs that bench/export.py exports.
Every case runs in a process of its own. The runtimes take turns within each round, and a ratio is the median over
the rounds of the ratio of our time to the peer's within a round, since the speed of a shared machine drifts. Outputs are
compared with the data set first: a runtime with wrong outputs gets no time. With --precision bf16 products are in bf16 where a
runtime has that (OpenVINO's own default on CPUs with AMX; ONNX Runtime has it not for models in f32). DIR receives bench.json, with every
sample, bench.md and bench.html, a page with plots.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import onnxdata

import page

DEFAULT_MODELS = [
    "resnet50:1", "mobilenet-v3-large:1", "efficientnet-b0:1", "convnext-tiny:1", "vit-b16:1", "swin-tiny:1",
    "bert-base:1", "minilm-l6:1", "gpt2:1", "gpt2:2", "t5-small-encoder:1", "t5-small-decoder:1",
    "whisper-tiny-encoder:1", "whisper-tiny-decoder:1", "unet:1", "ppocr-v4-det:1", "ppocr-v4-rec:0",
    "ppocr-v6-det:1", "ppocr-v6-rec:0", "ppocr-cls:0", "magika:0", "silero-vad:0",
]
"""Model and the data set whose inputs are timed: batch 1 at the model's usual size."""

TIMEOUT = 600
"""Seconds after which one process is given up."""


class Failure(Exception):
    """A runtime could not run a case, or its outputs are wrong."""


def run_json(command, **options):
    """Run a program that prints one JSON object on its last line, and return that object."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, **options)
    except subprocess.TimeoutExpired:
        raise Failure(f"no answer within {TIMEOUT} s") from None
    except OSError as error:
        raise Failure(str(error)) from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise Failure(f"exit code {done.returncode}: {last[:300]}")
    text = done.stdout.strip()
    for candidate in (text, text.splitlines()[-1] if text else ""):
        try:
            return json.loads(candidate)
        except json.JSONDecodeError:
            continue
    raise Failure("printed no JSON")


TOLERANCE = {"f32": 1e-2, "bf16": 1e-1}
"""Greatest error of an output by precision, as a share of its largest value."""


class Tongtu:
    """The release build of this tree, through its command line."""

    name = "tongtu"

    def __init__(self, program, precision):
        self.program = str(program)
        self.precision = precision

    def version(self):
        return subprocess.run([self.program, "--version"], capture_output=True, text=True).stdout.strip()

    def check(self, folder, data_set, threads):
        """Raises Failure unless the outputs agree with the data set. `measure` starts cold by itself."""
        command = [self.program, "run", str(folder / "model.onnx"), "--data-set", str(data_set), "--threads",
                   str(threads), "--precision", self.precision, "--json"]
        if self.precision != "f32":
            # The data set's tolerance is for f32.
            sizes = [abs(value).max() for value in arrays(data_set, "output").values() if value.dtype.kind == "f"]
            command += ["--rtol", "0", "--atol", str(TOLERANCE[self.precision] * min(sizes))]
        run_json(command)

    def measure(self, folder, data_set, threads, runs):
        """samples_ms, compile_ms, cached_start_ms and peak_rss_bytes of one process."""
        return run_json([self.program, "bench", str(folder / "model.onnx"), "--data-set", str(data_set), "--threads",
                         str(threads), "--runs", str(runs), "--precision", self.precision, "--json"])

    def peak(self, threads):
        """GFLOP/s that the machine can do in this precision right now, by the program's own probe; None where it gives none."""
        count = "one thread" if threads == 1 else f"{threads} threads"
        name = f"f32 GFLOP/s, {count}" if self.precision == "f32" else f"bf16 matrix GFLOP/s, {count}"
        try:
            return run_json([self.program, "doctor", "--json"])["measured"].get(name)
        except Failure:
            return None


def arrays(data_set, kind):
    """The inputs or outputs of a data set, by name in their order."""
    from onnx import TensorProto, numpy_helper

    found = sorted(data_set.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    tensors = [TensorProto.FromString(path.read_bytes()) for path in found]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def difference(outputs, data_set):
    """The greatest difference from the outputs of a data set, as a share of the largest value."""
    import numpy as np

    worst = 0.0
    for got, want in zip(outputs, arrays(data_set, "output").values(), strict=True):
        if got.shape != want.shape:
            raise Failure(f"an output is {got.shape}, not {want.shape}")
        if want.dtype.kind in "fiu" and want.size:
            error = np.abs(got.astype(np.float64) - want).max()
            worst = max(worst, float(error / max(np.abs(want.astype(np.float64)).max(), 1e-6)))
    return worst


class PythonPeer:
    """A runtime that runs in a process of this Python. `start(path, threads)` gives a function from a dict of inputs to
    the list of outputs, compiled for the precision."""

    package = ""

    def __init__(self, precision):
        self.precision = precision

    def version(self):
        return f"{self.name} {importlib.metadata.version(self.package)}"

    @classmethod
    def installed(cls):
        return importlib.util.find_spec(cls.package) is not None

    def check(self, folder, data_set, threads):
        """Milliseconds to the first result; raises Failure unless the outputs agree with the data set."""
        found = self._child("check", folder, data_set, threads, 1)
        worst = found["worst"]
        if worst > max(TOLERANCE[self.precision], self.allowed(folder)):
            raise Failure(f"outputs differ by {worst:.1e} of the largest value")
        return found["compile_ms"]

    @staticmethod
    def allowed(folder):
        """As much error as the model's own data sets allow."""
        path = folder / "meta.json"
        meta = json.loads(path.read_text()) if path.is_file() else {}
        return meta.get("rtol", 0.0)

    def measure(self, folder, data_set, threads, runs):
        return self._child("measure", folder, data_set, threads, runs)

    def _child(self, action, folder, data_set, threads, runs):
        return run_json([self.python(), __file__, "--child", self.name, self.precision, action, str(folder),
                         str(data_set), str(threads), str(runs)])

    @staticmethod
    def python():
        """The Python that has it."""
        return sys.executable

    def start(self, path, threads):
        raise NotImplementedError

    def child(self, action, folder, data_set, threads, runs):
        """The measuring process itself."""
        folder, data_set = pathlib.Path(folder), pathlib.Path(data_set)
        inputs = arrays(data_set, "input")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.began = time.perf_counter()
        run = self.start(folder / "model.onnx", int(threads))
        outputs = run(inputs)
        first = time.perf_counter() - self.began
        if action == "check":
            return {"worst": difference(outputs, data_set), "compile_ms": first * 1e3}
        samples = []
        for _ in range(int(runs)):
            start = time.perf_counter()
            run(inputs)
            samples.append((time.perf_counter() - start) * 1e3)
        return {
            "samples_ms": samples,
            "compile_ms": first * 1e3,
            "cached_start_ms": first * 1e3,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "start_rss_bytes": before,
        }


class OnnxRuntime(PythonPeer):
    """ONNX Runtime with its default optimisations."""

    name = "onnxruntime"
    package = "onnxruntime"

    def start(self, path, threads):
        runner = onnxdata.session(path, threads, optimise=True)
        return lambda inputs: runner.run(None, inputs)


class OpenVino(PythonPeer):
    """OpenVINO in the precision asked for: left to itself it computes in bf16 on CPUs that have AMX."""

    name = "openvino"
    package = "openvino"

    def start(self, path, threads):
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
                   "INFERENCE_PRECISION_HINT": self.precision}
        model = core.compile_model(core.read_model(path), "CPU", options)
        request = model.create_infer_request()

        def run(inputs):
            request.infer(inputs, share_inputs=True)
            return [request.get_output_tensor(i).data for i in range(len(model.outputs))]

        return run


class PyTorch(PythonPeer):
    """PyTorch with the program that a model was exported from."""

    name = "pytorch"
    package = "torch"

    @staticmethod
    def python():
        return str(onnxdata.cache_dir() / "venv-torch" / "bin" / "python")

    @classmethod
    def installed(cls):
        return pathlib.Path(cls.python()).is_file()

    def version(self):
        code = f"import importlib.metadata as m; print(m.version('{self.package}'))"
        done = subprocess.run([self.python(), "-c", code], capture_output=True, text=True)
        return f"{self.name} {done.stdout.strip()}"

    def start(self, path, threads):
        import contextlib

        import torch

        import export

        name = path.parent.name
        if name not in export.MODELS:
            raise SystemExit("not a program of bench/export.py")
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        plan = export.MODELS[name]()
        # What follows is timed as the first start; making random weights is not part of that.
        self.began = time.perf_counter()
        module = self.prepare(plan.module.eval())

        def run(inputs):
            narrow = contextlib.nullcontext() if self.precision == "f32" else torch.autocast("cpu", torch.bfloat16)
            with torch.inference_mode(), narrow:
                outputs = module(*(torch.from_numpy(inputs[key]) for key in plan.inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return [value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy() for value in outputs]

        return run

    @staticmethod
    def prepare(module):
        return module


class PyTorchCompiled(PyTorch):
    """The same, by torch.compile."""

    name = "pytorch-compiled"

    @staticmethod
    def prepare(module):
        import torch

        return torch.compile(module)


PEERS = {peer.name: peer for peer in (OnnxRuntime, OpenVino, PyTorch, PyTorchCompiled)}


def spread(samples):
    """Half the distance between the quartiles, as a share of the median."""
    if len(samples) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2 / middle


def measure_case(peers, folder, data_set, threads, runs, rounds):
    """One row: for each peer its samples by round, or why it has none."""
    row = {}
    for peer in peers:
        try:
            row[peer.name] = {"rounds": [], "checked_ms": peer.check(folder, data_set, threads)}
        except Failure as failure:
            row[peer.name] = {"failed": str(failure)}
    per_round = max(1, runs // rounds)
    for number in range(rounds):
        order = peers if number % 2 == 0 else peers[::-1]
        for peer in order:
            entry = row[peer.name]
            if "failed" in entry:
                continue
            try:
                result = peer.measure(folder, data_set, threads, per_round)
            except Failure as failure:
                row[peer.name] = {"failed": str(failure)}
                continue
            entry["rounds"].append(result)
    for entry in row.values():
        if "failed" in entry:
            continue
        samples = [sample for result in entry["rounds"] for sample in result["samples_ms"]]
        entry["median_ms"] = statistics.median(samples)
        entry["spread"] = spread(samples)
        for key in ("compile_ms", "cached_start_ms", "peak_rss_bytes"):
            values = [result[key] for result in entry["rounds"] if result.get(key) is not None]
            if key == "compile_ms" and entry["checked_ms"] is not None:
                values.append(entry["checked_ms"])
            # The first process of a row may compile; the later ones find its result in the cache.
            entry[key] = None if not values else max(values) if key != "cached_start_ms" else min(values)
    return row


def ratio(row, ours, theirs):
    """Median over the rounds of our median by theirs; None where either failed."""
    if "failed" in row[ours] or "failed" in row[theirs]:
        return None
    pairs = zip(row[ours]["rounds"], row[theirs]["rounds"], strict=True)
    return statistics.median(
        statistics.median(a["samples_ms"]) / statistics.median(b["samples_ms"]) for a, b in pairs)


def markdown(report):
    """The report as a table."""
    names = report["peers"]
    lines = [
        f"{report['date']}, {report['precision']}, {report['cpu']}, {report['cores']} cores, load {report['load']:.1f} at the start; "
        + "; ".join(report["versions"].values()) + ".",
        "",
        "| model | threads | " + " | ".join(f"{name} ms (±)" for name in names) + " | "
        + " | ".join(f"to {name}" for name in names[1:]) + " | of peak | compile ms | cached start ms | peak MB |",
        "|---|---|" + "---|" * (2 * len(names) - 1) + "---|---|---|---|",
    ]
    for case in report["cases"]:
        row = case["results"]

        def each(key, scale=1.0, row=row):
            cells = []
            for name in names:
                value = row[name].get(key)
                cells.append("-" if value is None else f"{value * scale:.0f}")
            return " / ".join(cells)

        times = []
        for name in names:
            entry = row[name]
            times.append("failed" if "failed" in entry else f"{entry['median_ms']:.2f} ({entry['spread']:.0%})")
        ratios = ["-" if case["ratios"][name] is None else f"{case['ratios'][name]:.2f}" for name in names[1:]]
        of_peak = share(case)
        ratios.append("-" if of_peak is None else f"{of_peak:.0%}")
        lines.append(f"| {case['model']} | {case['threads']} | " + " | ".join(times + ratios)
                     + f" | {each('compile_ms')} | {each('cached_start_ms')} | {each('peak_rss_bytes', 1e-6)} |")
    for threads in sorted({case["threads"] for case in report["cases"]}):
        best = [best_ratio(case) for case in report["cases"] if case["threads"] == threads]
        best = [share for share in best if share is not None]
        if len(best) > 1:
            lines += ["", f"Threads: {threads}. Geometric mean of our time to the best peer's: "
                      f"{statistics.geometric_mean(best):.2f}."]
    failures = [f"- {case['model']}, {case['threads']} threads, {name}: {entry['failed']}"
                for case in report["cases"] for name, entry in case["results"].items() if "failed" in entry]
    if failures:
        lines += ["", "Failed:", "", *failures]
    return "\n".join(lines) + "\n"


def best_ratio(case):
    """Our time to that of the fastest peer; None where either is missing."""
    shares = [share for share in case["ratios"].values() if share is not None]
    return max(shares, default=None)


def share(case):
    """The share of the machine's peak that we reach; None where it is not known."""
    ours = case["results"]["tongtu"]
    flops = ours.get("rounds", [{}])[0].get("flops")
    return flops / ours["median_ms"] / 1e6 / case["peak"] if case["peak"] and flops else None


def lines(report):
    """The report as one sentence a case."""
    sentences = []
    for case in report["cases"]:
        parts = []
        for name, entry in case["results"].items():
            parts.append(f"{name} {entry['failed']}" if "failed" in entry else f"{name} {entry['median_ms']:.2f} ms")
        best = best_ratio(case)
        share = "" if best is None else f" (ratio {best:.2f})"
        plural = "" if case["threads"] == 1 else "s"
        sentences.append(f"{case['model']}, {case['threads']} thread{plural}: {', '.join(parts)}{share}")
    return "\n".join(sentences)


def cpu_name():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def main():
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(PEERS[sys.argv[2]](sys.argv[3]).child(*sys.argv[4:])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--threads", default="1", help="thread counts, separated by commas (default: 1)")
    parser.add_argument("--precision", choices=list(TOLERANCE), default="f32",
                        help="of products of f32 (default: f32)")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each runtime, over all rounds")
    parser.add_argument("--rounds", type=int, default=3)
    installed = [name for name, peer in PEERS.items() if peer.installed()]
    parser.add_argument("--peers", default=",".join(installed),
                        help="runtimes beside Tongtu, separated by commas (default: those installed)")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target" / "release" / "tongtu")
    parser.add_argument("--line", action="store_true", help="print one line a case instead of the table")
    parser.add_argument("--out", type=pathlib.Path, help="folder for bench.json, bench.md and bench.html")
    arguments = parser.parse_args()
    ours = Tongtu(arguments.program, arguments.precision)
    chosen = [name for name in arguments.peers.split(",") if name]
    if unknown := [name for name in chosen if name not in PEERS]:
        parser.error(f"unknown peers: {', '.join(unknown)} (known: {', '.join(PEERS)})")
    others = [PEERS[name](arguments.precision) for name in chosen]
    peers = [ours, *others]
    if not arguments.program.is_file():
        parser.error(f"{arguments.program} is not there; run: cargo build --release -p tongtu-cli")
    report = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "precision": arguments.precision,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "peers": [peer.name for peer in peers],
        "versions": {peer.name: peer.version() for peer in peers},
        "cases": [],
    }
    models = onnxdata.cache_dir() / "models"
    # The first of PyTorch's processes compiles.
    compiled = tempfile.TemporaryDirectory(prefix="tongtu-bench-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled.name
    failed = False
    for choice in arguments.models or DEFAULT_MODELS:
        name, _, number = choice.partition(":")
        folder = models / name
        data_set = folder / f"test_data_set_{number or 0}"
        if not data_set.is_dir():
            print(f"skipped {choice}: not in {models} (scripts/fetch-models, bench/export.py)", file=sys.stderr)
            failed = failed or bool(arguments.models)
            continue
        for threads in (int(count) for count in arguments.threads.split(",")):
            if not arguments.line:
                print(f"{choice}, {threads} threads", file=sys.stderr, flush=True)
            row = measure_case(peers, folder, data_set, threads, arguments.runs, arguments.rounds)
            shares = {peer.name: ratio(row, ours.name, peer.name) for peer in others}
            failed = failed or "failed" in row[ours.name]
            report["cases"].append({"model": choice, "threads": threads, "peak": ours.peak(threads), "ratios": shares,
                                    "results": row})
    text = markdown(report)
    print(lines(report) if arguments.line else text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
        (arguments.out / "bench.md").write_text(text)
        (arguments.out / "bench.html").write_text(page.page(report, best_ratio, share))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
