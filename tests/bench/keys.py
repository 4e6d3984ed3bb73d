"""Key generation beside its peers: RSA with one and two threads against the openssl command, `cryptography`, Go and
AWS-LC; elliptic curves against libcrypto called from C. Run by scripts/bench."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric import rsa

from igelcert import crypto
from igelcert.model import KEY_TYPES
from tests.support.peers import peer

__all__ = ["Row", "measure", "table"]

COUNTS = {"rsa_2048": 200, "rsa_3072": 80, "rsa_4096": 40, "rsa_8192": 12}
CURVE_ROUNDS, CURVE_KEYS = 30, 100
CURVE_LIMIT = 1.1
QUIET_SECONDS = 0.5
# how many times as fast as the peer: with one thread, with two
AIMS = {
    ("rsa_2048", "openssl genpkey"): (4.0, 8.0),
    ("rsa_3072", "openssl genpkey"): (4.0, 8.0),
    ("rsa_4096", "openssl genpkey"): (4.0, 8.0),
    ("rsa_8192", "openssl genpkey"): (None, 5.0),
    ("rsa_2048", "cryptography"): (1.25, 1.8),
    ("rsa_3072", "cryptography"): (1.25, 2.0),
    ("rsa_4096", "cryptography"): (1.25, 2.0),
    ("rsa_8192", "cryptography"): (None, 2.0),
}

Timed = Callable[[], tuple[float, float]]  # milliseconds, and those of processor time


@dataclass(frozen=True)
class Row:
    """Milliseconds per key, mean and its standard error, by the clock and of processor time. gain: how many times
    as fast ours is (curves: as slow)."""

    kind: str
    threads: int
    ours: float
    ours_error: float
    ours_cpu: float
    peer: str
    theirs: float
    theirs_error: float
    theirs_cpu: float
    gain: float
    gain_error: float
    gain_cpu: float
    limit: float | None
    met: bool | None


def _cpu(process: int) -> float:
    """Milliseconds of processor time that the living threads of a process have had (sched-stats in the kernel's
    documentation)."""
    found = 0
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += int(file.read_text().split()[0])
    return found / 1e6


def _timed(work: Callable[[], object]) -> Timed:
    """Of this process and the programs that it waits for."""

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (time.process_time() + children.ru_utime + children.ru_stime) * 1000

    def run() -> tuple[float, float]:
        start, cpu = time.perf_counter(), spent()
        work()
        return (time.perf_counter() - start) * 1000, spent() - cpu

    return run


def _server(stack: contextlib.ExitStack, command: list[str | Path], kind: str) -> Timed:
    """A program that answers a line with a key type by nanoseconds."""
    process = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    assert process.stdin is not None and process.stdout is not None
    wants, answers = process.stdin, process.stdout
    stack.callback(wants.close)

    def run() -> tuple[float, float]:
        cpu = _cpu(process.pid)
        wants.write(kind + "\n")
        wants.flush()
        return int(answers.readline()) / 1e6, _cpu(process.pid) - cpu

    return run


def _genpkey(kind: str) -> Timed:
    bits = kind.removeprefix("rsa_")
    command = ["openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}"]
    return _timed(lambda: subprocess.run([*command, "-out", os.devnull], check=True))


def _peers(stack: contextlib.ExitStack, kind: str) -> dict[str, Timed]:
    bits = int(kind.removeprefix("rsa_"))
    found = {
        "openssl genpkey": _genpkey(kind),
        "cryptography": _timed(lambda: rsa.generate_private_key(65537, bits)),
    }
    for name in ("keygen-go", "keygen-awslc"):
        with contextlib.suppress(pytest.skip.Exception):
            found[name] = _server(stack, [peer(name)], kind)
    return found


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of it."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def _quiet(seconds: float) -> None:
    """Waits until nobody else runs, but not for long: what others do costs two threads more than one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        if running <= 1:  # this process
            return
        time.sleep(0.01)


