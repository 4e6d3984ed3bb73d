"""The record of enrollments: who asked for what, what came of it. One row for each request of a device."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from .. import crypto
from ..codec import pkcs10
from ..errors import Error, StorageError
from ..settings import EnrollmentSettings
from . import certificates, figures
from .context import Context
from .database import Database, moment, now
from .leases import alive
from .schema import devices, enrollments

__all__ = [
    "Ask",
    "Lost",
    "Ticket",
    "Track",
    "claim",
    "defer",
    "finish",
    "issued",
    "latest",
    "owner_of",
    "refuse",
    "track",
    "under_way",
]

STALE_MARGIN = 60  # seconds beyond what a request can take, after which it is taken over: its proxy died
RENEWABLE = (
    3  # at /simplereenroll the same CSR gets a new certificate in the last third of the old one's life
)
KEPT_REFUSALS = 50  # of each device: whoever asks for nonsense does not fill the disk


# statements are made once: making one costs as much as running it
_ITS = sa.and_(
    enrollments.c.unit_id == sa.bindparam("unit"), enrollments.c.csr_sha256 == sa.bindparam("digest")
)
# clock: the database's; alive: does the process live that carries it to the CA?
_ROW = (
    sa.select(enrollments, moment().label("clock"), alive(enrollments.c.holder).label("alive"))
    .where(_ITS)
    .with_for_update(of=enrollments)
)
_STATE = sa.select(enrollments.c.state).where(_ITS)
_UPDATE = enrollments.update().where(_ITS).values(updated=moment())
_DEFER_INSERT = enrollments.insert().values(
    updated=moment(), retry_at=moment() + sa.bindparam("seconds", type_=sa.BigInteger)
)
_DEFER = _UPDATE.values(retry_at=moment() + sa.bindparam("seconds", type_=sa.BigInteger))
# of a request that nobody has taken over
_OURS = sa.and_(enrollments.c.state == "running", enrollments.c.claim == sa.bindparam("token"))
_FINISH = _UPDATE.where(_OURS)
_FINISH_NOW = _FINISH.values(retry_at=sa.null())
_FINISH_LATER = _DEFER.where(_OURS)
_GIVEN_OUT = (
    sa.select(enrollments.c.claim, enrollments.c.state)
    .where(enrollments.c.certificate_sha256 == sa.bindparam("digest"))
    .limit(1)
)
_others = enrollments.alias()
_ISSUE = _FINISH.where(
    ~sa.exists().where(_others.c.certificate_sha256 == sa.bindparam("given_out")).correlate(enrollments)
)
_OWNER = (
    sa.select(enrollments.c.unit_id)
    .join(devices, devices.c.unit_id == enrollments.c.unit_id)
    .where(enrollments.c.certificate_sha256 == sa.bindparam("digest"))
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A device's request. operation: "simpleenroll" or "simplereenroll". rule: when the device renews by itself what it
    gets; None where that is not known."""

    unit_id: str
    friendly_name: str
    csr: pkcs10.CertificationRequest
    operation: str
    rule: EnrollmentSettings | None = None

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


class Lost(Error):
    """Another proxy took the request over: this one was held to be dead. What it brings from the CA counts no more."""

    def __init__(self) -> None:
        super().__init__("another proxy took this request over")


class Ticket:
    """A claimed request, and what an upstream keeps of it in its row. token: of this claim alone. ended: what came of it
    is recorded, or will be."""

    __slots__ = ("_context", "ask", "ended", "renewal", "token", "value")

    def __init__(self, context: Context, ask: Ask, value: str, token: str) -> None:
        self._context = context
        self.ask = ask
        self.value = value
        self.token = token
        self.ended = False
        self.renewal = ask.operation == "simplereenroll"

    @property
    def key(self) -> dict[str, str]:
        """What names it in statements."""
        return {**self.ask.key, "token": self.token}

    def keep(self, value: str) -> None:
        """On disk when this returns. Lost."""
        if value != self.value:
            with self._context.db.begin(alone=False) as connection:
                if not connection.execute(_FINISH, {**self.key, "upstream_state": value}).rowcount:
                    raise Lost
            self.value = value


def claim(context: Context, ask: Ask, version: int) -> Ticket | Any:
    """A Ticket: the request is ours to carry to the CA. A row: it is answered, pending or under way."""
    token = secrets.token_hex(16)
    fresh = {
        "friendly_name": ask.friendly_name,
        "operation": ask.operation,
        "state": "running",
        "config_version": version,
        "reason": "",
        "holder": context.leases.holder,
        "claim": token,
    }
    ticket = Ticket(context, ask, "", token)
    try:
        while True:
            # nearly every request comes for the first time: one statement, and one round trip
            with context.db.single() as connection:
                if Database.add(connection, enrollments, {**ask.identity, **fresh, "updated": moment()}):
                    return ticket
            with context.db.begin(alone=False) as connection:
                row = connection.execute(_ROW, ask.key).one_or_none()
                if row is None:
                    continue  # it went meanwhile
                if _stands(context, row, ask.operation, version):
                    return row
                # an answer that is still to come is asked for where it was
                ticket.value = row.upstream_state if _open(row, version) else ""
                connection.execute(_UPDATE, {**ask.key, "upstream_state": ticket.value, **fresh})
                return ticket
    except StorageError:
        # it may be claimed all the same: the answer to the commit was lost
        context.leases.later(lambda: _finish(context, ticket, "failed", "the database was away"))
        raise


