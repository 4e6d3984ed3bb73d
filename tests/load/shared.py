"""Three proxies on PostgreSQL beside one on SQLite: what an enrollment takes, in turn, with a CA that answers at once."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from igelcert.proxy.context import Context
from igelcert.proxy.initialise import initialise, join
from tests.support.chain import Proxy
from tests.support.keep import Keep
from tests.support.postgres import cluster

from . import fleet
from .ca import SlowCa, slow_ca
from .crew import Result, processes
from .scenarios import Row, Size, percentile, spread
from .stage import Stage, over_est

__all__ = ["shared"]

ANY = "127.0.0.1:0"
PROXIES = 3
PARALLEL = 6
DURABLE = "fsync = on\nfull_page_writes = on\nsynchronous_commit = on\nshared_buffers = 64MB\n"


def shared(place: Path, size: Size) -> list[Row]:
    """The scenario of `python -m tests.load`. PostgreSQL flushes each commit, as SQLite does."""
    count = size.each // 2
    one, three = _Times(), _Times()
    devices = (count + PARALLEL) * 2 * (size.rounds + 1)
    with ExitStack() as stack:
        (place / "one").mkdir(parents=True)
        alone = stack.enter_context(over_est(place / "one", devices))
        assert alone.ca is not None
        town = stack.enter_context(_three(place / "three", devices))
        for number in range(size.rounds + 1):
            for stage, times in ((alone, one), (town, three)):
                for parallel in (1, PARALLEL):
                    result = stage.play("fresh", count, parallel=parallel, players=min(2, parallel))
                    if number or size.rounds == 1:  # the first is to warm up
                        times.add(parallel, result, count)
    name, peer = "three proxies on PostgreSQL", "one on SQLite"
    rows = []
    for parallel in (1, PARALLEL):
        ours, theirs = three.whole[parallel], one.whole[parallel]
        rows.append(
            Row(name, f"time for each enrollment, ms, {parallel} at a time", statistics.median(ours), spread(ours), peer,
                statistics.median(theirs), 1.5, of_ratio=True)
        )  # fmt: skip
        rows.append(
            Row(name, f"the same, of the slowest hundredth, {parallel} at a time", percentile(three.each[parallel], 0.99),
                None, peer, percentile(one.each[parallel], 0.99))
        )  # fmt: skip
    rows.append(Row(name, "processor time of the proxies, ms", statistics.median(three.cpu), spread(three.cpu), peer,
                    statistics.median(one.cpu)))  # fmt: skip
    return rows


class _Times:
    """By how many at a time: milliseconds for each enrollment of a round, and of each one; processor time, milliseconds."""

    def __init__(self) -> None:
        self.whole: dict[int, list[float]] = {}
        self.each: dict[int, list[float]] = {}
        self.cpu: list[float] = []

    def add(self, parallel: int, result: Result, wanted: int) -> None:
        done = result.status(200)
        assert len(done) == wanted and all(row["right"] for row in done), (
            result.errors[:3] or result.rows[-3:]
        )
        self.whole.setdefault(parallel, []).append(result.seconds / wanted * 1000)
        self.each.setdefault(parallel, []).extend((row["connect"] + row["answer"]) * 1000 for row in done)
        self.cpu.append(result.cpu / wanted * 1000)


class _Town(Stage):
    """A stage of several proxies; the devices go to one after the other."""

    ports: list[int]

    def play(self, part: str, count: int, **more: Any) -> Result:
        return super().play(part, count, ports=self.ports, **more)


@contextlib.contextmanager
def _three(place: Path, devices: int) -> Iterator[Stage]:
    """With a CA of their own."""
    with ExitStack() as stack:
        postgres = stack.enter_context(cluster(DURABLE))
        ca = stack.enter_context(slow_ca(place / "ca"))
        url = postgres.url(postgres.create())
        keeps = []
        for number in range(PROXIES):
            data = place / str(number) / "data"
            data.parent.mkdir(parents=True)
            if keeps:
                join(data, url, keeps[0].data / "master.key", [], ANY, ANY)
            else:
                initialise(data, ["localhost"], ANY, ANY, url)
            keeps.append(Keep(data))
            keeps[-1].start()
            stack.callback(keeps[-1].kill)
        yield _stage(place, keeps, ca, devices)


def _stage(place: Path, keeps: list[Keep], ca: SlowCa, devices: int) -> _Town:
    gate = Proxy(keeps[0].data, keeps[0].port, keeps[0].admin_port)
    gate.use_est(ca.port, ca.dir / "ra.p12", ca.dir / "ra.password")
    gate.profile("load", fleet.PROFILE, directory=fleet.DIRECTORY)
    made = fleet.make(gate.data, place / "fleet", devices)
    for keep in keeps:
        keep.await_ready()
    context = Context.open(gate.data)
    with context.db.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    context.db.close()
    pids = [pid for keep in keeps if keep.process for pid in processes(keep.process.pid)]
    town = _Town(gate, ca, made, pids)
    town.ports = [keep.port for keep in keeps]
    return town
