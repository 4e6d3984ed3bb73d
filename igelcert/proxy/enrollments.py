"""The record of enrollments: who asked for what, what came of it. One row for each request of a device."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from .. import crypto
from ..codec import pkcs10
from ..errors import SettingsError
from . import certificates, figures, paging
from .context import Context
from .database import now
from .schema import devices, enrollments

__all__ = [
    "Ask",
    "Ticket",
    "Track",
    "as_json",
    "by_day",
    "claim",
    "defer",
    "finish",
    "issued",
    "latest",
    "listing",
    "owner_of",
    "refuse",
    "search",
    "sheet",
    "track",
    "under_way",
]

STATES = ("issued", "pending", "refused", "failed", "running")
COLUMNS = (
    "unit_id",
    "friendly_name",
    "operation",
    "state",
    "reason",
    "subject",
    "serial",
    "not_before",
    "not_after",
    "created",
    "updated",
)
DAY = 86_400
STALE_MARGIN = 60  # seconds beyond what a request can take, after which it is taken over: its proxy died
RENEWABLE = (
    3  # at /simplereenroll the same CSR gets a new certificate in the last third of the old one's life
)
KEPT_REFUSALS = 50  # of each device: whoever asks for nonsense does not fill the disk


# statements are made once: making one costs as much as running it
_ITS = sa.and_(
    enrollments.c.unit_id == sa.bindparam("unit"), enrollments.c.csr_sha256 == sa.bindparam("digest")
)
_ROW = sa.select(enrollments).where(_ITS)
_STATE = sa.select(enrollments.c.state).where(_ITS)
_INSERT = enrollments.insert()
_UPDATE = enrollments.update().where(_ITS)
_GIVEN_OUT = (
    sa.select(enrollments.c.id).where(enrollments.c.certificate_sha256 == sa.bindparam("digest")).limit(1)
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A device's request. operation: "simpleenroll" or "simplereenroll"."""

    unit_id: str
    friendly_name: str
    csr: pkcs10.CertificationRequest
    operation: str

    @property
    def key(self) -> dict[str, str]:
        """What names its row in statements."""
        return {"unit": self.unit_id, "digest": hashlib.sha256(self.csr.der).hexdigest()}

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "unit_id": self.unit_id,
            "csr_sha256": self.key["digest"],
            "subject": self.csr.subject_text,
            "warnings": "",
            "created": now(),
        }


class Ticket:
    """What an upstream keeps of a claimed request, in its row."""

    __slots__ = ("_ask", "_context", "renewal", "value")

    def __init__(self, context: Context, ask: Ask, value: str, renewal: bool) -> None:
        self._context = context
        self._ask = ask
        self.value = value
        self.renewal = renewal

    def keep(self, value: str) -> None:
        if value != self.value:
            with self._context.db.begin() as connection:
                connection.execute(_UPDATE, {**self._ask.key, "upstream_state": value})
            self.value = value


def claim(context: Context, ask: Ask, version: int) -> Ticket | Any:
    """A Ticket: the request is ours to carry to the CA. A row: it is answered, pending or under way."""
    fresh = {
        "friendly_name": ask.friendly_name,
        "operation": ask.operation,
        "state": "running",
        "config_version": version,
        "reason": "",
        "updated": now(),
    }
    stale = _stale(context)
    while True:
        try:
            with context.db.begin() as connection:
                row = connection.execute(_ROW, ask.key).one_or_none()
                if row is not None and _stands(row, ask.operation, version, stale):
                    return row
                if row is None:
                    connection.execute(_INSERT, {**ask.identity, **fresh})
                    return Ticket(context, ask, "", ask.operation == "simplereenroll")
                # an answer that is still to come is asked for where it was
                value = row.upstream_state if _open(row, version) else ""
                connection.execute(_UPDATE, {**ask.key, "upstream_state": value, **fresh})
                return Ticket(context, ask, value, ask.operation == "simplereenroll")
        except IntegrityError:
            continue  # somebody else inserted it meanwhile: look again


def defer(context: Context, ask: Ask, version: int, reason: str, seconds: int) -> Any | None:
    """Records that a request has its turn at the CA in so many seconds. A row: it is answered, pending or under way
    already, and nothing changes."""
    values = {
        "friendly_name": ask.friendly_name,
        "operation": ask.operation,
        "state": "pending",
        "config_version": version,
        "reason": reason,
        "retry_at": now() + seconds,
        "updated": now(),
    }
    while True:
        try:
            with context.db.begin() as connection:
                row = connection.execute(_ROW, ask.key).one_or_none()
                if row is not None and _stands(row, ask.operation, version, _stale(context)):
                    return row
                if row is None:
                    connection.execute(_INSERT, {**ask.identity, **values})
                else:
                    value = row.upstream_state if _open(row, version) else ""
                    connection.execute(_UPDATE, {**ask.key, "upstream_state": value, **values})
                break
        except IntegrityError:
            continue  # somebody else inserted it meanwhile: look again
    figures.count_request(ask.operation, "pending")
    return None