def defer(context: Context, ask: Ask, version: int, reason: str, seconds: int) -> Any | None:
    """Records that a request has its turn at the CA in so many seconds. A row: it is answered, pending or under way
    already, and nothing changes."""
    values = {
        "friendly_name": ask.friendly_name,
        "operation": ask.operation,
        "state": "pending",
        "config_version": version,
        "reason": reason,
        "seconds": seconds,
    }
    while True:
        try:
            with context.db.begin(alone=False) as connection:
                row = connection.execute(_ROW, ask.key).one_or_none()
                if row is not None and _stands(context, row, ask.operation, version):
                    return row
                if row is None:
                    connection.execute(_DEFER_INSERT, {**ask.identity, **values})
                else:
                    value = row.upstream_state if _open(row, version) else ""
                    connection.execute(_DEFER, {**ask.key, "upstream_state": value, **values})
                break
        except IntegrityError:
            continue  # somebody else inserted it meanwhile: look again
    figures.count_request(ask.operation, "pending")
    return None


def _open(row: Any, version: int) -> bool:
    """Is an answer still to come where the request was sent?"""
    return bool(row.config_version == version and row.state in {"running", "pending", "failed"})


def _stale(context: Context) -> int:
    """Seconds after which a request that runs is taken over, whoever holds it: a place at the CA, then at worst:
    capabilities, CA certificates twice, a poll, the request itself."""
    config = context.config
    return config.upstream_wait + 6 * config.upstream_timeout + STALE_MARGIN


def _stands(context: Context, row: Any, operation: str, version: int) -> bool:
    """Is what is recorded still the answer?"""
    if row.state == "running":
        return bool(row.updated > row.clock - _stale(context)) and context.leases.carries(row)
    if row.config_version != version:
        return False
    if row.state == "pending":
        return bool(row.retry_at > row.clock)
    if row.state != "issued" or row.not_after <= row.clock:
        return False
    left, life = row.not_after - row.clock, row.not_after - row.not_before
    return operation != "simplereenroll" or left * RENEWABLE > life


def issued(
    context: Context,
    ticket: Ticket,
    cert: crypto.Certificate,
    warnings: Iterable[str],
    *,
    issuer: str = "",
    rate: int = 0,
) -> bool:
    """A claimed request got this certificate. False, and nothing is recorded: that very certificate was given out for
    another request, or earlier for this one. Lost. issuer: SHA-256 of the CA's certificate, in hexadecimal; rate: of the CA.

    Where the database is away, it is recorded when it is back, if nobody took the request over; StorageError all the
    same, as the device cannot have what is not recorded.
    """
    values = {
        "state": "issued",
        "reason": "",
        "warnings": "\n".join(warnings),
        "retry_at": None,
        "serial": cert.serial_hex,
        "not_before": cert.not_before,
        "not_after": cert.not_after,
        "certificate": cert.der,
        "certificate_sha256": cert.sha256.hex(),
    }
    record = partial(_issued, context, ticket, cert, values, issuer, rate)
    try:
        good = record()
    except StorageError:
        ticket.ended = context.leases.later(record)
        raise
    ticket.ended = good
    if good:
        figures.count_request(ticket.ask.operation, "issued")
    return good


def _issued(
    context: Context,
    ticket: Ticket,
    cert: crypto.Certificate,
    values: dict[str, Any],
    issuer: str,
    rate: int,
) -> bool:
    ask = ticket.ask
    with context.db.begin(alone=False) as connection:
        digest = values["certificate_sha256"]
        if not connection.execute(_ISSUE, {**ticket.key, **values, "given_out": digest}).rowcount:
            known = connection.execute(_GIVEN_OUT, {"digest": digest}).one_or_none()
            if known is None:
                raise Lost
            # its own, when this is tried again after a commit whose answer was lost
            return bool(known.claim == ticket.token and known.state == "issued")
        certificates.note(
            connection, ask.unit_id, ask.friendly_name, cert, issuer=issuer, rate=rate, rule=ask.rule
        )
        what = f"{ask.friendly_name}: certificate {cert.serial_hex} for {cert.subject_text}"
        Database.record(connection, ask.unit_id, "issue", what)
    return True


def finish(
    context: Context, ticket: Ticket, state: str, reason: str = "", *, retry_in: int | None = None
) -> None:
    """What came of a claimed request that got no certificate. retry_in: seconds. Nothing, when it was taken over; where
    the database is away, it is recorded when it is back."""
    try:
        _finish(context, ticket, state, reason, retry_in)
    except StorageError:
        ticket.ended = context.leases.later(lambda: _finish(context, ticket, state, reason, retry_in))
        raise
    ticket.ended = True
    figures.count_request(ticket.ask.operation, state)


def _finish(context: Context, ticket: Ticket, state: str, reason: str, retry_in: int | None = None) -> None:
    values: dict[str, Any] = {"state": state, "reason": reason[:1000], "warnings": ""}
    statement = _FINISH_NOW
    if retry_in is not None:
        statement = _FINISH_LATER
        values["seconds"] = retry_in
    with context.db.begin(alone=False) as connection:
        connection.execute(statement, {**ticket.key, **values})
        if state in {"refused", "failed"}:
            _prune(connection, ticket.ask.unit_id)


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
    }
    with context.db.begin() as connection:
        row = connection.execute(_STATE.with_for_update(), ask.key).one_or_none()
        if row is None:
            Database.add(connection, enrollments, {**ask.identity, "updated": moment(), **values})
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
    with context.db.read() as connection:
        return connection.execute(_OWNER, {"digest": hashlib.sha256(certificate).hexdigest()}).scalar()
