"""Renewals over the lives of short certificates, by real programs and by the simulation: do they agree?

Proxy and CA are processes, devices are players (tests/load/player.py) with the device's own rules; the simulation is
tests/load/simulate.py with the same figures. Once with windows of the proxy and once without.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .crew import Result
from .scenarios import Row, Size
from .simulate import Plan, simulate
from .stage import over_est

__all__ = ["Short", "agree", "played", "renewals", "simulated"]

AGREE = 0.2  # as part of the simulation's figure


@dataclass(frozen=True, slots=True)
class Short:
    """life: of a certificate; assigned_in: seconds in which all enroll; seconds: that are played; interval: of which the
    busiest one counts. rate: of the CA, certificates an hour. windows: whether the proxy knows it."""

    devices: int
    life: int
    assigned_in: int
    seconds: int
    interval: int
    windows: bool = True
    rate: int = 360_000

    @property
    def plan(self) -> Plan:
        return Plan(
            self.devices,
            self.life,
            assigned_in=self.assigned_in,
            seconds=self.seconds,
            rate=self.rate,
            mode="windows" if self.windows else "own",
            tick=1,
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """renewals: in all; once: seconds until every device had renewed; peak: renewals in the busiest interval."""

    renewals: int
    once: float
    peak: int


def simulated(short: Short) -> Figures:
    result = simulate(short.plan)
    return Figures(result.renewals, result.once, result.peak(short.interval))


def played(place: Path, short: Short) -> Figures:
    place.mkdir(parents=True)
    rate = f"{short.rate}/h" if short.windows else ""
    with over_est(place / "stage", short.devices, rate=rate, life=short.life) as stage:
        found = stage.play(
            "renewals", short.devices, seconds=float(short.seconds), assigned_in=short.assigned_in
        )
    assert not found.errors, found.errors[:3]
    return _figures(found, short)


def _figures(result: Result, short: Short) -> Figures:
    seen: Counter[str] = Counter()
    busy: Counter[int] = Counter()
    once = 0.0
    for row in result.status(200):
        assert row["right"], row
        seen[row["unit"]] += 1
        at = row["at"] + row["answer"] - result.start
        if seen[row["unit"]] > 1:
            busy[int(at) // short.interval] += 1
        if seen[row["unit"]] == 2:
            once = at
    assert len(seen) == short.devices and min(seen.values()) > 1, "not every device renewed"
    return Figures(busy.total(), once, max(busy.values()))


def agree(real: Figures, model: Figures, part: float = AGREE) -> bool:
    pairs = ((real.renewals, model.renewals), (real.once, model.once), (real.peak, model.peak))
    return all(abs(ours - theirs) <= part * theirs for ours, theirs in pairs)


def renewals(place: Path, size: Size) -> list[Row]:
    """All renew in their windows, and by their own rules."""
    rows = []
    for windows in (True, False):
        short = Short(size.renewals, *size.lives, windows=windows)
        real, model = played(place / f"windows-{windows}", short), simulated(short)
        name = f"renewals of {short.devices}, {'in windows' if windows else 'by their own rule'}"
        figures = (
            ("renewals", real.renewals, model.renewals),
            ("until each had renewed once, s", real.once, model.once),
            (f"in the busiest {short.interval} s", real.peak, model.peak),
        )
        for what, ours, theirs in figures:
            rows.append(Row(name, what, ours, None, "the simulation", theirs, 1 + AGREE, of_ratio=True))
            least = Row(
                name, what, ours, None, "the simulation", theirs, 1 - AGREE, most=False, of_ratio=True
            )
            if not least.met:
                rows[-1] = least
    return rows
