"""A fleet's renewals over years, in simulated time: `python -m tests.load.simulate --help`.

Each device is simulated by itself, with the rules that it has: when it renews, and tries again, is
`igelcert.device.schedule`; which window it is given `igelcert.proxy.windows`. The CA issues so many certificates an hour, first come,
first served, as the turns at the proxy's door to it amount to (tests/property/test_storm.py shows those); while it is out of order,
it issues none. SimPy has the time; devices whose turn is in the same tick are handled one after the other in it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simpy

from igelcert.device import schedule
from igelcert.proxy import windows
from igelcert.proxy.admin import charts
from igelcert.renewal import renew_at
from igelcert.settings import EnrollmentSettings

__all__ = ["MODES", "Plan", "Result", "simulate"]

DAY = 86_400
HOUR = 3_600
EPOCH = 1_798_761_600  # 2027-01-01
MODES = {
    "own": "each device by its own rule, which spreads over a tenth of the time left",
    "random": "a window drawn from 50 to 80 % of the life, by the device alone",
    "windows": "windows of the proxy",
}
# what `scripts/bench load` measured on two busy processors, in docs/performance.md
RELAY_MS = 7.3


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
    """Renewals by tick: first tries (asked) and certificates (issued). failed: tries while the CA was out of order; expired:
    certificates whose renewal came too late."""

    plan: Plan
    asked: Counter[int] = field(default_factory=Counter)
    issued: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    expired: int = 0
    waited: int = 0  # the longest, in seconds, from the first try to the certificate

    @property
    def renewals(self) -> int:
        return sum(self.issued.values())

    @property
    def finished(self) -> int:
        """Seconds from the start to the end of the last tick in which a renewal was done."""
        return (max(self.issued, default=0) + 1) * self.plan.tick

    def mean(self, interval: int) -> float:
        """Renewals in an interval of so many seconds, over the whole time."""
        return self.renewals * interval / self.plan.seconds

    def peak(self, interval: int, what: str = "issued") -> int:
        """The most in one of them."""
        return max(self.by(interval, what).values(), default=0)

    def by(self, interval: int, what: str = "issued") -> dict[int, int]:
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
            self.result.asked[step] += 1
            self.first_try[number] = now
        if not down:
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
        self._issue(number, now)

    def _issue(self, number: int, now: int) -> None:
        self.failures[number] = 0
        begin, end = now - self.plan.dated_back, now + self.plan.life
        self.end[number] = end
        if self.plan.mode == "random":
            moment = begin + int((end - begin) * (0.5 + 0.3 * self.random.random()))
        else:
            self.window[number] = self._window(now, begin, end)
            moment = self._moment(number, now, begin, end)
        self._put(number, max(moment, now + self.plan.tick))

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
    """Six hours every two months, and once two days."""
    short = [(at, at + 6 * HOUR) for at in range(45 * DAY, seconds, 61 * DAY)]
    return (*short, (200 * DAY, 202 * DAY))


def row(result: Result, relay_ms: float) -> dict[str, Any]:
    """The figures of a run, for a table or a program."""
    peak = result.peak(HOUR)
    return {
        "mode": result.plan.mode,
        "outages": bool(result.plan.outages),
        "renewals": result.renewals,
        "mean_hour": round(result.mean(HOUR)),
        "asked_peak_hour": result.peak(HOUR, "asked"),
        "peak_hour": peak,
        "peak_hour_to_mean": round(peak / result.mean(HOUR), 2),
        "peak_day_to_mean": round(result.peak(DAY) / result.mean(DAY), 2),
        "asked_peak_hour_to_mean": round(result.peak(HOUR, "asked") / result.mean(HOUR), 2),
        "failed": result.failed,
        "expired": result.expired,
        "longest_wait_hours": round(result.waited / HOUR, 1),
        "proxy_processors_at_peak": round(peak * relay_ms / HOUR / 1000, 3),
    }


STYLE = (
    "<style>text{font:12px sans-serif;fill:#444}.grid{stroke:#ccc}.end{text-anchor:end}.part-renewals{fill:#1f6fb2}"
    "rect.paper{fill:#fff}</style>"
)


def chart(results: list[Result]) -> str:
    """One below the other: for each week, the most renewals that were asked for in one hour of it."""
    drawn = []
    for index, result in enumerate(results):
        hours = result.by(HOUR, "asked")
        weeks: list[charts.Bar] = []
        for week in range(result.plan.seconds // (7 * DAY)):
            first = max(1, week * 168)
            most = max((hours.get(hour, 0) for hour in range(first, (week + 1) * 168)), default=0)
            weeks.append((EPOCH + week * 7 * DAY, [("renewals", most)]))
        title = f"{MODES[result.plan.mode]}: the busiest hour of each week"
        bars = charts.bars(title, weeks, 26).replace(
            "<svg ", f'<svg y="{index * 230 + 24}" width="720" height="200" ', 1
        )
        drawn.append(f'<text x="40" y="{index * 230 + 20}">{title}</text>{bars}')
    height = 230 * len(results) + 10
    paper = f'<rect class="paper" width="720" height="{height}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" role="img"'
        f' aria-label="Renewals over two years">{STYLE}{paper}{"".join(drawn)}</svg>\n'
    )


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


def main() -> None:
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
    parser.add_argument("--chart", type=Path, help="an SVG to write")
    parser.add_argument("--json", type=Path, help="the figures to write")
    args = parser.parse_args()
    rate = args.rate or max(1, args.devices * 36 // 10_000)
    shown: list[Result] = []
    rows = []
    for failing in {"with": (True,), "without": (False,), "both": (False, True)}[args.outages]:
        for mode in args.modes:
            began = time.monotonic()
            seconds = args.days * DAY
            plan = Plan(args.devices, args.life * DAY, seconds=seconds, rate=rate, mode=mode,
                        outages=outages(seconds) if failing else ())  # fmt: skip
            result = simulate(plan)
            rows.append({**row(result, relay_cost(args.bench)), "took_s": round(time.monotonic() - began)})
            print(json.dumps(rows[-1]), flush=True)
            if failing or args.outages == "without":
                shown.append(result)
    if args.chart:
        args.chart.write_text(chart(shown))
    if args.json:
        args.json.write_text(
            json.dumps({"devices": args.devices, "rate": rate, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
