"""TLS towards servers and what its failures are called: what the resident agent shares with `transport`."""

from __future__ import annotations

import socket
import ssl
import time

from ..errors import SettingsError, TransportError

__all__ = ["TIMEOUT", "client_context", "failure"]

TIMEOUT = 20.0  # seconds of silence


def client_context(
    *, ca_pem: str | None = None, ca_dir: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """A TLS 1.2+ client context that trusts the CAs given as PEM text or as a hashed directory.

    verify False is for one thing: fetching CA certificates whose fingerprint is checked afterwards.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        # RFC 7030 4.1.1: bootstrap; nothing is sent, and what comes is checked against a fingerprint
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate may be the configured anchor
    try:
        context.load_verify_locations(cadata=ca_pem or None, capath=ca_dir)
    except (ssl.SSLError, OSError, TypeError) as err:
        raise SettingsError("ca_file", f"holds no usable CA certificate: {err}") from None
    return context


def failure(err: OSError, host: str, name: str) -> TransportError:
    """The error of a connection in words. name: HOST:PORT as it is shown."""
    if isinstance(err, socket.gaierror):
        return TransportError(
            f"the name {host} does not resolve", link="name", hint="check the name and the DNS server"
        )
    if isinstance(err, ssl.SSLCertVerificationError):
        return TransportError(
            f"the certificate of {name} is not trusted: {_plain(err.verify_message).rstrip('.')}",
            link="tls-trust",
            hint=_trust_hint(err.verify_code),
        )
    if isinstance(err, TimeoutError):
        return TransportError(
            f"{name} does not answer in time", link="timeout", hint="look whether it is overloaded"
        )
    if isinstance(err, ssl.SSLError):
        return _tls_failure(err, name)
    if isinstance(err, ConnectionRefusedError):
        return TransportError(
            f"nothing listens on {name}", link="tcp", hint="check host and port; is the server running?"
        )
    if isinstance(err, (ConnectionResetError, BrokenPipeError)):
        return TransportError(f"{name} closed the connection without an answer", link="closed")
    return TransportError(f"{name} cannot be reached: {_plain(str(err))}", link="tcp")


def _trust_hint(code: int) -> str:
    """By OpenSSL's X509_V_ERR_: 9 not yet valid, 10 expired, 62 and 64 another host name or address."""
    if code in {9, 10}:
        shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return f"is this device's clock right? it says {shown}"
    if code in {62, 64}:
        return "give the server's name as its certificate has it"
    return "compare the CA that this device trusts with the one that issued the server's certificate"


def _tls_failure(err: ssl.SSLError, name: str) -> TransportError:
    reason = (err.reason or "").upper()
    if isinstance(err, ssl.SSLEOFError) or "EOF" in reason:
        return TransportError(f"{name} closed the connection without an answer", link="closed")
    if "ALERT" in reason and any(word in reason for word in ("CERT", "UNKNOWN_CA", "ACCESS_DENIED")):
        return TransportError(
            f"{name} refused our client certificate: {reason.replace('_', ' ').lower()}",
            link="tls-client",
            hint="register the device again, or look why the server does not accept it",
        )
    if "WRONG_VERSION" in reason or "HTTP_REQUEST" in reason or "UNKNOWN_PROTOCOL" in reason:
        return TransportError(
            f"{name} does not speak TLS", link="tls", hint="check the port: is it plain HTTP?"
        )
    return TransportError(
        f"TLS with {name} failed: {reason.replace('_', ' ').lower() or 'unknown reason'}", link="tls"
    )


def _plain(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text[:300]).split())
