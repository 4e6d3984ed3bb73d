"""Health and figures, for monitoring. Nothing here names a device or holds a secret."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from ..errors import Error, RemoteProtocolError
from .context import Context
from .schema import devices, enrollments
from .upstream.config import current_version
from .waiting import KEY, Room, Visit

__all__ = ["make"]


def make(context: Context) -> Blueprint:
    routes = Blueprint("admin", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        return Response("alive\n", content_type="text/plain; charset=utf-8")

    @routes.get("/readyz")
    def readyz() -> Response:
        """Ready means: the database answers and a CA is configured. The CA itself is not asked."""
        try:
            configured = current_version(context)
        except Error as err:
            raise RemoteProtocolError(f"not ready: {err}", status_hint=503) from None
        if not configured:
            raise RemoteProtocolError("not ready: no CA is configured", status_hint=503)
        return Response("ready\n", content_type="text/plain; charset=utf-8")

    @routes.get("/metrics")
    def metrics() -> Response:
        visit: Visit | None = request.environ.get(KEY)
        figures = _figures(context, visit.room if visit else None)
        return Response(generate_latest(figures), content_type=CONTENT_TYPE_LATEST)

    return routes


def _figures(context: Context, room: Room | None) -> CollectorRegistry:
    registry = CollectorRegistry()
    known = Gauge("igelcert_devices", "Devices by state", ["state"], registry=registry)
    asked = Gauge("igelcert_enrollments", "Enrollments on record by state", ["state"], registry=registry)
    if room is not None:
        waiting = Gauge("igelcert_waiting_devices", "Devices that wait for a change", registry=registry)
        waiting.set(room.taken)
        places = Gauge("igelcert_waiting_devices_max", "Devices that may wait at once", registry=registry)
        places.set(room.places)
        woken = Counter("igelcert_waiting_devices_woken", "Devices woken by a change", registry=registry)
        woken.inc(room.woken)
    with context.db.read() as connection:
        for gauge, table in ((known, devices), (asked, enrollments)):
            rows = connection.execute(sa.select(table.c.state, sa.func.count()).group_by(table.c.state))
            for state, count in rows:
                gauge.labels(state).set(count)
    return registry
