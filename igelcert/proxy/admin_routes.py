"""Health and figures, for monitoring. Nothing here names a device or holds a secret."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import sqlalchemy as sa
from flask import Blueprint, Response, request

from ..codec.http import plain_line
from ..errors import Error, RemoteProtocolError
from . import cahealth, certificates, rollover
from . import figures as counted
from .context import Context
from .database import now
from .schema import devices, enrollments
from .upstream.config import current_version
from .waiting import KEY, Room, Visit

if TYPE_CHECKING:
    from prometheus_client.core import Metric

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
        from prometheus_client import CONTENT_TYPE_LATEST

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
    """In the text format of Prometheus: what the database knows, and what the processes of this proxy have counted.
    room: where devices wait at this one."""
    from prometheus_client import generate_latest

    context.upstreams.gate.show()
    if room is not None:
        room.show()
    return generate_latest(_Known([*_of_database(context), *_of_ca(context)])) + counted.all_text()


class _Known:
    """Figures that are kept nowhere, as prometheus_client collects them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _gauge(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    made = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values:
        made.add_metric([key], value)
    return made


def _of_database(context: Context) -> Iterator[Metric]:
    """What is the same for every proxy on it, read anew."""

    def by_state(table: sa.Table) -> list[tuple[str, float]]:
        query = sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
        return [(state, count) for state, count in connection.execute(query)]

    with context.db.read() as connection:
        yield _by("igelcert_devices", "Devices by state", "state", by_state(devices))
        yield _by("igelcert_enrollments", "Enrollments on record by state", "state", by_state(enrollments))
        undecided = sa.select(sa.func.count(enrollments.c.unit_id.distinct())).where(
            enrollments.c.state == "pending"
        )
        yield _gauge(
            "igelcert_devices_pending",
            "Devices whose request the CA has not decided",
            connection.execute(undecided).scalar_one(),
        )
        yield _by(
            "igelcert_certificates",
            "Certificates that devices have, by days to their expiry (from-below)",
            "days",
            certificates.by_age(connection, now()).items(),
        )
    yield _gauge(
        "igelcert_management_ca_not_after_timestamp_seconds",
        "When the proxy's own CA that issues ends",
        rollover.standing(context).ends,
    )


def _of_ca(context: Context) -> Iterator[Metric]:
    """Nothing is asked of the CA for this: what the last request of a device, or the last test, showed."""
    version = current_version(context)
    yield _gauge("igelcert_ca_configured", "1 when a CA is configured", 1 if version else 0)
    health = cahealth.last(context, version)
    if health is not None:
        yield _gauge(
            "igelcert_ca_up",
            "1 when the last exchange with the CA got an answer; absent before the first",
            1 if health.up else 0,
        )
        yield _gauge(
            "igelcert_ca_last_exchange_timestamp_seconds",
            "When that was, to about ten seconds",
            health.at,
        )
