"""A storm of enrollments while everything that can die does: three proxies, PostgreSQL, HAProxy and the lab CA (SCEP).

The proxies get SIGKILL in turn, PostgreSQL is restarted once. What came of it is told by what is not under test: by the
CA's own log, by the devices, and by the rows of the audit log.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from igelcert.proxy.initialise import initialise, join
from tests.support.chain import LabCa, Proxy, lab_ca
from tests.support.fronts import BALANCER, Front, haproxy
from tests.support.keep import Keep
from tests.support.postgres import Cluster, cluster

from . import fleet
from .crew import Result, percentile, play
from .fleet import Fleet
from .scenarios import Row, Size

__all__ = ["UNLEASED", "Besieged", "Plan", "besieged", "judge", "siege"]

ANY = "127.0.0.1:0"
UNLEASED = (sys.executable, "-m", "tests.load.unleased")


@dataclass(frozen=True, slots=True)
class Plan:
    """delay: of the CA for each request; timeout: the proxies' for the CA (a lease lasts 10 seconds longer); every: seconds
    between two SIGKILL, of which there are `kills` at most; restart: when PostgreSQL is; patience: of a device for an
    answer; longest: that it stays away whatever it was told; again: the same, when its connection broke; program: what
    serves."""

    devices: int
    cap: int = 6
    delay: str = "200ms"
    timeout: int = 5
    every: float = 3.0
    kills: int = 1_000
    restart: float = 6.0
    patience: float = 40.0
    longest: float = 2.0
    again: float = 0.5
    seconds: float = 120.0
    players: int = 1
    program: tuple[str, ...] = ()


@dataclass
class Besieged:
    """What is there, and what came of it. killed: how often each proxy was; certificates: by unit ID, of each answer;
    csrs: by unit ID, SHA-256."""

    plan: Plan
    ca: LabCa
    keeps: list[Keep]
    front: Front
    fleet: Fleet
    result: Result = field(default_factory=Result)
    killed: list[int] = field(default_factory=list)
    audit: list[tuple[str, str]] = field(default_factory=list)
    restarted: float = 0.0

    @property
    def issued(self) -> list[dict[str, Any]]:
        """The CA's own log."""
        return [json.loads(line) for line in (self.ca.dir / "issued.log").read_text().splitlines()]

    def told(self, name: str) -> dict[str, list[str]]:
        """By unit ID, that field of each answer with a certificate."""
        found: dict[str, list[str]] = collections.defaultdict(list)
        for row in self.result.status(200):
            found[row["unit"]].append(row[name])
        return found

    def figures(self) -> dict[str, Any]:
        took = [row["answer"] for row in self.result.rows if "answer" in row]
        errors = collections.Counter(text.partition(":")[0] for text in self.result.errors)
        return {
            "devices": self.plan.devices,
            "with a certificate": len(self.told("serial")),
            "issued by the CA": len(self.issued),
            "at once at the CA": max((row["peak"] for row in self.issued), default=0),
            "cap": self.plan.cap,
            "SIGKILL": self.killed,
            "PostgreSQL was away, s": round(self.restarted, 1),
            "seconds": round(self.result.seconds, 1),
            "answers": dict(
                collections.Counter(row["status"] for row in self.result.rows if "status" in row)
            ),
            "connections lost": dict(errors),
            "median answer, s": round(percentile(took, 0.5), 2),
            "longest answer, s": round(max(took, default=0.0), 2),
        }


def judge(seen: Besieged) -> None:
    """AssertionError says what did not hold."""
    plan, result = seen.plan, seen.result
    peak = max((row["peak"] for row in seen.issued), default=0)
    assert peak <= plan.cap, f"{peak} requests were at the CA at once, which takes {plan.cap}"
    late = [text for text in result.errors if text.startswith("TimeoutError")]
    assert not late, f"{len(late)} requests got no answer within {plan.patience} s"
    assert result.whole, f"the devices were not done within {plan.seconds} s: {seen.figures()}"
    serials, csrs = seen.told("serial"), seen.told("csr")
    units = set(seen.fleet.units)
    assert serials.keys() == units, f"{len(units - serials.keys())} devices have no certificate"
    # asked twice at the least: as long as it took, and once more when all had been done
    assert all(len(found) == 2 and len(set(found)) == 1 for found in serials.values()), "another certificate"
    assert all(row["right"] for row in result.status(200)), "a certificate for somebody else"
    wanted = {found[0]: serials[unit][0] for unit, found in csrs.items()}
    rows = [(row["csr"], row["serial"]) for row in seen.issued]
    more = sorted(set(rows) ^ set(wanted.items()))
    assert not more, f"the CA issued other certificates than devices have: {more}"
    assert len(rows) == len(wanted), "the CA issued a certificate twice"
    audited = sorted((unit, detail.split("certificate ")[1].split()[0]) for unit, detail in seen.audit)
    assert audited == sorted((unit, found[0]) for unit, found in serials.items()), "the audit log differs"
    assert min(seen.killed) >= 1 and seen.restarted, "nothing died"


