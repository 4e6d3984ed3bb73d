"""What devices do themselves: become known by a token, renew their management certificate, report."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from .. import crypto
from ..codec import pkcs10
from ..errors import Error, RemoteProtocolError, SettingsError
from ..model import check_ip
from . import certificates, changes, rollover
from .context import Context
from .database import now
from .devices import Device, check_hostname_text, find, owner_of
from .schema import devices, management_certificates, tokens

__all__ = ["register", "renew_identity", "report"]

TOKEN_REPEAT = 600  # seconds in which a used token answers the same key again: the first answer was lost
MAX_IPS = 64
MAX_MOMENT = 253_402_300_799  # the end of the year 9999
MANAGEMENT_KEYS = {
    "rsa_2048", "rsa_3072", "rsa_4096", "rsa_8192",
    "ec_prime256v1", "ec_secp384r1", "ec_secp521r1", "ecdsa_ed25519", "ed448",
}  # fmt: skip


def register(context: Context, body: Mapping[str, Any]) -> dict[str, Any]:
    """A one-time token and a CSR become a management certificate."""
    token, unit_id = _text(body, "token", 200), _text(body, "unit_id", 64)
    csr = _management_csr(body, unit_id)
    spki = hashlib.sha256(csr.spki).hexdigest()
    with context.db.begin() as connection:
        again = _spend(connection, token, unit_id, spki)
        if again and (answer := _issued(context, connection, unit_id, spki)):
            return answer
        # whoever holds an older identity of this device is no longer it
        ended = connection.execute(
            management_certificates.delete().where(
                management_certificates.c.unit_id == unit_id, management_certificates.c.spki_sha256 != spki
            )
        ).rowcount
        answer = _issue(context, connection, unit_id, csr.spki)
        answer["ca"] = rollover.standing(context).to_register
        moment = now()
        connection.execute(
            devices.update()
            .where(devices.c.unit_id == unit_id)
            .values(
                state="registered",
                registered_at=moment,
                last_seen=moment,
                management_ca=rollover.issuing(context, connection).number,
            )
        )
        context.db.record(connection, unit_id, "register", f"management certificate {answer['serial']}")
        # a host name that another device has is no reason to stay unknown: the report says it again
        try:
            _note_facts(connection, unit_id, body)
        except RemoteProtocolError as err:
            context.db.record(connection, unit_id, "register", str(err))
        if ended:
            changes.note(connection, [("device", unit_id)])
    return answer


def renew_identity(context: Context, device: Device, body: Mapping[str, Any]) -> dict[str, Any]:
    """A new management certificate for a device that proves to be itself by the old one."""
    if body.get("unit_id") not in {None, device.unit_id}:
        raise RemoteProtocolError("the certificate is of another unit ID", status_hint=403)
    csr = _management_csr(body, device.unit_id)
    with context.db.begin() as connection:
        answer = _issue(context, connection, device.unit_id, csr.spki)
        context.db.record(
            connection, device.unit_id, "renew identity", f"management certificate {answer['serial']}"
        )
    return answer


def report(
    context: Context, device: Device, body: Mapping[str, Any], certificate: bytes | None = None
) -> list[dict[str, Any]] | None:
    """What the device says of itself; returns what is kept of what it says of its certificates, None where it says
    nothing of them. A host name that another device has is refused (409). certificate: its management certificate, by
    which it came."""
    certs = body.get("certs")
    said = None if certs is None else _report(certs)
    # who says nothing new of its name need not wait for others
    renamed = body.get("hostname") not in {None, "", device.hostname}
    with context.db.begin(alone=renamed) as connection:
        _note_facts(connection, device.unit_id, body)
        values: dict[str, Any] = {"last_seen": now()}
        if body.get("trust"):
            values["trust"] = _text(body, "trust", 64)
        if certificate is not None:
            mine = management_certificates.c
            found = sa.select(mine.ca).where(mine.sha256 == hashlib.sha256(certificate).hexdigest())
            values["management_ca"] = sa.func.coalesce(found.scalar_subquery(), devices.c.management_ca)
        if said is not None:
            values["report"] = json.dumps({"certs": said})
            names = [entry["friendly_name"] for entry in said]
            certificates.forget(connection, device.unit_id, names, now() - 3600)
        connection.execute(devices.update().where(devices.c.unit_id == device.unit_id).values(values))
    return said


def _report(certs: object) -> list[dict[str, Any]]:
    if not isinstance(certs, list) or len(certs) > 200 or not all(isinstance(entry, dict) for entry in certs):
        raise RemoteProtocolError("certs is not a list of at most 200 objects")
    known = ("friendly_name", "state", "serial", "error", "hooks")
    found = []
    for entry in certs:
        row: dict[str, Any] = {key: str(entry.get(key) or "")[:500] for key in known}
        row.update({key: _moment(entry.get(key)) for key in ("not_after", "renew_at")})
        found.append(row)
    return found


def _moment(value: object) -> int | None:
    """A time that can be shown, or none."""
    return value if type(value) is int and 0 <= value <= MAX_MOMENT else None


def _note_facts(connection: sa.Connection, unit_id: str, body: Mapping[str, Any]) -> None:
    """Host name and addresses, from which subject and names of certificates are completed."""
    device = find(connection, unit_id)
    if device is None:
        raise RemoteProtocolError("this device is not known", status_hint=403)
    values: dict[str, Any] = {}
    hostname = body.get("hostname")
    if hostname and not device.hostname_fixed and hostname != device.hostname:
        try:
            check_hostname_text(hostname, "hostname")
        except SettingsError as err:
            raise RemoteProtocolError(str(err)) from None
        if owner := owner_of(connection, hostname, unit_id):
            raise RemoteProtocolError(
                f"the host name {hostname} belongs to device {owner}; each device needs its own",
                status_hint=409,
            )
        values["hostname"] = hostname
    ips = body.get("ips")
    if ips is not None:
        if not isinstance(ips, list) or len(ips) > MAX_IPS:
            raise RemoteProtocolError(f"ips is not a list of at most {MAX_IPS} addresses")
        try:
            values["ips"] = json.dumps([_check_address(str(ip)) for ip in ips])
        except SettingsError as err:
            raise RemoteProtocolError(str(err)) from None
    if values:
        connection.execute(devices.update().where(devices.c.unit_id == unit_id).values(values))


def _check_address(text: str) -> str:
    found = ipaddress.ip_address(check_ip("ips", text))
    if found.is_loopback or found.is_unspecified or found.is_multicast:
        raise SettingsError("ips", f"{text!r} is no address of one device")
    return str(found)


def _text(body: Mapping[str, Any], key: str, limit: int) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise RemoteProtocolError(f"{key} is missing or not a text of at most {limit} characters")
    return value


def _management_csr(body: Mapping[str, Any], unit_id: str) -> pkcs10.CertificationRequest:
    try:
        data = base64.b64decode(_text(body, "csr", 90_000), validate=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError("csr is not base64") from None
    csr = pkcs10.parse(data)
    if csr.cn != unit_id:
        raise RemoteProtocolError("the common name of the request is not the unit ID")
    if csr.key_type not in MANAGEMENT_KEYS:
        raise RemoteProtocolError(f"a key of type {csr.key_type} cannot be used for the management identity")
    return csr


def _spend(connection: sa.Connection, token: str, unit_id: str, spki: str) -> bool:
    """Marks the token used, or says why it does not count (401). Is it the request again that it was used for?"""
    digest = hashlib.sha256(token.encode()).hexdigest()
    row = connection.execute(sa.select(tokens).where(tokens.c.token_sha256 == digest)).one_or_none()
    if row is None:
        raise _not_counted("this registration token is not known")
    if row.unit_id != unit_id:
        raise _not_counted("this registration token is for another device")
    moment = now()
    if row.used_at is not None:
        again = row.used_spki_sha256 == spki and moment - row.used_at <= TOKEN_REPEAT
        if again:
            return True
        raise _not_counted("this registration token was used already")
    if moment >= row.expires:
        raise _not_counted("this registration token has expired")
    connection.execute(
        tokens.update().where(tokens.c.token_sha256 == digest).values(used_at=moment, used_spki_sha256=spki)
    )
    return False


def _not_counted(text: str) -> Error:
    return RemoteProtocolError(
        f"{text}; an administrator makes a new one with `ca-proxy device token`", status_hint=401
    )


def _issued(context: Context, connection: sa.Connection, unit_id: str, spki: str) -> dict[str, Any] | None:
    """The answer to a registration once more: with the certificate of the first, if its CA still issues."""
    mine = management_certificates.c
    query = sa.select(management_certificates).where(
        mine.unit_id == unit_id,
        mine.spki_sha256 == spki,
        mine.ca == rollover.issuing(context, connection).number,
        mine.not_after > now(),
    )
    row = connection.execute(query.order_by(mine.not_before.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    return _answer(crypto.parse_certificate(row.certificate), rollover.standing(context).to_register)


def _issue(context: Context, connection: sa.Connection, unit_id: str, spki: bytes) -> dict[str, Any]:
    ca = rollover.issuing(context, connection)
    cert = crypto.parse_certificate(ca.issue_device(spki, unit_id))
    try:
        connection.execute(
            management_certificates.insert().values(
                sha256=cert.sha256.hex(),
                unit_id=unit_id,
                serial=cert.serial_hex,
                not_before=cert.not_before,
                not_after=cert.not_after,
                spki_sha256=cert.spki_sha256.hex(),
                certificate=cert.der,
                ca=ca.number,
            )
        )
    except IntegrityError:
        raise RemoteProtocolError("this device is not known", status_hint=403) from None
    connection.execute(
        management_certificates.delete().where(
            management_certificates.c.unit_id == unit_id, management_certificates.c.not_after < now()
        )
    )
    return _answer(cert, rollover.standing(context).with_cross)


def _answer(cert: crypto.Certificate, cas: str) -> dict[str, Any]:
    return {"certificate": cert.pem(), "ca": cas, "not_after": cert.not_after, "serial": cert.serial_hex}
