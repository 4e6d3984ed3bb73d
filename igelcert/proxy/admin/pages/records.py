"""The pages Enrollments and Audit."""

from __future__ import annotations

import time
from calendar import timegm
from typing import Any

from flask import Blueprint, Response, render_template, request

from ... import audit, certificates, enrollment_log
from ...context import Context
from ...database import now
from .. import charts
from .base import DAY, PAGE_SIZE, Answer, number, offset_links, show

__all__ = ["add"]

WEEKS, DAYS = 26, 30
RESULTS = ("issued", "pending", "refused", "failed")


def add(routes: Blueprint, context: Context) -> None:
    @routes.get("/enrollments")
    @show(context)
    def enrollments_page() -> Answer:
        filters, offset = _filters(), number("offset")
        found = enrollment_log.search(context, **_query(filters), limit=PAGE_SIZE, offset=offset)
        weeks = [(begin, [("expiring", count)]) for begin, count in certificates.by_week(context, WEEKS)]
        days = [
            (begin, [(result, states.get(result, 0)) for result in RESULTS])
            for begin, states in enrollment_log.by_day(context, DAYS)
        ]
        with context.db.read() as connection:
            ages = certificates.by_age(connection, now())
        return render_template(
            "enrollments.html",
            found=found.items,
            pages=offset_links("enrollments_page", found.total, offset, **filters),
            filters=filters,
            states=enrollment_log.STATES,
            expiries=charts.bars("Certificates that expire, by week", weeks, 4),
            results=charts.bars("Requests by result, by day", days, 5),
            ages=ages,
            parts=RESULTS,
        )

    @routes.get("/enrollments/export.csv")
    @show(context)
    def enrollments_export() -> Answer:
        rows = enrollment_log.search(context, **_query(_filters()), limit=0).items
        response = Response("".join(enrollment_log.sheet(rows)), content_type="text/csv; charset=utf-8")
        response.headers["Content-Disposition"] = 'attachment; filename="enrollments.csv"'
        return response

    @routes.get("/audit")
    @show(context)
    def audit_page() -> Answer:
        text, action = request.args.get("search", "").strip()[:200], request.args.get("action", "")
        action = action if action in audit.ACTIONS else ""
        offset = number("offset")
        found = audit.listing(context, search=text, action=action, limit=PAGE_SIZE, offset=offset)
        return render_template(
            "audit.html",
            found=found.items,
            pages=offset_links("audit_page", found.total, offset, search=text, action=action),
            search=text,
            action=action,
            actions=audit.ACTIONS,
        )


def _filters() -> dict[str, str]:
    names = ("search", "unit_id", "state", "since", "until")
    return {name: request.args.get(name, "").strip()[:200] for name in names}


def _query(filters: dict[str, str]) -> dict[str, Any]:
    state = filters["state"] if filters["state"] in enrollment_log.STATES else ""
    until = _date(filters["until"])
    return {
        "text": filters["search"],
        "unit_id": filters["unit_id"],
        "state": state,
        "since": _date(filters["since"]),
        "until": until + DAY if until else 0,
    }


def _date(text: str) -> int:
    """The begin of a day, UTC; 0 for what is no date."""
    try:
        return max(0, timegm(time.strptime(text, "%Y-%m-%d")))
    except (ValueError, OverflowError):
        return 0