def _open(row: Any, version: int) -> bool:
    """Is an answer still to come where the request was sent?"""
    return bool(row.config_version == version and row.state in {"running", "pending", "failed"})


def _stale(context: Context) -> int:
    """Seconds after which a request that runs is taken over: a place at the CA, then at worst: capabilities, CA
    certificates twice, a poll, the request itself."""
    config = context.config
    return config.upstream_wait + 6 * config.upstream_timeout + STALE_MARGIN


def _stands(row: Any, operation: str, version: int, stale: int) -> bool:
    """Is what is recorded still the answer?"""
    moment = now()
    if row.state == "running":
        return bool(row.updated > moment - stale)
    if row.config_version != version:
        return False
    if row.state == "pending":
        return bool(row.retry_at > moment)
    if row.state != "issued" or row.not_after <= moment:
        return False
    left, life = row.not_after - moment, row.not_after - row.not_before
    return operation != "simplereenroll" or left * RENEWABLE > life


def issued(context: Context, ask: Ask, cert: crypto.Certificate, warnings: Iterable[str]) -> bool:
    """A claimed request got this certificate. False, and nothing is recorded: that very certificate was given out for
    another request, or earlier for this one."""
    values = {
        "state": "issued",
        "reason": "",
        "warnings": "\n".join(warnings),
        "retry_at": None,
        "updated": now(),
        "serial": cert.serial_hex,
        "not_before": cert.not_before,
        "not_after": cert.not_after,
        "certificate": cert.der,
        "certificate_sha256": cert.sha256.hex(),
    }
    with context.db.begin() as connection:
        known = connection.execute(_GIVEN_OUT, {"digest": values["certificate_sha256"]})
        if known.scalar() is not None:
            return False
        connection.execute(_UPDATE, {**ask.key, **values})
        certificates.note(connection, ask.unit_id, ask.friendly_name, cert)
    figures.count_request(ask.operation, "issued")
    return True


def finish(context: Context, ask: Ask, state: str, reason: str = "", *, retry_at: int | None = None) -> None:
    """What came of a claimed request that got no certificate."""
    values = {
        "state": state,
        "reason": reason[:1000],
        "warnings": "",
        "retry_at": retry_at,
        "updated": now(),
    }
    with context.db.begin() as connection:
        connection.execute(_UPDATE, {**ask.key, **values})
        if state in {"refused", "failed"}:
            _prune(connection, ask.unit_id)
    figures.count_request(ask.operation, state)


@dataclass(frozen=True, slots=True)
class Track:
    """A request that goes by without being looked into: all that is known of it is its transaction."""

    unit_id: str
    friendly_name: str
    operation: str
    transaction: str
    subject: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"transaction:" + self.transaction.encode()).hexdigest()


def track(
    context: Context, item: Track, state: str, reason: str = "", *, config_version: int | None = None
) -> bool:
    """Records where a transaction stands; False when it is another device's, which has an answer to come."""
    values: dict[str, Any] = {"state": state, "reason": reason[:1000], "updated": now()}
    if config_version is not None:
        values.update(config_version=config_version, upstream_state=item.transaction)
    same = enrollments.c.csr_sha256 == item.digest
    mine = sa.and_(same, enrollments.c.unit_id == item.unit_id)
    foreign = sa.select(enrollments.c.id).where(
        same, enrollments.c.unit_id != item.unit_id, enrollments.c.state.in_(("running", "pending", "issued"))
    )
    with context.db.begin() as connection:
        if connection.execute(foreign.limit(1)).scalar() is not None:
            return False
        if not connection.execute(enrollments.update().where(mine).values(values)).rowcount:
            connection.execute(
                enrollments.insert().values(
                    unit_id=item.unit_id,
                    csr_sha256=item.digest,
                    friendly_name=item.friendly_name[:256],
                    operation=item.operation,
                    subject=item.subject,
                    warnings="",
                    created=now(),
                    **{"config_version": 0, **values},
                )
            )
        if state in {"refused", "failed"}:
            _prune(connection, item.unit_id)
    if state != "running":
        figures.count_request(item.operation, state)
    return True


def refuse(context: Context, ask: Ask, state: str, reason: str) -> None:
    """Records a request that never reached the CA."""
    values = {
        "friendly_name": ask.friendly_name,
        "operation": ask.operation,
        "state": state,
        "config_version": 0,
        "reason": reason[:1000],
        "updated": now(),
    }
    with context.db.begin() as connection:
        row = connection.execute(_STATE, ask.key).one_or_none()
        if row is None:
            connection.execute(_INSERT, {**ask.identity, **values})
        elif row.state not in {"issued", "running", "pending"}:
            connection.execute(_UPDATE, {**ask.key, **values})
        _prune(connection, ask.unit_id)
    figures.count_request(ask.operation, state)


