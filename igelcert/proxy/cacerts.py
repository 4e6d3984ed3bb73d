"""CA certificates of the upstream: kept for an hour for devices, and for good as trust of renewals.

Old device certificates chain to what an earlier CA gave, so nothing is forgotten when the CA changes.
"""

from __future__ import annotations

import hashlib
import logging

import sqlalchemy as sa

from ..errors import RemoteProtocolError, TransportError
from .context import Context
from .database import Database, now
from .schema import ca_certificates
from .upstream import Upstream

__all__ = ["count_trust", "ever_known", "fresh", "known", "remember", "trust_version"]

log = logging.getLogger("igelcert.proxy")

FRESH_SECONDS = 3600
_OF_VERSION = (
    sa.select(ca_certificates)
    .where(ca_certificates.c.config_version == sa.bindparam("version"))
    .order_by(ca_certificates.c.sha256)
)
MAX_TRUST = 200


def fresh(context: Context, upstream: Upstream, *, anew: bool = False) -> list[bytes]:
    """The CA's certificates, asked for when what is kept is old, or in any case (`anew`).

    A CA that does not answer leaves what is kept in force; TransportError or RemoteProtocolError when there
    is nothing, or when it was asked for anew.
    """
    version, kept, at = context.kept_cas
    if version != upstream.config.version or now() - at > FRESH_SECONDS:
        kept, at = known(context, upstream.config.version)
        context.kept_cas = (upstream.config.version, kept, at)
    if kept and not anew and now() - at <= FRESH_SECONDS:
        return kept
    try:
        certs = upstream.cacerts()
    except (TransportError, RemoteProtocolError) as err:
        if not kept or anew:
            raise
        log.warning("the CA certificates are those of %d seconds ago: %s", now() - at, err)
        return kept
    remember(context, upstream.config.version, certs)
    context.kept_cas = (0, [], 0)
    return certs


def known(context: Context, version: int) -> tuple[list[bytes], int]:
    """What is kept for that version of the configuration, and when it was fetched."""
    with context.db.read() as connection:
        rows = connection.execute(_OF_VERSION, {"version": version}).all()
    newest = max((row.fetched_at for row in rows), default=0)
    return [row.der for row in rows if row.fetched_at == newest], newest


def remember(context: Context, version: int, certs: list[bytes]) -> None:
    moment = now()  # of them all: by it they are known as one answer
    rows = [
        {
            "config_version": version,
            "sha256": hashlib.sha256(der).hexdigest(),
            "der": der,
            "fetched_at": moment,
        }
        for der in dict.fromkeys(certs)
    ]
    with context.db.begin() as connection:
        mine = ca_certificates.c.config_version == version
        before = set(connection.execute(sa.select(ca_certificates.c.sha256).where(mine)).scalars())
        mine_again = ca_certificates.c.sha256.in_([row["sha256"] for row in rows])
        connection.execute(ca_certificates.delete().where(mine, mine_again))
        connection.execute(ca_certificates.insert(), rows)
        grown = not before >= {row["sha256"] for row in rows}
        if grown:
            count_trust(connection)
    if grown:
        context.count_trust_change()


def count_trust(connection: sa.Connection) -> None:
    """Other CAs are trusted than before, or our certificate is to come from another: all proxies look again."""
    count = int(Database.meta_in(connection, "trust_version", "0")) + 1
    Database.put_meta(connection, "trust_version", str(count))


def trust_version(context: Context) -> int:
    """Counts up whenever `ever_known` may have grown, or the management CAs changed."""
    return int(context.db.meta("trust_version", "0"))


def ever_known(context: Context) -> list[bytes]:
    """CA certificates of this and earlier configurations, newest first, at most MAX_TRUST."""
    query = (
        sa.select(ca_certificates.c.der).order_by(ca_certificates.c.config_version.desc()).limit(MAX_TRUST)
    )
    with context.db.read() as connection:
        return list(dict.fromkeys(connection.execute(query).scalars()))
