"""What the load tests play, and what they find: rows of a table. Sizes are those of `Size`; nothing here judges a time
without something beside it, or a bound that the rows name."""

from __future__ import annotations

import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from . import fleet
from .ca import Seen
from .crew import Result, percentile
from .stage import Stage, nginx, over_est, over_scep

__all__ = ["FULL", "QUICK", "SCENARIOS", "Row", "Size", "as_json", "grown", "spread", "table"]

CAP = 8  # requests that the CA of the storm takes at once
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@dataclass(frozen=True, slots=True)
class Size:
    """rounds: of what is compared, in turn; each: enrollments in one; storm, idle, siege: devices; outage, rest: seconds;
    full: devices in the databases of the curve; delay: seconds that the CA of the storm takes for a certificate; renewals:
    devices, and lives: life, assigned_in, seconds, interval as of renewals.Short."""

    rounds: int
    each: int
    storm: int
    outage: float
    idle: int
    rest: float
    full: tuple[int, ...]
    delay: float = 0.05
    siege: int = 60
    renewals: int = 60
    lives: tuple[int, int, int, int] = (10, 2, 11, 4)


FULL = Size(7, 400, 10_000, 60.0, 5_000, 30.0, (10, 1_000, 100_000), siege=2_000,
            renewals=2_000, lives=(150, 30, 200, 10))  # fmt: skip
QUICK = Size(1, 24, 60, 1.0, 40, 0.5, (10, 50))


@dataclass(frozen=True, slots=True)
class Row:
    """ours beside a peer (theirs), or against a bound alone; most: the bound is what it may be at most, else what it is to
    be at least, of `judged`: the figure itself, or its ratio to the peer. spread: half the distance of quartiles."""

    scenario: str
    what: str
    ours: float
    spread: float | None = None
    peer: str = ""
    theirs: float | None = None
    bound: float | None = None
    most: bool = True
    of_ratio: bool = False

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """None: there is no bound."""
        judged = self.ratio if self.of_ratio else self.ours
        if self.bound is None or judged is None:
            return None
        return judged <= self.bound if self.most else judged >= self.bound


# ---- what an enrollment costs the proxy -----------------------------------------------------------


@dataclass
class _Runs:
    """Rounds of one kind: milliseconds of processor time for each enrollment, enrollments a second, milliseconds."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, result: Result, wanted: int) -> None:
        done = result.status(200)
        assert len(done) == wanted and all(row["right"] for row in done), (
            result.errors[:3] or result.rows[-3:]
        )
        self.cpu.append(result.cpu / wanted * 1000)
        self.rate.append(wanted / result.seconds)
        self.times += [(row["connect"] + row["answer"]) * 1000 for row in done]


def overhead(place: Path, size: Size) -> list[Row]:
    """Relayed enrollments, kept and fresh connections, over EST and SCEP; nginx in the proxy's place."""
    count, parallel = size.each, 4
    runs: dict[str, _Runs] = {}
    with ExitStack() as stack:
        est = stack.enter_context(
            over_est(_made(place / "est"), (count + parallel * 2) * (2 * size.rounds + 1))
        )
        scep = stack.enter_context(over_scep(_made(place / "scep"), count * (size.rounds + 1)))
        kinds: list[tuple[str, Stage, str, dict[str, Any]]] = [
            ("EST, fresh", est, "fresh", {}),
            ("EST, kept", est, "kept", {}),
            ("SCEP, fresh", scep, "fresh", {}),
        ]
        with suppress(pytest.skip.Exception):  # scripts/peers was not run
            front = stack.enter_context(nginx(place / "est" / "nginx", est))
            aside: dict[str, Any] = {"port": front.port, "pids": front.pids}
            kinds += [("nginx, fresh", est, "fresh", aside), ("nginx, kept", est, "kept", aside)]
        for number in range(size.rounds + 1):
            for name, stage, part, more in kinds:
                if number == 0 and size.rounds > 1:  # to warm up
                    _play(stage, part, 16, parallel, more)
                elif number:
                    runs.setdefault(name, _Runs()).add(_play(stage, part, count, parallel, more), count)
    return [
        *_overhead_rows("EST, fresh", runs["EST, fresh"], runs.get("nginx, fresh"), 12.0),
        *_overhead_rows("EST, kept", runs["EST, kept"], runs.get("nginx, kept"), 12.0),
        *_overhead_rows("SCEP, fresh", runs["SCEP, fresh"], None, 15.0),
    ]


