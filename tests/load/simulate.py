"""A fleet's renewals over years, in simulated time: `python -m tests.load.simulate --help`.

Each device is simulated by itself, with the rules that it has: when it renews, and tries again, is
`igelcert.device.schedule`; which window it is given, `igelcert.proxy.windows`. The CA issues so many certificates an
hour, first come, first served, as the turns at the proxy's door to it amount to (tests/property/test_storm.py shows
those); while it is out of order, it issues none. SimPy has the time; devices whose turn is in the same tick are handled
one after the other in it. That real programs do the same is shown by tests/load/renewals.py.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simpy

from igelcert.device import schedule
from igelcert.proxy import windows
from igelcert.renewal import renew_at
from igelcert.settings import EnrollmentSettings

from .drawing import chart

__all__ = ["MODES", "Plan", "Result", "simulate"]

DAY = 86_400
HOUR = 3_600
EPOCH = 1_798_761_600  # 2027-01-01
MODES = {
    "own": "each device by its own rule",
    "windows": "windows of the proxy",
}
# what `scripts/bench load` measured, in docs/performance.md
RELAY_MS = 6.6

LIMIT = 1.5  # times the mean that renewals in windows may be in the busiest hour,
HOURLY = 500_000  # of so many devices; in the busiest day of fewer, where an hour is chance


@dataclass(frozen=True, slots=True)
class Plan:
    """assigned_in: seconds in which all enroll for the first time, whatever the CA's rate. rate: of the CA, certificates an
    hour. outages: (begin, end), seconds from the start. tick: seconds. percent: of the life that is left when the own rule
    has a certificate due. dated_back: seconds by which the CA dates certificates back."""

    devices: int = 1_000_000
    life: int = 90 * DAY
    percent: int = 20
    assigned_in: int = HOUR
    seconds: int = 730 * DAY
    rate: int = 3_600
    outages: tuple[tuple[int, int], ...] = ()
    mode: str = "windows"
    tick: int = 60
    dated_back: int = 0
    seed: int = 1


@dataclass(slots=True)
class Result:
    """Renewals by tick: requests that came to the CA (came) and certificates (issued). failed: tries while the CA was out of
    order; expired:
    certificates whose renewal came too late."""

    plan: Plan
    came: Counter[int] = field(default_factory=Counter)
    issued: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    expired: int = 0
    waited: int = 0  # the longest, in seconds, from the first try to the certificate
    once: int = 0  # seconds from the start until every device had renewed; 0: not yet

    @property
    def renewals(self) -> int:
        return sum(self.issued.values())

    def mean(self, interval: int) -> float:
        """Renewals in an interval of so many seconds, over the whole time."""
        return self.renewals * interval / self.plan.seconds

    def peak(self, interval: int, what: str = "came") -> int:
        """The most in one of them, whatever the CA can do."""
        return max(self.by(interval, what).values(), default=0)

    def by(self, interval: int, what: str = "came") -> dict[int, int]:
        found: Counter[int] = Counter()
        for tick, count in getattr(self, what).items():
            found[tick * self.plan.tick // interval] += count
        return found


class _World:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.env = simpy.Environment()
        self.result = Result(plan)
        self.random = random.Random(plan.seed)
        self.rule = EnrollmentSettings(renewal_period=plan.percent)
        self.place = [schedule.place_of(f"{number:012X}/lan") for number in range(plan.devices)]
        self.end = [0] * plan.devices  # not_after; 0: not enrolled yet
        self.window: list[windows.Window | None] = [None] * plan.devices
        self.failures = bytearray(plan.devices)
        self.first_try = [0] * plan.devices
        self.calendar: dict[int, list[int]] = {}
        self.queue: deque[int] = deque()
        self.booked: dict[int, int] = {}
        self.gone = 0  # buckets up to it are over
        self.bare = bytearray(b"\1") * plan.devices  # has not renewed yet
        self.left = plan.devices

    def run(self) -> Result:
        plan = self.plan
        for number in range(plan.devices):
            self._put(number, EPOCH + int(plan.assigned_in * number / plan.devices))
        self.env.process(self._ticks())
        self.env.run(until=plan.seconds + 1)
        return self.result

    def _put(self, number: int, moment: int) -> None:
        self.calendar.setdefault(-(-(moment - EPOCH) // self.plan.tick), []).append(number)

    def _ticks(self) -> Iterator[simpy.Event]:
        plan = self.plan
        out = {step for begin, end in plan.outages for step in range(begin // plan.tick, end // plan.tick)}
        room = 0.0
        for step in range(plan.seconds // plan.tick):
            now = EPOCH + step * plan.tick
            down = step in out
            for number in self.calendar.pop(step, ()):
                if self.end[number]:
                    self._try(number, now, step, down)
                else:
                    self._issue(number, now)
            room = min(room, 1.0) + plan.rate * plan.tick / HOUR
            while self.queue and room >= 1 and not down:
                self._renewed(self.queue.popleft(), now, step)
                room -= 1
            yield self.env.timeout(plan.tick)

    def _try(self, number: int, now: int, step: int, down: bool) -> None:
        if not self.failures[number]:
            self.first_try[number] = now
        if not down:
            self.result.came[step] += 1
            self.queue.append(number)
            return
        self.result.failed += 1
        self.failures[number] = min(255, self.failures[number] + 1)
        end = self.end[number]
        begin = end - self.plan.life - self.plan.dated_back
        again = schedule.retry_at(self.failures[number], now, begin, end, self.random.random())
        window = self.window[number]
        if window is not None:  # its report is answered by another one
            if window[0] <= now:
                self.window[number] = self._window(now, begin, end) or window
            again = schedule.put_off(again, self._moment(number, now, begin, end), now, begin, end)
        self._put(number, max(again, now + self.plan.tick))

    def _renewed(self, number: int, now: int, step: int) -> None:
        result = self.result
        result.issued[step] += 1
        result.expired += now >= self.end[number]
        result.waited = max(result.waited, now - self.first_try[number])
        self.left -= self.bare[number]
        self.bare[number] = 0
        if not self.left and not result.once:
            result.once = now - EPOCH
        self._issue(number, now)

    def _issue(self, number: int, now: int) -> None:
        self.failures[number] = 0
        begin, end = now - self.plan.dated_back, now + self.plan.life
        self.end[number] = end
        self.window[number] = self._window(now, begin, end)
        self._put(number, max(self._moment(number, now, begin, end), now + self.plan.tick))

    def _moment(self, number: int, now: int, begin: int, end: int) -> int:
        """When the device renews, by what it knows."""
        due = renew_at(begin, end, self.rule)
        moment = schedule.planned(due, begin, (begin, end), self.place[number], self.window[number])
        assert moment is not None
        return moment

    def _window(self, now: int, begin: int, end: int) -> windows.Window | None:
        span = windows.span_of(now, begin, end, self.rule) if self.plan.mode == "windows" else None
        if span is None:
            return None
        if self.gone < span.now:
            self.gone = span.now
            for over in [bucket for bucket in self.booked if bucket <= span.now]:
                del self.booked[over]
        chosen = windows.choose(span, self.booked, self.plan.rate, self.random.random())
        self.booked[chosen] = self.booked.get(chosen, 0) + 1
        return chosen * span.width, (chosen + 1) * span.width


def simulate(plan: Plan) -> Result:
    return _World(plan).run()


# ---- showing it ---------------------------------------------------------------------------------


def outages(seconds: int) -> tuple[tuple[int, int], ...]:
    """Six hours every two months, and once a day."""
    short = [(at, at + 6 * HOUR) for at in range(45 * DAY, seconds, 61 * DAY)]
    return (*short, (200 * DAY, 201 * DAY))


def row(result: Result, relay_ms: float) -> dict[str, Any]:
    """The figures of a run, for a table or a program."""
    mean, peak = result.mean(HOUR), result.peak(HOUR)
    judged = peak / mean if result.plan.devices >= HOURLY else result.peak(DAY) / result.mean(DAY)
    return {
        "met": judged <= LIMIT if result.plan.mode == "windows" else None,
        "mode": result.plan.mode,
        "outages": bool(result.plan.outages),
        "renewals": result.renewals,
        "mean_hour": round(mean),
        "peak_hour": peak,
        "peak_hour_to_mean": round(peak / mean, 2),
        "peak_day_to_mean": round(result.peak(DAY) / result.mean(DAY), 2),
        "issued_peak_hour": result.peak(HOUR, "issued"),
        "failed": result.failed,
        "expired": result.expired,
        "longest_wait_hours": round(result.waited / HOUR, 1),
        "proxy_processors_at_peak": round(peak * relay_ms / HOUR / 1000, 3),
    }


def relay_cost(bench: Path | None) -> float:
    """Milliseconds of the proxy's processor for a renewal, of the rows that `scripts/bench load` wrote."""
    if bench is None:
        return RELAY_MS
    rows = json.loads(bench.read_text())["load"]
    found = [
        each["ours"]
        for each in rows
        if each["scenario"].startswith("EST, fresh") and "processor" in each["what"]
    ]
    if not found:
        raise SystemExit(f"{bench} has no row of EST, fresh: run scripts/bench load")
    return float(found[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.simulate", description=__doc__)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=730)
    parser.add_argument("--life", type=int, default=90, help="days")
    parser.add_argument(
        "--rate", type=int, default=0, help="of the CA, certificates an hour (default: 3.6 per 1000 devices)"
    )
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--outages", choices=("with", "without", "both"), default="both")
    parser.add_argument(
        "--bench", type=Path, help="artefacts/bench-load.json, for what a renewal costs the proxy"
    )
    parser.add_argument("--chart", type=Path, help="an SVG to write: with outages, where both are run")
    parser.add_argument("--json", type=Path, help="the figures to write")
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at a time; each takes half a gigabyte for a million"
    )
    args = parser.parse_args()
    rate, seconds = args.rate or max(1, args.devices * 36 // 10_000), args.days * DAY
    plans = [
        Plan(args.devices, args.life * DAY, seconds=seconds, rate=rate, mode=mode, outages=out)
        for out in {"with": (outages(seconds),), "without": ((),), "both": ((), outages(seconds))}[
            args.outages
        ]
        for mode in args.modes
    ]
    relay_ms, found, rows = relay_cost(args.bench), [], []
    with ProcessPoolExecutor(args.jobs) as pool:
        for result in pool.map(simulate, plans):
            found.append(result)
            rows.append(row(result, relay_ms))
            print(json.dumps(rows[-1]), flush=True)
    if args.chart:
        args.chart.write_text(
            chart([(MODES[each.plan.mode], each.by(HOUR)) for each in found[-len(args.modes) :]])
        )
    if args.json:
        about = {"devices": args.devices, "life_days": args.life, "rate_hour": rate, "relay_ms": relay_ms}
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0 if all(each["met"] is not False for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
