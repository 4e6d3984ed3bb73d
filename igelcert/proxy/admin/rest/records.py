"""What happened: figures, enrollments, the audit log."""

from __future__ import annotations

from typing import Any

from flask import Response

from ... import audit, certificates, enrollment_log, inventory, paging
from ...database import now
from ..schemas import Schema
from .operations import JSON, PAGED, WORD, Call, Operation, page

__all__ = ["OPERATIONS"]

MOMENT: Schema = {"type": "integer", "minimum": 0, "maximum": 1 << 40, "default": 0}
FOUND = {"search": WORD, "unit_id": WORD, "state": {"enum": ["", *enrollment_log.STATES], "default": ""}}
FOUND |= {"since": MOMENT, "until": MOMENT}


def _overview(call: Call) -> Any:
    context = call.context
    with context.db.read() as connection:
        ages = certificates.by_age(connection, now())
    return {
        "devices": inventory.counts(context),
        "certificates_by_days_to_expiry": ages,
        "expiries_by_week": [
            {"begin": begin, "count": count} for begin, count in certificates.by_week(context, 26)
        ],
        "results_by_day": [
            {"begin": begin, "results": results} for begin, results in enrollment_log.by_day(context, 30)
        ],
    }


def _enrollment_rows(call: Call, **bounds: int) -> paging.Page[Any]:
    query = call.query
    return enrollment_log.search(
        call.context,
        text=query["search"],
        unit_id=query["unit_id"],
        state=query["state"],
        since=query["since"],
        until=query["until"],
        **bounds,
    )


def _enrollments(call: Call) -> Any:
    found = _enrollment_rows(call, limit=call.query["limit"], offset=call.query["offset"])
    return page(found, enrollment_log.as_json)


def _enrollments_csv(call: Call) -> Any:
    rows = _enrollment_rows(call, limit=0).items
    return Response("".join(enrollment_log.sheet(rows)), content_type="text/csv; charset=utf-8")


def _audit(call: Call) -> Any:
    query = call.query
    found = audit.listing(
        call.context,
        search=query["search"],
        action=query["action"],
        limit=query["limit"],
        offset=query["offset"],
    )
    return page(found, lambda row: {key: getattr(row, key) for key in ("at", "actor", "action", "detail")})


OPERATIONS = (
    Operation("GET", "/overview", _overview, "Figures of the whole", (200, "Overview", JSON)),
    Operation(
        "GET",
        "/enrollments",
        _enrollments,
        "Requests and what came of them, the newest first",
        (200, "EnrollmentPage", JSON),
        query={**FOUND, **PAGED},
    ),
    Operation(
        "GET", "/enrollments.csv", _enrollments_csv, "The same as CSV", (200, None, "text/csv"), query=FOUND
    ),
    Operation(
        "GET",
        "/audit",
        _audit,
        "Who changed what, the newest first",
        (200, "AuditPage", JSON),
        query={"search": WORD, "action": {"enum": ["", *audit.ACTIONS], "default": ""}, **PAGED},
    ),
)
