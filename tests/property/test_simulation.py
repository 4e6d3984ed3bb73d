"""The simulation in small: what windows are worth, over two years with outages of the CA (tests/load/simulate.py)."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tests.load.drawing import chart
from tests.load.simulate import DAY, HOUR, Plan, Result, outages, simulate

DEVICES = 2_500


def run(mode: str) -> Result:
    seconds = 730 * DAY
    rate = DEVICES * 36 // 10_000
    return simulate(Plan(DEVICES, seconds=seconds, rate=rate, mode=mode, outages=outages(seconds), tick=300))


def test_with_windows_the_load_is_flat_and_without_it_is_not() -> None:
    """All assigned in one hour. In so small a fleet three devices an hour are chance: a day is what is looked at."""
    flat, herd = run("windows"), run("own")
    assert flat.peak(DAY) <= 1.5 * flat.mean(DAY)
    assert herd.peak(DAY) >= 20 * herd.mean(DAY)
    assert flat.peak(HOUR) * 5 < herd.peak(HOUR)
    assert flat.expired == herd.expired == 0
    assert flat.failed > 0 and herd.failed > 0, "there were outages"
    assert flat.renewals <= 1.15 * herd.renewals, "windows cost few more certificates"
    drawn = ET.fromstring(chart([("windows", flat.by(HOUR)), ("own", herd.by(HOUR))]))
    assert len(drawn.findall(".//{*}rect[@class='bar']")) >= 2 * 100