@contextlib.contextmanager
def _town(place: Path, cluster: Cluster, plan: Plan) -> Iterator[tuple[Besieged, str]]:
    """Everything, running; and the name of the database."""
    name = cluster.create()
    url = cluster.url(name)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.drop, name)
        ca = stack.enter_context(
            lab_ca(place / "ca", "--scep", ANY, "--delay", plan.delay, "--quiet"),
        )
        keeps: list[Keep] = []
        for number in range(3):
            data = place / str(number) / "data"
            data.parent.mkdir()
            if keeps:
                join(data, url, keeps[0].data / "master.key", [], ANY, ANY)
            else:
                initialise(data, ["localhost"], ANY, ANY, url)
            with (data / "proxy.toml").open("a") as file:
                file.write(f"{BALANCER}\nupstream_parallel = {plan.cap}\nupstream_timeout = {plan.timeout}\n")
            keeps.append(Keep(data, plan.program))
            keeps[-1].start()
            stack.callback(keeps[-1].kill)
        gate = Proxy(keeps[0].data, 0, keeps[0].admin_port)
        gate.use_scep(ca.scep, "--fingerprint", ca.root_fingerprint())
        gate.profile("fleet", fleet.PROFILE, directory=fleet.DIRECTORY)
        made = fleet.make(gate.data, place / "fleet", plan.devices)
        for keep in keeps:
            keep.await_ready()
        front = stack.enter_context(
            haproxy(place / "front", [(each.port, each.admin_port) for each in keeps])
        )
        yield Besieged(plan, ca, keeps, front, made, killed=[0, 0, 0]), name


@contextlib.contextmanager
def besieged(place: Path, cluster: Cluster, plan: Plan) -> Iterator[Besieged]:
    """Yields what came of it; all of it still runs."""
    with _town(place, cluster, plan) as (seen, name):
        gate = seen.front.before(Proxy(seen.keeps[0].data, 0, seen.keeps[0].admin_port))

        def rage(result: Result) -> None:
            _rage(seen, cluster, result)

        seen.result = play(
            seen.fleet, gate, "siege", count=plan.devices, players=plan.players, seconds=plan.seconds,
            pids=[os.getpid()], meanwhile=rage, patience=plan.patience, longest=plan.longest,
            again=plan.again,
        )  # fmt: skip
        query = "SELECT actor, detail FROM audit WHERE action = 'issue'"
        seen.audit = [(row[0], row[1]) for row in cluster.sql(query, name)]
        yield seen


def siege(place: Path, size: Size) -> list[Row]:
    """The scenario of `python -m tests.load`."""
    plan = Plan(
        size.siege, cap=8, delay="100ms", timeout=10, every=5.0, restart=20.0, patience=60.0, longest=30.0,
        again=5.0, seconds=1_200.0, players=2,
    )  # fmt: skip
    with cluster() as postgres, besieged(place, postgres, plan) as seen:
        print(json.dumps(seen.figures()), file=sys.stderr, flush=True)
        wrong = ""
        try:
            judge(seen)
        except AssertionError as err:
            wrong = str(err)
        figures = seen.figures()
    return [
        Row("siege", wrong or "all holds", float(bool(wrong)), bound=0),
        Row(
            "siege",
            "devices with a certificate",
            figures["with a certificate"],
            bound=plan.devices,
            most=False,
        ),
        Row("siege", "issued by the CA", figures["issued by the CA"], bound=plan.devices),
        Row("siege", "most at once at the CA", figures["at once at the CA"], bound=plan.cap),
        Row("siege", "proxies killed", sum(seen.killed)),
        Row("siege", "seconds in all", figures["seconds"]),
        Row("siege", "longest answer, s", figures["longest answer, s"], bound=plan.patience),
    ]


def _rage(seen: Besieged, cluster: Cluster, result: Result) -> None:
    """Until every device has its certificate, or the time is over."""
    plan, start, turn = seen.plan, time.monotonic(), 0
    while len(_done(result)) < plan.devices and time.monotonic() < start + plan.seconds:
        elapsed = time.monotonic() - start
        if not seen.restarted and elapsed >= plan.restart:
            cluster.stop()
            time.sleep(1)
            cluster.start()
            seen.restarted = time.monotonic() - start - elapsed
        if elapsed >= plan.every * (turn + 1) and turn < plan.kills:
            keep = seen.keeps[turn % 3]
            keep.kill()
            seen.killed[turn % 3] += 1
            keep.start()
            turn += 1
        time.sleep(0.05)


def _done(result: Result) -> set[str]:
    """Devices that have a certificate."""
    return {row["unit"] for row in list(result.rows) if row.get("status") == 200}
