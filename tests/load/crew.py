"""The processes of a load test: players, and what the proxy's processes cost meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.chain import Proxy

from .fleet import Fleet

__all__ = ["Cost", "Result", "cost_of", "percentile", "play", "processes"]

TICK = os.sysconf("SC_CLK_TCK")
SPARE_SECONDS = 60.0  # beyond a plan's own time, after which its players are ended


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of processor time that processes used so far, and their resident megabytes (0: ended)."""

    cpu: float
    rss: float


@dataclass
class Result:
    """rows: what the players told, in the order of time. seconds: from the start to the last answer; cpu: of the proxy
    meanwhile; player_cpu: of the players in all. waiting: devices that wait for other settings."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    start: float = 0.0
    cpu: float = 0.0
    player_cpu: float = 0.0
    whole: bool = True
    waiting: int = 0

    def status(self, *wanted: int) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("status") in wanted]

    @property
    def errors(self) -> list[str]:
        return [row["error"] for row in self.rows if "error" in row]


def processes(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in processes(int(child)))]


def cost_of(pids: list[int]) -> Cost:
    cpu = rss = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu += (int(fields[11]) + int(fields[12])) / TICK
            rss += int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Cost(cpu, rss)


def percentile(values: list[float], part: float) -> float:
    """The smallest value that `part` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def play(
    fleet: Fleet,
    gate: Proxy,
    part: str,
    *,
    count: int,
    players: int = 2,
    seconds: float = 120.0,
    first: int = 0,
    port: int = 0,
    pids: list[int] | None = None,
    meanwhile: Callable[[Result], None] | None = None,
    **more: Any,
) -> Result:
    """The first `count` devices of the fleet play a part, shared out among so many processes. pids: whose cost is told,
    by default the proxy's; port: by default the proxy's; meanwhile: called with what is known so far once all have begun."""
    pids = pids or processes(json.loads((gate.data / "run.json").read_text())["pid"])
    shares = [(first + count * n // players, first + count * (n + 1) // players) for n in range(players)]
    plans = [
        {
            "fleet": str(fleet.dir), "trust": str(gate.data / "trust.pem"), "port": port or gate.port,
            "first": low, "count": high - low, "part": part, "seconds": seconds, **more,
        }
        for low, high in shares
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        crew = [stack.enter_context(_player(plan)) for plan in plans]
        limit = threading.Timer(seconds + SPARE_SECONDS, lambda: [each.kill() for each in crew])
        limit.start()
        stack.callback(limit.cancel)
        for each in crew:
            assert each.stdout and "ready" in json.loads(each.stdout.readline() or "{}"), (
                "a player did not start"
            )
        before, result = cost_of(pids), Result(start=time.monotonic())
        for each in crew:
            assert each.stdin
            each.stdin.write("go\n")
            each.stdin.flush()
        readers = [threading.Thread(target=_read, args=(each, result)) for each in crew]
        for reader in readers:
            reader.start()
        if meanwhile:
            meanwhile(result)
        for reader in readers:
            reader.join()
        after = cost_of(pids)
    result.rows.sort(key=lambda row: row["at"])
    ends = [row["at"] + row.get("answer", 0.0) for row in result.rows]
    result.seconds = max(ends, default=result.start) - result.start
    result.cpu = after.cpu - before.cpu
    return result


def _read(player: subprocess.Popen[str], result: Result) -> None:
    assert player.stdout
    done = False
    for line in player.stdout:
        row = json.loads(line)
        if "waiting" in row:
            result.waiting += row["waiting"]
        elif "done" in row:
            result.player_cpu += row["cpu"]
            done = row["done"]
        else:
            result.rows.append(row)
    result.whole = result.whole and done


@contextlib.contextmanager
def _player(plan: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    args = [sys.executable, "-m", "tests.load.player", json.dumps(plan)]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
