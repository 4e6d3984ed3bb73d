"""Pass-through: pkiMessages of a device's own SCEP client, relayed whole to a SCEP CA.

They are encrypted for the CA, so the proxy knows who sends them and cannot see what they ask for. Off unless an
administrator allows it for a profile. The device is known by its management certificate, or by a secret segment of the
path that is made for it and can be taken back.
"""

from __future__ import annotations

import hashlib
import logging
import secrets

import sqlalchemy as sa

from .. import crypto
from ..codec import pkimessage, scep
from ..codec.http import Response, plain_line
from ..codec.pkimessage import Message
from ..errors import Error, RemoteProtocolError, TransportError
from . import devices, enrollments
from .audit import actor
from .context import Context
from .database import now
from .devices import Device
from .schema import scep_secrets
from .upstream import ScepUpstream

__all__ = ["device_of", "new_secret", "relay"]

log = logging.getLogger("igelcert.proxy")

OPERATION = "scep pass-through"
KINDS = {pkimessage.PKCS_REQ, pkimessage.RENEWAL_REQ, pkimessage.CERT_POLL}
_STATES = {
    pkimessage.SUCCESS: "issued",
    pkimessage.PENDING: "pending",
    pkimessage.FAILURE: "refused",
}


# ---- who ----------------------------------------------------------------------------------------


def new_secret(context: Context, unit_id: str, *, revoke: bool = False) -> str | None:
    """A new secret in place of any older one; None when it only ends the old one. Kept as a hash."""
    secret = None if revoke else secrets.token_urlsafe(24)
    with context.db.begin() as connection:
        devices.must_find(connection, unit_id)
        connection.execute(scep_secrets.delete().where(scep_secrets.c.unit_id == unit_id))
        if secret is not None:
            connection.execute(
                scep_secrets.insert().values(secret_sha256=_hash(secret), unit_id=unit_id, created=now())
            )
        context.db.record(connection, actor(), "device scep-url", f"{unit_id}{' revoked' if revoke else ''}")
    return secret


def device_of(context: Context, secret: str) -> Device:
    """The device of a secret; RemoteProtocolError 403."""
    query = sa.select(scep_secrets.c.unit_id).where(scep_secrets.c.secret_sha256 == _hash(secret))
    with context.db.read() as connection:
        unit_id = connection.execute(query).scalar()
    found = devices.get(context, unit_id) if unit_id is not None else None
    if found is None:
        raise RemoteProtocolError("this SCEP address is not known here, or was taken back", status_hint=403)
    return found


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


# ---- what ---------------------------------------------------------------------------------------


def relay(context: Context, device: Device, label: str, method: str, query: str, body: bytes) -> Response:
    """The CA's answer to an operation of the device's client. RemoteProtocolError, TransportError."""
    operation, text = scep.read_query(query)
    upstream = context.upstreams.current()
    if not isinstance(upstream, ScepUpstream):
        raise RemoteProtocolError("the CA behind this proxy does not speak SCEP", status_hint=404)
    if operation == "PKIOperation":
        return _operate(context, upstream, device, label, scep.read_operation(method, text, body))
    if method == "POST":
        raise RemoteProtocolError("use GET", status_hint=405)
    if operation not in {"GetCACaps", "GetCACert", "GetNextCACert"}:
        raise RemoteProtocolError("this operation is not relayed")
    with context.upstreams.slot():
        return _bare(upstream.ask(operation))


def _operate(context: Context, upstream: ScepUpstream, device: Device, label: str, data: bytes) -> Response:
    message = pkimessage.read(data, enclosed=True, weak=True)
    if message.kind not in KINDS:
        raise RemoteProtocolError(f"messageType {message.kind} is not relayed")
    track = enrollments.Track(device.unit_id, label, OPERATION, message.transaction_id, _subject(message))
    if not enrollments.track(context, track, "running", config_version=upstream.config.version):
        raise RemoteProtocolError("another device uses this transactionID", status_hint=403)
    try:
        with context.upstreams.slot():
            response, reply = upstream.relay(data, message)
    except TransportError as err:
        enrollments.track(context, track, "failed", str(err))
        raise
    except Error as err:
        enrollments.track(context, track, "failed", str(err))
        log.warning("%s: the CA's answer is not usable: %s", device.unit_id, err)
        raise RemoteProtocolError(f"the CA's answer is not usable: {err}", status_hint=502) from None
    if isinstance(reply, Message):
        assert reply.status is not None
        reason = scep.refusal(reply) if reply.status == pkimessage.FAILURE else ""
        enrollments.track(context, track, _STATES[reply.status], reason)
    else:
        enrollments.track(context, track, "refused", reply.reason)
    return _bare(response)


def _subject(message: Message) -> str:
    """Of the certificate that signs: mostly self-signed, with the subject that is asked for."""
    try:
        return plain_line(crypto.parse_certificate(message.signer).subject_text)
    except Error:
        return ""


def _bare(response: Response) -> Response:
    """Status, type and body: other headers are between the proxy and its CA."""
    kind = response.header("Content-Type")
    return Response(response.status, (("Content-Type", kind),) if kind else (), response.body)
