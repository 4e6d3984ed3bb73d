"""The pages Enrollments and Audit."""

from __future__ import annotations

import time
from calendar import timegm
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for

from ... import audit, certificates, enrollment_log
from ...context import Context
from ...database import now
from .. import charts
from ..forms import Problems
from .base import DAY, PAGE_SIZE, Answer, number, offset_links, show

__all__ = ["add"]

WEEKS, DAYS = 26, 30
RESULTS = ("issued", "pending", "refused", "failed")


def add(routes: Blueprint, context: Context) -> None:
    @routes.get("/enrollments")
    @show(context)
    def enrollments_page() -> Answer:
        filters, offset, problems = _filters(), number("offset"), Problems()
        query = _query(filters, problems)
        found = enrollment_log.search(context, **query, limit=PAGE_SIZE, offset=offset)
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
            problems=problems,
            states=enrollment_log.STATES,
            expiries=charts.bars("Certificates that expire, by week", weeks, 4),
            results=charts.bars("Requests by result, by day", days, 5),
            ages=ages,
            parts=RESULTS,
        )

    @routes.get("/enrollments/export.csv")
    @show(context)
    def enrollments_export() -> Answer:
        problems = Problems()
        filters: dict[str, Any] = _filters()
        query = _query(filters, problems)
        if problems:  # a sheet of everything would pass for what was asked for
            return make_response(redirect(url_for("pages.enrollments_page", **filters)))
        rows = enrollment_log.search(context, **query, limit=0).items
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


def _query(filters: dict[str, str], problems: Problems) -> dict[str, Any]:
    """What is searched for; a filter that means nothing is left out, and said."""
    state = filters["state"]
    if state and state not in enrollment_log.STATES:
        problems.fields["state"] = f"There is no state {state[:40]!r}: all are shown."
        state = ""
    until = _date(filters, "until", problems)
    return {
        "text": filters["search"],
        "unit_id": filters["unit_id"],
        "state": state,
        "since": _date(filters, "since", problems),
        "until": until + DAY if until else 0,
    }


def _date(filters: dict[str, str], name: str, problems: Problems) -> int:
    """The begin of a day, UTC; 0 for what is no date."""
    if not filters[name]:
        return 0
    try:
        return max(0, timegm(time.strptime(filters[name], "%Y-%m-%d")))
    except (ValueError, OverflowError):
        problems.fields[name] = "This is no date such as 2026-01-31: it does not count."
        return 0
