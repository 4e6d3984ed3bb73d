"""The management CAs: the one that issues, one that is to follow it, those that go; and the change from one to the next.

roll: a new CA is made; devices are told to trust it beside the old one. switch: it issues, our own certificate first,
and devices renew their management certificates. retire: the old one counts no more. Its key has certified the new
one's (RFC 4210 4.4, "new with old"), and the proxy shows that with its own certificate: a device that slept through all of
it still knows the proxy, until the old CA is retired.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ConflictError, StorageError
from . import cacerts, changes
from .audit import actor
from .context import Context
from .database import Database, now
from .managementca import ManagementCa
from .schema import devices, management_cas, management_certificates

__all__ = [
    "Ca",
    "Lagging",
    "Standing",
    "cas",
    "issuing",
    "keep_trust",
    "lagging",
    "retire",
    "roll",
    "standing",
    "switch",
]

NAMED = 20  # devices of a list
_ROWS = (
    sa.select(
        management_cas.c.id, management_cas.c.certificate, management_cas.c.cross, management_cas.c.state
    )
    .where(management_cas.c.state != "retired")
    .order_by(management_cas.c.id)
)
_ISSUING = sa.select(management_cas.c.id).where(management_cas.c.state == "issuing")


# ---- what is in force ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """roots: DER, those that count; pem: the same. cross: the issuing CA's key, certified by the one before, or empty.
    trust: SHA-256 over the roots; issuer: SHA-256 of the one that issues; both hexadecimal. number: of that one."""

    roots: tuple[bytes, ...]
    pem: str
    cross: bytes
    trust: str
    issuer: str
    number: int

    def tagged(self, etag: str) -> str:
        """The tag of settings, another one for a device that is to hear of a change of these CAs."""
        if self.number == 1 and len(self.roots) == 1:
            return etag
        mark = hashlib.sha256(f"{self.trust}/{self.issuer}".encode()).hexdigest()[:8]
        return f'{etag[:-1]}.{mark}"'

    @property
    def with_cross(self) -> str:
        """PEM for a device that renews: it may trust the CA before alone."""
        return self.pem + (_pem(self.cross) if self.cross else "")

    @property
    def to_register(self) -> str:
        """PEM for a device that registers, with the old trust.pem or the new one. While the CA before counts, the new
        root is not in it, as in `behind`: devices that check their certificate by what they trusted before alone would
        take it for the end of the chain. They take it over at their first run."""
        if not self.cross:
            return self.pem
        return "".join(_pem(der) for der in (*self.roots, self.cross) if not self._issues(der))

    def _issues(self, der: bytes) -> bool:
        return hashlib.sha256(der).hexdigest() == self.issuer

    @property
    def root(self) -> x509.Certificate:
        """Of the CA that issues."""
        found = next(der for der in self.roots if self._issues(der))
        return x509.load_der_x509_certificate(found)

    @property
    def ends(self) -> int:
        """When that CA ends, seconds since 1970."""
        return int(self.root.not_valid_after_utc.timestamp())

    @property
    def behind(self) -> str:
        """PEM of what the proxy shows with its own certificate: the root, or the way to the one before.

        Never both: a client that trusts the old one alone might take the new root for the end of the chain.
        """
        return _pem(self.cross) if self.cross else self.root.public_bytes(Encoding.PEM).decode()


def standing(context: Context) -> Standing:
    """The management CAs as they are now."""
    rows = context.db.once("management CAs", lambda connection: connection.execute(_ROWS).all())
    found = _standing(tuple((row.id, row.certificate, row.cross, row.state) for row in rows))
    if context.kept_standing not in (None, found):
        # a device that is told of it comes again at once, and must meet a proxy that goes by it
        context.count_trust_change()
    context.kept_standing = found
    return found


@lru_cache(4)
def _standing(rows: tuple[tuple[int, bytes, bytes, str], ...]) -> Standing:
    issues = next((row for row in rows if row[3] == "issuing"), None)
    if issues is None:
        raise StorageError("the database holds no management CA", hint="run: ca-proxy init")
    roots = tuple(row[1] for row in rows)
    leaving = any(row[3] == "leaving" for row in rows)
    return Standing(
        roots,
        "".join(map(_pem, roots)),
        issues[2] if leaving else b"",
        hashlib.sha256(b"".join(roots)).hexdigest(),
        hashlib.sha256(issues[1]).hexdigest(),
        issues[0],
    )


def issuing(context: Context, connection: sa.Connection) -> ManagementCa:
    """The CA that issues, as the transaction sees it; its key is opened once."""
    kept = context.kept_management_ca
    if kept is None or kept.number != connection.execute(_ISSUING).scalar():
        kept = context.kept_management_ca = ManagementCa.issuing(connection, context.sealer)
    return kept


def keep_trust(directory: Path, pem: str) -> None:
    """DIR/trust.pem, for devices that are registered from now on. StorageError."""
    path = directory / "trust.pem"
    try:
        if path.exists() and path.read_bytes() == pem.encode():
            return
        handle, name = tempfile.mkstemp(prefix=".trust.", dir=directory)
        with os.fdopen(handle, "w") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from None


def _pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


# ---- for administrators -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ca:
    """state: coming, issuing, leaving or retired. devices: whose management certificate is from it, as they said last."""

    number: int
    state: str
    sha256: str
    created: int
    not_after: int
    devices: int


@dataclass(frozen=True, slots=True)
class Lagging:
    """Devices that have to come before the next step. count: of them; units: some of their unit IDs."""

    count: int
    units: tuple[str, ...]

    @property
    def named(self) -> str:
        more = " …" if self.count > len(self.units) else ""
        return f"{self.count} device{'s' if self.count != 1 else ''} ({', '.join(self.units)}{more})"

    def __str__(self) -> str:
        """For a sentence that goes on with what they have (done)."""
        return f"{self.named} {'have' if self.count != 1 else 'has'}"


def cas(context: Context) -> list[Ca]:
    """All there ever were, the oldest first."""
    count = sa.select(sa.func.count()).where(
        devices.c.management_ca == management_cas.c.id, devices.c.state == "registered"
    )
    query = sa.select(management_cas, count.scalar_subquery().label("devices")).order_by(management_cas.c.id)
    with context.db.read() as connection:
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        end = x509.load_der_x509_certificate(row.certificate).not_valid_after_utc
        digest = hashlib.sha256(row.certificate).hexdigest()
        found.append(Ca(row.id, row.state, digest, row.created, int(end.timestamp()), row.devices))
    return found


def lagging(context: Context) -> Lagging:
    """Devices whose management certificate is good, and that the next step of a change has to wait for: before the
    switch those that have not said that they trust the new CA, before the end those that still go by the old one."""
    with context.db.read() as connection:
        return _lagging(context, connection)


def _lagging(context: Context, connection: sa.Connection) -> Lagging:
    mine = management_certificates.c
    good = sa.exists().where(mine.unit_id == devices.c.unit_id, mine.not_after > now())
    states = {row.state: row.id for row in connection.execute(_ROWS)}
    if "leaving" in states:
        good = good.where(mine.ca == states["leaving"])
        behind = devices.c.management_ca == states["leaving"]
    elif "coming" in states:
        behind = devices.c.trust != standing(context).trust
    else:
        return Lagging(0, ())
    those = sa.and_(devices.c.state == "registered", behind, good)
    count = connection.execute(sa.select(sa.func.count()).select_from(devices).where(those)).scalar_one()
    named = sa.select(devices.c.unit_id).where(those).order_by(devices.c.unit_id).limit(NAMED)
    return Lagging(count, tuple(connection.execute(named).scalars()))


def roll(context: Context) -> ManagementCa:
    """Makes the CA that is to follow; devices hear of it. The one that issues stays the same. Returns that one."""
    with context.db.begin() as connection:
        _only(connection, "a change of the management CA is under way already", "coming", "leaving")
        old = ManagementCa.issuing(connection, context.sealer)
        ManagementCa.create(connection, context.sealer, old)
        _note(connection, "management-ca roll", f"CA {old.number + 1} is to follow CA {old.number}")
    keep_trust(context.data, standing(context).pem)
    return old


def switch(context: Context, *, now_: bool = False) -> None:
    """From now on the new CA issues. now_: although devices have not said that they trust it."""
    with context.db.begin() as connection:
        coming = _the(connection, "coming", "there is no new management CA", "ca-proxy management-ca roll")
        behind = _lagging(context, connection)
        if behind.count and not now_:
            raise ConflictError(
                "--now",
                f"{behind} not said yet that they trust the new CA",
                hint="wait for them; or --now: they still find the proxy until the old CA is retired",
            )
        old = management_cas.c.state == "issuing"
        connection.execute(management_cas.update().where(old).values(state="leaving"))
        connection.execute(
            management_cas.update().where(management_cas.c.id == coming).values(state="issuing")
        )
        _note(
            connection,
            "management-ca switch",
            f"CA {coming} issues; {behind.count} devices had not heard of it",
        )


def retire(context: Context, *, now_: bool = False) -> Lagging:
    """The old CA counts no more, and its key is gone. now_: although devices go by it, which must register anew then.
    Returns these."""
    with context.db.begin() as connection:
        leaving = _the(connection, "leaving", "no management CA is leaving", "ca-proxy management-ca show")
        behind = _lagging(context, connection)
        if behind.count and not now_:
            raise ConflictError(
                "--now",
                f"{behind} a certificate of the old CA that is still good, and no newer one",
                hint="wait for them; with --now each of them needs a new token and the new trust.pem",
            )
        gone = management_cas.c.id == leaving
        connection.execute(management_cas.update().where(gone).values(state="retired", sealed=b"", cross=b""))
        _note(connection, "management-ca retire", f"CA {leaving}; {behind.count} devices still went by it")
    keep_trust(context.data, standing(context).pem)
    return behind


def _only(connection: sa.Connection, why: str, *states: str) -> None:
    found = connection.execute(
        sa.select(management_cas.c.id).where(management_cas.c.state.in_(states))
    ).first()
    if found is not None:
        raise ConflictError("management-ca", why, hint="what is next says: ca-proxy management-ca show")


def _the(connection: sa.Connection, state: str, why: str, hint: str) -> int:
    found = connection.execute(sa.select(management_cas.c.id).where(management_cas.c.state == state)).scalar()
    if found is None:
        raise ConflictError("management-ca", why, hint=f"run: {hint}")
    return int(found)


def _note(connection: sa.Connection, action: str, detail: str) -> None:
    """Of a change: in the audit log, to the TLS side of all proxies, and to devices that wait."""
    cacerts.count_trust(connection)
    Database.record(connection, actor(), action, detail)
    changes.note(connection, [("directory", "/")])
