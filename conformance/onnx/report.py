"""Says how much of ONNX's own suite passes, and checks that what does not pass is accounted for.

    python conformance/onnx/report.py [--ops]

Reads passing.txt, left-out.tsv and left-out.md beside this file, and the tests that dump.py wrote. Exits with 1 when
passing.txt is not sorted or names a test that does not exist, when a test is neither in it nor left out with a
reason, or when microsoft.txt or usage.txt does not list exactly the tests of its suite.
"""

import argparse
import collections
import fnmatch
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "scripts"))
import onnxdata


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", action="store_true", help="print tests and passes of every operator")
    arguments = parser.parse_args()
    root = onnxdata.cache_dir() / "onnx-tests"
    if not (root / "index.txt").is_file():
        print("error: the tests are not there; run conformance/onnx/dump.py", file=sys.stderr)
        return 1
    tests = (root / "index.txt").read_text().split()
    listed = (HERE / "passing.txt").read_text().split()
    problems = []
    if listed != sorted(set(listed)):
        problems.append("passing.txt is not sorted, or names a test twice")
    problems += [f"passing.txt: no such test: {name}" for name in sorted(set(listed) - set(tests))]
    passing = set(listed)
    for suite in ("microsoft", "usage"):
        index = onnxdata.cache_dir() / f"onnx-{suite}" / "index.txt"
        names = set(index.read_text().split()) if index.is_file() else set()
        known = set((HERE / f"{suite}.txt").read_text().split())
        problems += [f"{suite}.txt: no such test: {name}" for name in sorted(known - names)]
        problems += [f"{suite}.txt does not list {name}" for name in sorted(names - known)]

    kinds = collections.Counter(name.split("/")[0] for name in tests)
    passes = collections.Counter(name.split("/")[0] for name in tests if name in passing)
    for kind, total in kinds.items():
        print(f"{kind}: {passes[kind]} of {total}")
    print(f"all: {sum(passes.values())} of {len(tests)}")

    ops = {name: json.loads((root / name / "meta.json").read_text())["ops"] for name in tests}
    if arguments.ops:
        total, good = collections.Counter(), collections.Counter()
        for name, used in ops.items():
            if "_expanded" not in name:
                total.update(used)
                good.update(used if name in passing else [])
        for op in sorted(total):
            print(f"{op}: {good[op]} of {total[op]}")

    reasons = re.findall(r"^\| `([^`]+)` \|", (HERE / "left-out.md").read_text(), re.MULTILINE)
    reasons += [line.split("\t")[0] for line in (HERE / "left-out.tsv").read_text().splitlines() if line]
    used_reasons = set()
    for name in tests:
        covering = [reason for reason in reasons
                    if any(fnmatch.fnmatchcase(label, reason) for label in [name, *ops[name]])]
        if name not in passing:
            used_reasons.update(covering)
            if not covering:
                problems.append(f"neither passing nor left out with a reason: {name}")
    problems += [f"nothing is left out for `{reason}` any more" for reason in reasons
                 if reason not in used_reasons]
    for problem in problems[:40]:
        print(problem, file=sys.stderr)
    if len(problems) > 40:
        print(f"and {len(problems) - 40} more", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
