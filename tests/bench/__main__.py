"""`python -m tests.bench RUNS SECONDS QUICK JSON WHAT…`, as scripts/bench calls it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.load import scenarios

from . import boots, cms, enroll, rest, status
from . import keys as bench_keys


def keys(quick: bool, json_file: Path) -> bool:
    rows = bench_keys.measure(quick=quick)
    print(bench_keys.table(rows))
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(bench_keys.as_json(rows) + "\n")
    return all(row.met is not False for row in rows)


def load(quick: bool) -> bool:
    rows = []
    for play in scenarios.SCENARIOS.values():
        with tempfile.TemporaryDirectory() as place:
            rows += play(Path(place), scenarios.QUICK if quick else scenarios.FULL)
    print(scenarios.table(rows))
    json_file = Path("artefacts/bench-load.json")
    json_file.parent.mkdir(exist_ok=True)
    json_file.write_text(scenarios.as_json(rows) + "\n")
    return all(row.met is not False for row in rows)


def main() -> int:
    runs, seconds = int(sys.argv[1]), float(sys.argv[2])
    quick, json_file, what = sys.argv[3] == "yes", Path(sys.argv[4]), sys.argv[5:]
    good = True
    if "status" in what:
        good = status.measure(3 if quick else runs)
    if "enroll" in what:
        good = enroll.measure(1 if quick else 15) and good
    if "rest" in what:
        good = rest.measure(2.0 if quick else seconds) and good
    if "cms" in what:
        good = cms.measure() and good
    if "keys" in what:
        good = keys(quick, json_file) and good
    if "boot" in what:
        good = boots.measure(1 if quick else 3) and good
    if "load" in what:
        good = load(quick) and good
    return 0 if good or quick else 1


if __name__ == "__main__":
    sys.exit(main())
