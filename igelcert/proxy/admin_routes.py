"""Health and figures, for monitoring. Nothing here names a device or holds a secret."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from ..codec.http import plain_line
from ..errors import Error, RemoteProtocolError
from . import cahealth, certificates, rollover
from .context import Context
from .database import now
from .figures import REGISTRY
from .schema import devices, enrollments
from .upstream.config import current_version
from .waiting import KEY, Room, Visit

__all__ = ["PATHS", "figures", "make"]

log = logging.getLogger("igelcert.proxy")

PATHS = ("/healthz", "/readyz", "/metrics")


def make(context: Context) -> Blueprint:
    routes = Blueprint("admin", __name__)
    said = ""  # why it was not ready when somebody last asked

    @routes.get("/healthz")
    def healthz() -> Response:
        return Response("alive\n", content_type="text/plain; charset=utf-8")

    @routes.get("/readyz")
    def readyz() -> Response:
        nonlocal said
        why = _not_ready(context)
        if why != said:
            if why:
                log.warning("not ready: %s", plain_line(why, 1000))
            else:
                log.info("ready again")
            said = why
        if why:
            raise RemoteProtocolError(f"not ready: {why}", status_hint=503)
        return Response("ready\n", content_type="text/plain; charset=utf-8")

    @routes.get("/metrics")
    def metrics() -> Response:
        visit: Visit | None = request.environ.get(KEY)
        text = figures(context, visit.room if visit else None)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return routes


def _not_ready(context: Context) -> str:
    """Ready means: the database answers and can be written, a CA is configured, and this proxy stays. The CA itself is
    not asked."""
    visit: Visit | None = request.environ.get(KEY)
    if visit is not None and visit.room.closed:
        return "this proxy is about to end"
    try:
        configured = current_version(context)
        context.db.check_writable()
    except Error as err:
        return str(err)
    return "" if configured else "no CA is configured"


def figures(context: Context, room: Room | None = None) -> bytes:
    """In the text format of Prometheus: what the database knows, and what this process has counted."""
    return generate_latest(_figures(context, room)) + generate_latest(REGISTRY)


def _figures(context: Context, room: Room | None) -> CollectorRegistry:
    """What the database knows, read anew: it is the same for every proxy on it. room: where devices wait here."""
    registry = CollectorRegistry()
    known = Gauge("igelcert_devices", "Devices by state", ["state"], registry=registry)
    asked = Gauge("igelcert_enrollments", "Enrollments on record by state", ["state"], registry=registry)
    pending = Gauge(
        "igelcert_devices_pending", "Devices whose request the CA has not decided", registry=registry
    )
    ages = Gauge(
        "igelcert_certificates",
        "Certificates that devices have, by days to their expiry (from-below)",
        ["days"],
        registry=registry,
    )
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
        undecided = sa.select(sa.func.count(enrollments.c.unit_id.distinct())).where(
            enrollments.c.state == "pending"
        )
        pending.set(connection.execute(undecided).scalar_one())
        for days, count in certificates.by_age(connection, now()).items():
            ages.labels(days).set(count)
    ends = Gauge(
        "igelcert_management_ca_not_after_timestamp_seconds",
        "When the proxy's own CA that issues ends",
        registry=registry,
    )
    ends.set(rollover.standing(context).ends)
    _ca_figures(context, registry)
    return registry


def _ca_figures(context: Context, registry: CollectorRegistry) -> None:
    """Nothing is asked of the CA for this: what the last request of a device, or the last test, showed."""
    version = current_version(context)
    configured = Gauge("igelcert_ca_configured", "1 when a CA is configured", registry=registry)
    configured.set(1 if version else 0)
    health = cahealth.last(context, version)
    if health is not None:
        up = Gauge(
            "igelcert_ca_up",
            "1 when the last exchange with the CA got an answer; absent before the first",
            registry=registry,
        )
        up.set(1 if health.up else 0)
        at = Gauge(
            "igelcert_ca_last_exchange_timestamp_seconds",
            "When that was, to about ten seconds",
            registry=registry,
        )
        at.set(health.at)
