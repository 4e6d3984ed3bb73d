"""When certificates end, and which devices need a hand: from what they reported last."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .context import Context
from .database import now
from .schema import devices

__all__ = ["Overview", "Reported", "collect", "reports_trouble"]

DAY = 86_400
_TERMS = (("under_7_days", 7), ("under_30_days", 30), ("under_90_days", 90))
COUNTS = ("expired", *(name for name, _ in _TERMS), "later", "missing")
TROUBLE = {"expired", "damaged"}  # states that need a hand even where no error is named


@dataclass(frozen=True, slots=True)
class Reported:
    """A certificate as its device reported it; times in seconds since 1970. state: one that was good when it was
    reported and has ended since is "expired". hooks: what failed, "" for nothing."""

    unit_id: str
    friendly_name: str
    state: str
    not_after: int | None
    renew_at: int | None
    error: str
    hooks: str
    last_seen: int | None

    def term(self, moment: int) -> str:
        """Which of COUNTS it is in."""
        if self.not_after is None or self.state == "missing":
            return "missing"
        left = self.not_after - moment
        if left <= 0:
            return "expired"
        return next((name for name, days in _TERMS if left < days * DAY), "later")


@dataclass(frozen=True, slots=True)
class Overview:
    """counts: certificates by COUNTS, each in one. trouble: those with an error, a failed hook, damaged or expired;
    the most urgent first."""

    counts: dict[str, int]
    trouble: tuple[Reported, ...]


def collect(context: Context, *, unit_id: str = "") -> Overview:
    """Of all devices, or of one."""
    query = sa.select(devices.c.unit_id, devices.c.report, devices.c.last_seen)
    if unit_id:
        query = query.where(devices.c.unit_id == unit_id)
    moment = now()
    counts, trouble = dict.fromkeys(COUNTS, 0), []
    with context.db.read() as connection:
        for row in connection.execute(query):
            for cert in _certs(row, moment):
                counts[cert.term(moment)] += 1
                if cert.error or cert.hooks or cert.state in TROUBLE:
                    trouble.append(cert)
    trouble.sort(key=lambda each: (each.not_after or 0, each.unit_id, each.friendly_name))
    return Overview(counts, tuple(trouble))


def reports_trouble() -> sa.ColumnElement[bool]:
    """Of a row of devices: does its last report name an error, a hook that failed, or what needs a hand?

    The report is JSON as we wrote it: a quote within a value has a backslash before it, so these are keys.
    """
    said: sa.ColumnElement[str] = devices.c.report
    for key in ("error", "hooks"):
        said = sa.func.replace(said, f'"{key}": ""', "")
    named = [said.contains(f'"{key}": "', autoescape=True) for key in ("error", "hooks")]
    states = [devices.c.report.contains(f'"state": "{state}"', autoescape=True) for state in sorted(TROUBLE)]
    return sa.or_(*named, *states)


def _certs(row: Any, moment: int) -> Iterable[Reported]:
    for entry in json.loads(row.report).get("certs", []):
        state, end = entry["state"], entry["not_after"]
        if state in {"valid", "due"} and end is not None and end <= moment:
            state = "expired"
        yield Reported(
            row.unit_id,
            entry["friendly_name"],
            state,
            end,
            entry.get("renew_at"),  # reports of earlier versions have neither
            entry["error"],
            entry.get("hooks", ""),
            row.last_seen,
        )