def _play(stage: Stage, part: str, count: int, parallel: int, more: dict[str, Any]) -> Result:
    if part == "fresh":
        return stage.play("fresh", count, parallel=parallel, **more)
    # as many enrollments on two times `parallel` connections, each of a device of its own
    devices = 2 * parallel
    return stage.play("kept", devices, parallel=parallel, rounds=count // devices, **more)


def _overhead_rows(name: str, ours: _Runs, theirs: _Runs | None, bound: float) -> list[Row]:
    peer = "nginx, relaying blindly" if theirs else ""

    def row(what: str, mine: list[float], other: list[float] | None, **more: Any) -> Row:
        return Row(
            name,
            what,
            statistics.median(mine),
            spread(mine),
            peer,
            statistics.median(other) if other else None,
            **more,
        )

    return [
        row("processor time of the proxy, ms", ours.cpu, theirs and theirs.cpu, bound=bound),
        row("enrollments/s", ours.rate, theirs and theirs.rate),
        Row(name, "time, ms, median", percentile(ours.times, 0.5), None, peer, _part(theirs, 0.5)),
        Row(name, "time, ms, p99", percentile(ours.times, 0.99), None, peer, _part(theirs, 0.99)),
    ]


def _part(runs: _Runs | None, part: float) -> float | None:
    return percentile(runs.times, part) if runs else None


def spread(values: list[float]) -> float | None:
    if len(values) < 3:
        return None
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


# ---- the storm ----------------------------------------------------------------------------------


class _Memory(threading.Thread):
    """Looks at the proxy's size once a second, until it is stopped."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(daemon=True)
        self._stage = stage
        self._end = threading.Event()
        self.sizes = [stage.cost().rss]

    def run(self) -> None:
        while not self._end.wait(1.0):
            self.sizes.append(self._stage.cost().rss)

    def stop(self) -> None:
        self._end.set()
        self.join()


def storm(place: Path, size: Size) -> list[Row]:
    """A profile is assigned to all devices while they wait for it; the CA fails when it has issued half of them."""
    count, begun = size.storm, 0.0
    limit = 120.0 + 4 * (count * size.delay / CAP + size.outage)
    ca = {"delay": size.delay, "cap": CAP, "fail_after": count // 2, "fail_seconds": size.outage}
    with over_est(_made(place / "storm"), count, assigned=False, **ca) as stage:

        def change(result: Result) -> None:
            nonlocal begun
            _until(
                lambda: result.waiting == count and stage.waiting() == count, limit, "not all devices wait"
            )
            before.append(stage.cost().cpu)
            memory.append(_Memory(stage))
            memory[0].start()
            begun = time.monotonic()
            stage.assign()

        before: list[float] = []
        memory: list[_Memory] = []
        result = stage.play("storm", count, seconds=2 * limit, meanwhile=change)
        memory[0].stop()
        cpu = stage.cost().cpu - before[0]
        assert stage.ca is not None
        return _storm_rows(count, size.delay, begun, result, stage.ca.seen(), memory[0].sizes, cpu)


def _storm_rows(
    count: int, delay: float, begun: float, result: Result, seen: Seen, sizes: list[float], cpu: float
) -> list[Row]:
    asks = [row for row in result.rows if "status" in row]
    done = {row["unit"]: row for row in asks if row["status"] == 200 and row["right"]}
    took = max((row["at"] + row["answer"] for row in done.values()), default=begun) - begun
    least = count * delay / CAP + (seen.up - seen.down)
    answers = [row["answer"] * 1000 for row in asks]
    whole = [(row["answer"] + row["connect"]) * 1000 for row in asks]
    heard = [row["at"] - begun for row in result.rows if "heard" in row]
    name = f"storm of {count}"
    return [
        Row(name, "devices with their certificate", len(done), bound=count, most=False),
        Row(name, "most requests at the CA at once (it allows 8)", seen.peak, bound=CAP),
        Row(name, "questions earlier than told", _early(asks), bound=0),
        Row(name, "time in all, s", took, None, "the CA's capacity", least, 1.2, of_ratio=True),
        Row(name, "answer to a request, ms, p99", percentile(answers, 0.99), bound=500.0),
        Row(name, "the same with the connection's making, ms, p99", percentile(whole, 0.99)),
        Row(
            name,
            "proxy's memory, MB, most",
            max(sizes),
            None,
            "at the beginning",
            sizes[0],
            1.15,
            of_ratio=True,
        ),
        Row(name, "heard of the change, s, p99", percentile(heard, 0.99)),
        Row(name, "questions for each certificate", len(asks) / count),
        Row(name, "requests to the CA that failed or were too many", seen.failed + seen.over),
        Row(name, "processor time of the proxy, ms, for each device", cpu / count * 1000),
        Row(name, "processor time of the devices, ms, each", result.player_cpu / count * 1000),
    ]


def _early(asks: list[dict[str, Any]]) -> int:
    """How often a device came before the time that it was told. It counts whole seconds, as the clock says them."""
    found, allowed = 0, dict[str, float]()
    for row in sorted(asks, key=lambda row: row["at"]):
        found += row["at"] < allowed.get(row["unit"], 0.0)
        if row["status"] != 200:
            allowed[row["unit"]] = row["at"] + row["answer"] + (row["after"] or 0) - 1.0
    return found


def _until(what: Callable[[], bool], seconds: float, say: str) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, say
        time.sleep(0.2)


# ---- devices that wait --------------------------------------------------------------------------


def idle(place: Path, size: Size) -> list[Row]:
    """Devices that wait for other settings: at rest, and when these come."""
    count, begun, limit = size.idle, 0.0, 60.0 + size.idle / 20
    costs = []
    with over_est(_made(place / "idle"), count, assigned=False) as stage:
        costs.append(stage.cost())

        def change(result: Result) -> None:
            nonlocal begun
            _until(
                lambda: result.waiting == count and stage.waiting() == count, limit, "not all devices wait"
            )
            time.sleep(1)
            costs.append(stage.cost())
            time.sleep(size.rest)
            costs.append(stage.cost())
            begun = time.monotonic()
            stage.assign()

        result = stage.play("idle", count, seconds=2 * limit, meanwhile=change)
        costs.append(stage.cost())
    heard = [row["at"] - begun for row in result.rows if row.get("heard") == 200]
    empty, waiting, rested, told = costs
    name = f"{count} devices that wait"
    return [
        Row(name, "devices that heard of the change", len(heard), bound=count, most=False),
        Row(name, "until 99 % of them had, s", percentile(heard, 0.99), bound=5.0),
        Row(name, "proxy's memory, MB", rested.rss, None, "without them", empty.rss),
        Row(name, "the same for each device, kB", (rested.rss - empty.rss) / count * 1000),
        Row(name, "processor time at rest, % of one", (rested.cpu - waiting.cpu) / size.rest * 100),
        Row(name, "processor time of being told, ms, each", (told.cpu - rested.cpu) / count * 1000),
    ]


# ---- clients that stall -------------------------------------------------------------------------


class _Stalled:
    """20 connections that say nothing and 20 with half a ClientHello, made again when the proxy ends them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = threading.Event()
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._held = [self._one(number % 2 == 1) for number in range(40)]
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for each in self._held:
            each.close()

    def _one(self, half: bool) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        if half:
            made.sendall(HALF_HELLO)
        made.setblocking(False)
        return made

    def _run(self) -> None:
        while not self._end.wait(0.5):
            for number, each in enumerate(self._held):
                try:
                    ended = each.recv(1) == b""
                except BlockingIOError:
                    continue
                except OSError:
                    ended = True
                if ended:
                    each.close()
                    self._held[number] = self._one(number % 2 == 1)


def stalled(place: Path, size: Size) -> list[Row]:
    """Enrollments with and without such clients, in turn."""
    count, rounds = size.each, size.rounds
    calm, disturbed = _Runs(), _Runs()
    with over_est(_made(place / "stalled"), count * 2 * rounds + 16) as stage:
        stage.play("fresh", 16, parallel=2)
        for _ in range(rounds):
            calm.add(stage.play("fresh", count, parallel=2), count)
            with _Stalled(stage.gate.port):
                disturbed.add(stage.play("fresh", count, parallel=2), count)
    peer = "without them"
    return [
        Row("40 clients that stall", f"time of others, ms, {shown}", percentile(disturbed.times, part), None, peer,
            percentile(calm.times, part), 2.0 if part == 0.99 else None, of_ratio=True)
        for shown, part in (("median", 0.5), ("p99", 0.99))
    ]  # fmt: skip


# ---- how cost grows -----------------------------------------------------------------------------


def curve(place: Path, size: Size) -> list[Row]:
    """The same enrollments with so many devices on record, in turn."""
    return grown(size, lambda full, devices: over_est(_made(place / f"curve-{full}"), devices))


def grown(
    size: Size, opened: Callable[[int, int], AbstractContextManager[Stage]], where: str = ""
) -> list[Row]:
    """opened(full, devices): a stage with so many devices that play, `full` on record in the end. where: for the names."""
    runs = {full: _Runs() for full in size.full}
    devices, rounds = 8, max(1, size.each // 8)
    with ExitStack() as stack:
        stages = {}
        for full in size.full:
            stages[full] = stack.enter_context(opened(full, devices))
            fleet.fill(stages[full].gate.data, full - devices)
        for number in range(size.rounds + 1):
            for full, stage in stages.items():
                stage.used = 0  # the same devices, with other requests
                result = stage.play("kept", devices, parallel=devices // 2, rounds=rounds)
                if number:  # the first is to warm up
                    runs[full].add(result, devices * rounds)
    base = runs[size.full[0]]
    peer = f"{size.full[0]} devices"
    found = []
    for full in size.full[1:]:
        mine, name = runs[full], f"{full} devices on record{where}"
        found.append(
            Row(name, "processor time of the proxy, ms", statistics.median(mine.cpu), spread(mine.cpu), peer,
                statistics.median(base.cpu), 1.3, of_ratio=True)
        )  # fmt: skip
        found.append(
            Row(name, "time, ms, median", percentile(mine.times, 0.5), None, peer, percentile(base.times, 0.5), 1.3,
                of_ratio=True)
        )  # fmt: skip
    return found


SCENARIOS: dict[str, Callable[[Path, Size], list[Row]]] = {
    "overhead": overhead,
    "storm": storm,
    "idle": idle,
    "stalled": stalled,
    "curve": curve,
}


# ---- showing it ---------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [
        "| scenario | what | ours | peer | theirs | ratio | limit | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = (
            ""
            if row.bound is None
            else f"{'≤' if row.most else '≥'} {row.bound:g}{'x' if row.of_ratio else ''}"
        )
        ours = _number(row.ours) + (f" ± {_number(row.spread)}" if row.spread is not None else "")
        theirs = "" if row.theirs is None else _number(row.theirs)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        met = {None: "", True: "met", False: "MISSED"}[row.met]
        lines.append(
            f"| {row.scenario} | {row.what} | {ours} | {row.peer} | {theirs} | {ratio} | {limit} | {met} |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"


def as_json(rows: list[Row]) -> str:
    """With the load of the machine at the end, over one, five and fifteen minutes."""
    found = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows]
    return json.dumps({"load": found, "machine": os.getloadavg()}, indent=1)
