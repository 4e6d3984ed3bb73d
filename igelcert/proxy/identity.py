"""Who is asking: the TLS client certificate, from the connection or from a front end that is trusted.

TLS (ours or the front end's) has proven that the client holds the key. Whether the certificate still counts
is looked up with every request.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .. import crypto
from ..codec.http import plain_line
from ..errors import CryptoError, Error, RemoteProtocolError
from . import devices, enrollments, rollover
from .addresses import among, is_ip
from .context import Context
from .database import now
from .devices import Device

__all__ = ["Client", "address_of", "client_of", "is_frontend", "named"]

DATES_KEPT = 16_384  # certificates, of less than a kilobyte each


class Client:
    """certificate: DER, or None for an anonymous client."""

    __slots__ = ("_context", "certificate")

    def __init__(self, context: Context, certificate: bytes | None) -> None:
        self._context = context
        self.certificate = certificate

    def device(self) -> Device:
        """The device by its management certificate; RemoteProtocolError 401 or 403."""
        if self.certificate is None:
            raise RemoteProtocolError(
                "a management certificate is needed: register this device", status_hint=401
            )
        found = devices.by_certificate(self._context, self.certificate)
        if found is None:
            raise RemoteProtocolError(
                "this device is not known to the proxy: it was removed, or registered anew", status_hint=403
            )
        return found

    def renewing_device(self) -> tuple[Device, crypto.Certificate | None]:
        """The device by its management certificate, or by the certificate that it renews, which is then given."""
        if self.certificate is None:
            return self.device(), None
        if (owner := enrollments.owner_of(self._context, self.certificate)) is None:
            return self.device(), None
        found = devices.get(self._context, owner)
        if found is None:
            return self.device(), None
        return found, crypto.parse_certificate(self.certificate)


def named(context: Context, environ: Mapping[str, Any]) -> str:
    """For the log: the unit ID in the management certificate that a client came with, as TLS has proven it; "-" without.
    That certificate may count no more: of a removed device, or from after the backup that was restored."""
    try:
        certificate = _certificate(context, environ)
        if certificate is None:
            return "-"
        cert = crypto.parse_certificate(certificate)
        at = max(cert.not_before, min(now(), cert.not_after))
        crypto.verify_chain(cert.der, [], rollover.standing(context).roots, at, purpose="client")
    except Error:
        return "-"
    return plain_line(cert.cn, 64) or "-"


def client_of(context: Context, environ: Mapping[str, Any]) -> Client:
    """The client of a request; RemoteProtocolError for a header that cannot be read or a certificate out of date."""
    certificate = _certificate(context, environ)
    if certificate is not None:
        _check_dates(certificate)
    return Client(context, certificate)


def is_frontend(context: Context, address: str) -> bool:
    """Is the address one of a TLS front end whose headers count?"""
    return among(context.config.trusted_frontends, address)


def address_of(context: Context, environ: Mapping[str, Any]) -> str:
    """Where a request comes from; of a trusted front end, what it says last (X-Forwarded-For)."""
    remote = str(environ.get("REMOTE_ADDR") or "unknown")
    if is_frontend(context, remote):
        said = str(environ.get("HTTP_X_FORWARDED_FOR", "")).rpartition(",")[2].strip()
        return said if is_ip(said) else remote
    return remote


def _certificate(context: Context, environ: Mapping[str, Any]) -> bytes | None:
    if is_frontend(context, str(environ.get("REMOTE_ADDR", ""))):
        return _from_header(str(environ.get("HTTP_CLIENT_CERT", "")))
    return _from_socket(environ.get("gunicorn.socket"))


def _from_header(value: str) -> bytes | None:
    """RFC 9440 2.1: a Byte Sequence of RFC 8941, base64 between colons."""
    text = value.strip()
    if not text:
        return None
    if len(text) > 16_384 or len(text) < 2 or text[0] != ":" or text[-1] != ":":
        raise RemoteProtocolError("the Client-Cert header of the front end is not a byte sequence (RFC 9440)")
    try:
        return base64.b64decode(text[1:-1], validate=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError("the Client-Cert header of the front end is not base64") from None


def _from_socket(connection: Any) -> bytes | None:
    if not hasattr(connection, "getpeercert"):
        return None
    found = connection.getpeercert(True)
    return bytes(found) if found else None


def _check_dates(certificate: bytes) -> None:
    try:
        start, end = _dates(certificate)
    except CryptoError:
        raise RemoteProtocolError("the client certificate cannot be read", status_hint=401) from None
    if not start <= now() <= end:
        raise RemoteProtocolError("the client certificate is not valid at this time", status_hint=401)


@lru_cache(DATES_KEPT)
def _dates(certificate: bytes) -> tuple[int, int]:
    """notBefore and notAfter. Reading a certificate takes as long as a look into the database."""
    cert = crypto.parse_certificate(certificate)
    return cert.not_before, cert.not_after
