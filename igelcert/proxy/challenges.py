"""One-time challenges of NDES: fetched when settings are handed out, one for each CSR that a device will make.

NDES keeps five at a time, each for an hour and for one request, so no more than that are out at once; whoever
finds none free is told to come back. A challenge that was not used is handed out again until it is old. Where
the CA has none of that, everything passes through here as it is.
"""

from __future__ import annotations

import copy
import hmac
import logging
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from .. import record
from ..errors import RemoteProtocolError, TransportError
from ..settings import CertSettings
from . import enrollments
from .context import Context
from .database import now
from .devices import Device
from .merging import Effective, tag
from .schema import ndes_challenges
from .upstream.config import CaConfig, load
from .upstream.ndes import fetch_challenge

__all__ = ["RETRY_SECONDS", "check", "hand_out", "in_force", "place", "spend"]

log = logging.getLogger("igelcert.proxy")

CACHE = 5  # of NDES: PasswordMax
LIFE = 3600  # of a challenge: PasswordValidity
FRESH = 2700  # seconds in which a challenge is worth handing out: the device has still to use it
RETRY_SECONDS = 60


def hand_out(context: Context, config: CaConfig | None, device: Device, found: Effective) -> Effective:
    """The settings with a challenge in each certificate that the device is going to ask for. config: see `in_force`."""
    if config is None:
        return found
    document = copy.deepcopy(found.document)
    certs = list(found.certs)
    incomplete = False
    for index, cert in enumerate(certs):
        if cert.enrollment.proto != "igelums":
            continue
        challenge = _current(context, config, device.unit_id, cert.friendly_name)
        if not challenge and _due(context, device.unit_id, cert):
            challenge = _fetch(context, config, device.unit_id, cert.friendly_name)
            incomplete |= not challenge
        enrollment = document["certs"][index].setdefault("enrollment", {})
        enrollment["crypt_challenge_password"] = challenge
        certs[index] = record.replace(
            cert, enrollment=record.replace(cert.enrollment, crypt_challenge_password=challenge)
        )
    return replace(
        found, document=document, certs=tuple(certs), etag=tag(context, document), incomplete=incomplete
    )


def check(config: CaConfig | None, found: Effective) -> Effective:
    """As the device should have it now, to compare its CSR with: challenges are those that are out.
    config: see `in_force`."""
    if config is None:
        return found
    certs = tuple(
        record.replace(cert, enrollment=record.replace(cert.enrollment, crypt_challenge_password=""))
        if cert.enrollment.proto == "igelums"
        else cert
        for cert in found.certs
    )
    return replace(found, certs=certs)


def spend(context: Context, config: CaConfig | None, ask: enrollments.Ask) -> None:
    """Marks the challenge of a CSR as used; RemoteProtocolError 503 when it is none that is out.

    A request that is known already passes: its challenge is used, and it asks what became of it.
    """
    if config is None or enrollments.under_way(context, ask):
        return
    current = _current(context, config, ask.unit_id, ask.friendly_name)
    given = ask.csr.challenge or ""
    good = bool(current) and hmac.compare_digest(current.encode(), given.encode())
    if good:
        mine = sa.and_(_mine(ask.unit_id, ask.friendly_name), ndes_challenges.c.used.is_(False))
        with context.db.begin(alone=False) as connection:
            good = connection.execute(ndes_challenges.update().where(mine).values(used=True)).rowcount > 0
    if not good:
        raise RemoteProtocolError(
            "the request has no challenge of NDES that is still good; the settings bring the next one",
            status_hint=503,
        )


def _due(context: Context, unit_id: str, cert: CertSettings) -> bool:
    """Is the device going to make a CSR? It has none of this name, or one near its renewal."""
    row = enrollments.latest(context, unit_id, cert.friendly_name)
    if row is None or row.state != "issued" or row.not_after is None:
        return True
    if cert.enrollment.renew_serial == row.serial:
        return True
    enrollment, life = cert.enrollment, row.not_after - row.not_before
    if enrollment.renewal_period_units == "days":
        left = enrollment.renewal_period_days * 86_400
    else:
        left = life * enrollment.renewal_period // 100
    return bool(now() >= row.not_after - left - life // 20)


def in_force(context: Context, wanted: bool) -> CaConfig | None:
    """The CA's configuration when it says where NDES hands out challenges. wanted: as of `config.standing`, which is asked
    with all settings: nothing is unsealed for that."""
    if not wanted:
        return None
    config = load(context)
    return config if config is not None and config.kind == "scep" and config.scep.ndes_url else None


def _mine(unit_id: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(ndes_challenges.c.unit_id == unit_id, ndes_challenges.c.friendly_name == name)


def place(unit_id: str, name: str) -> str:
    return f"ndes_challenges:{unit_id}:{name}"


def _current(context: Context, config: CaConfig, unit_id: str, name: str) -> str:
    """The challenge that is out for this certificate and not used, "" without."""
    query = sa.select(ndes_challenges).where(_mine(unit_id, name))
    with context.db.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None or row.used or not row.sealed or row.config_version != config.version:
        return ""
    if row.fetched <= now() - FRESH:
        return ""
    return context.sealer.unseal(row.sealed, place(unit_id, name)).decode()


def _fetch(context: Context, config: CaConfig, unit_id: str, name: str) -> str:
    """A new challenge; "" when none is to be had now, which is in the log."""
    if not _reserve(context, config, unit_id, name):
        log.info("%s: no challenge of NDES is free for %r now", unit_id, name)
        return ""
    challenge = ""
    try:
        with context.upstreams.slot():
            challenge = fetch_challenge(config, context.config.upstream_timeout)
    except (TransportError, RemoteProtocolError) as err:
        log.warning("%s: no challenge for %r: %s%s", unit_id, name, err, f" ({err.hint})" if err.hint else "")
    finally:
        with context.db.begin() as connection:
            if challenge:
                sealed = context.sealer.seal(connection, challenge.encode(), place(unit_id, name))
                connection.execute(
                    ndes_challenges.update().where(_mine(unit_id, name)).values(sealed=sealed, fetched=now())
                )
            else:
                connection.execute(ndes_challenges.delete().where(_mine(unit_id, name)))
    return challenge


def _reserve(context: Context, config: CaConfig, unit_id: str, name: str) -> bool:
    """A place among those that may be out; False when all are taken, or somebody fetches for this very one."""
    moment = now()
    out = sa.and_(ndes_challenges.c.used.is_(False), ndes_challenges.c.fetched > moment - LIFE)
    row: dict[str, Any] = {
        "unit_id": unit_id,
        "friendly_name": name,
        "config_version": config.version,
        "sealed": b"",
        "fetched": moment,
        "used": False,
    }
    with context.db.begin() as connection:
        # a reservation that nobody came back for is no challenge of NDES
        connection.execute(
            ndes_challenges.delete().where(
                ndes_challenges.c.sealed == b"", ndes_challenges.c.fetched < moment - 300
            )
        )
        old = connection.execute(sa.select(ndes_challenges).where(_mine(unit_id, name))).one_or_none()
        if old is not None and not old.sealed:
            return False
        taken = sa.select(sa.func.count()).select_from(ndes_challenges).where(out)
        others = connection.execute(taken.where(sa.not_(_mine(unit_id, name)))).scalar() or 0
        # one that is too old to hand out counts at NDES until its hour is over
        stale = old is not None and not old.used and old.fetched > moment - LIFE
        if others + (1 if stale else 0) >= CACHE:
            return False
        connection.execute(ndes_challenges.delete().where(_mine(unit_id, name)))
        connection.execute(ndes_challenges.insert().values(row))
    return True