def _interleaved(works: dict[str, Timed], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Mean, its standard error and mean of processor time. Each in turn, in a new order each time, so that whatever
    else the machine does meets all of them alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    names = list(works)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            _quiet(QUIET_SECONDS)
            times[name].append(works[name]())
    found = {}
    for name, values in times.items():
        mean, error = _mean([wall for wall, _ in values])
        found[name] = (mean, error, statistics.mean(cpu for _, cpu in values))
    return found


def _rsa(kind: str, rounds: int) -> list[Row]:
    ours = {
        f"ours, {threads}": _timed(lambda threads=threads: crypto.Key.generate(kind, threads=threads))
        for threads in (1, 2)
    }
    with contextlib.ExitStack() as stack:
        peers = _peers(stack, kind)
        seen = _interleaved({**ours, **peers}, rounds)
    rows = []
    for name in peers:
        for threads in (1, 2):
            mine, mine_error, mine_cpu = seen[f"ours, {threads}"]
            theirs, error, cpu = seen[name]
            gain = theirs / mine
            gain_error = gain * math.hypot(mine_error / mine, error / theirs)
            limit = AIMS.get((kind, name), (None, None))[threads - 1]
            rows.append(
                Row(
                    kind, threads, mine, mine_error, mine_cpu, name, theirs, error, cpu, gain, gain_error,
                    cpu / mine_cpu, limit, None if limit is None else gain >= limit,
                )
            )  # fmt: skip
    return rows


def _curve(kind: str, rounds: int) -> Row:
    """Medians of rounds of a hundred keys; the ratio is of the medians."""

    def ours() -> None:
        for _ in range(CURVE_KEYS):
            crypto.Key.generate(kind)

    mine, theirs = [], []
    with contextlib.ExitStack() as stack:
        run, other = _timed(ours), _server(stack, [peer("keygen-ec")], kind)
        for _ in range(rounds):
            for work, times in ((run, mine), (other, theirs)):
                _quiet(QUIET_SECONDS)
                times.append(tuple(value / CURVE_KEYS for value in work()))
    a, b = (statistics.median(wall for wall, _ in times) for times in (mine, theirs))
    a_cpu, b_cpu = (statistics.median(cpu for _, cpu in times) for times in (mine, theirs))
    spread = [_quartiles([wall for wall, _ in times]) for times in (mine, theirs)]
    return Row(
        kind, 1, a, spread[0], a_cpu, "libcrypto from C", b, spread[1], b_cpu, a / b, math.nan, a_cpu / b_cpu,
        CURVE_LIMIT, a / b <= CURVE_LIMIT,
    )  # fmt: skip


def _quartiles(values: list[float]) -> float:
    """Half the distance between the quartiles."""
    if len(values) < 2:
        return math.nan
    cuts = statistics.quantiles(values, n=4)
    return (cuts[2] - cuts[0]) / 2


def measure(*, quick: bool = False, kinds: tuple[str, ...] = KEY_TYPES) -> list[Row]:
    """All of it; `quick`: each once, only to see that it runs."""
    rows = []
    for kind in kinds:
        if kind in COUNTS:
            if not (quick and kind == "rsa_8192"):
                rows += _rsa(kind, 1 if quick else COUNTS[kind])
        else:
            rows.append(_curve(kind, 2 if quick else CURVE_ROUNDS))
    return rows


def table(rows: list[Row]) -> str:
    """As docs/performance.md shows it."""
    lines = [
        f"openssl: {subprocess.run(['openssl', 'version'], capture_output=True, text=True).stdout.strip()}; "
        f"cryptography: {backend.openssl_version_text()}; ours: libcrypto {crypto.libcrypto_version()}",
        "",
        "| key | threads | ours, ms (CPU) | peer | peer, ms (CPU) | ratio | ratio of CPU | limit | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:g}"
        verdict = "" if row.met is None else "met" if row.met else "MISSED"
        error = "" if math.isnan(row.gain_error) else f" ± {row.gain_error:.2f}"
        digits = 1 if row.kind.startswith("rsa_") else 4
        lines.append(
            f"| {row.kind} | {row.threads} | {row.ours:.{digits}f} ± {row.ours_error:.{digits}f} "
            f"({row.ours_cpu:.{digits}f}) | {row.peer} | {row.theirs:.{digits}f} ± {row.theirs_error:.{digits}f} "
            f"({row.theirs_cpu:.{digits}f}) | {row.gain:.2f}{error} | {row.gain_cpu:.2f} | {limit} | {verdict} |"
        )
    return "\n".join(lines)


def as_json(rows: list[Row]) -> str:
    """The rows; what is no number is null."""
    plain = [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(row).items()
        }
        for row in rows
    ]
    return json.dumps({"keys": plain}, indent=1)