def _prune(connection: sa.Connection, unit_id: str) -> None:
    mine = sa.and_(
        enrollments.c.unit_id == unit_id,
        enrollments.c.state.in_(("refused", "failed")),
        enrollments.c.certificate.is_(None),
    )
    kept = (
        sa.select(enrollments.c.id)
        .where(mine)
        .order_by(enrollments.c.updated.desc(), enrollments.c.id.desc())
        .limit(KEPT_REFUSALS)
    )
    connection.execute(enrollments.delete().where(mine, enrollments.c.id.not_in(kept)))


def latest(context: Context, unit_id: str, friendly_name: str) -> Any | None:
    """The newest request of a device for that certificate."""
    query = (
        sa.select(enrollments)
        .where(enrollments.c.unit_id == unit_id, enrollments.c.friendly_name == friendly_name)
        .order_by(enrollments.c.updated.desc(), enrollments.c.id.desc())
        .limit(1)
    )
    with context.db.read() as connection:
        return connection.execute(query).one_or_none()


def under_way(context: Context, ask: Ask) -> bool:
    """Did this very request get as far as the CA before?"""
    with context.db.read() as connection:
        state = connection.execute(_STATE, ask.key).scalar()
    return state in {"running", "pending", "issued", "failed"}


def owner_of(context: Context, certificate: bytes) -> str | None:
    """The unit ID of the device, still known, that got this certificate."""
    digest = hashlib.sha256(certificate).hexdigest()
    query = (
        sa.select(enrollments.c.unit_id)
        .join(devices, devices.c.unit_id == enrollments.c.unit_id)
        .where(enrollments.c.certificate_sha256 == digest)
    )
    with context.db.read() as connection:
        return connection.execute(query.limit(1)).scalar()


def listing(context: Context, *, unit_id: str = "", limit: int = 1000) -> list[Any]:
    """The newest first; limit 0: all of them."""
    return list(search(context, unit_id=unit_id, limit=limit).items)


def search(
    context: Context,
    *,
    text: str = "",
    unit_id: str = "",
    state: str = "",
    since: int = 0,
    until: int = 0,
    limit: int = 100,
    offset: int = 0,
) -> paging.Page[Any]:
    """Rows, the newest first. text: in unit ID, friendly name, subject, serial number or reason.

    state: as recorded, "" for all. since, until: of the last change, seconds since 1970, 0 for no bound.
    """
    query = sa.select(*(enrollments.c[name] for name in COLUMNS), enrollments.c.warnings)
    if text:
        fields = ("unit_id", "friendly_name", "subject", "serial", "reason")
        query = query.where(paging.contains(text, *(enrollments.c[name] for name in fields)))
    if unit_id:
        query = query.where(enrollments.c.unit_id == unit_id)
    if state:
        if state not in STATES:
            raise SettingsError("state", f"{state[:40]!r} is no state", hint="one of: " + " ".join(STATES))
        query = query.where(enrollments.c.state == state)
    if since:
        query = query.where(enrollments.c.updated >= since)
    if until:
        query = query.where(enrollments.c.updated < until)
    order = (enrollments.c.updated.desc(), enrollments.c.id.desc())
    with context.db.read() as connection:
        return paging.page(connection, query, order, limit, offset)


def as_json(row: Any) -> dict[str, Any]:
    return {**{key: getattr(row, key) for key in COLUMNS}, "warnings": row.warnings.splitlines()}


def sheet(rows: Iterable[Any]) -> Iterator[str]:
    """CSV of such rows, line by line. A cell that a spreadsheet would run as a formula gets an apostrophe."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    for cells in chain([(*COLUMNS, "warnings")], rows):
        writer.writerow(_cell(cell) for cell in cells)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _cell(value: object) -> object:
    text = "" if value is None else str(value).replace("\n", "; ")
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def by_day(context: Context, days: int) -> list[tuple[int, dict[str, int]]]:
    """(begin of the day in UTC, state -> how many requests ended so) up to today."""
    first = (now() // DAY - days + 1) * DAY
    day = (enrollments.c.updated - first) // DAY
    query = (
        sa.select(day, enrollments.c.state, sa.func.count())
        .where(enrollments.c.updated >= first)
        .group_by(day, enrollments.c.state)
    )
    found: dict[int, dict[str, int]] = {}
    with context.db.read() as connection:
        for index, state, count in connection.execute(query):
            found.setdefault(int(index), {})[state] = count
    return [(first + index * DAY, found.get(index, {})) for index in range(days)]
