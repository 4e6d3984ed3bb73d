"""The TLS side towards devices: our certificate, and whose client certificates may appear.

One SSLContext serves all connections: making one for each costs a third of the handshakes a second. It is
made anew when our certificate is due or a CA became known.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .. import crypto
from ..errors import CryptoError, Error, SettingsError, StorageError
from . import cacerts
from .context import Context
from .tls import load_pair

__all__ = ["ServerTls"]

log = logging.getLogger("igelcert.proxy")

LOOK_SECONDS = 1.0
_PEM = serialization.Encoding.PEM
_PKCS8 = serialization.PrivateFormat.PKCS8


class ServerTls:
    """current(): the context for a new connection. Safe for threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._trust = -1
        self._changes = 0
        self._renew_at = 0.0
        self._looked = 0.0

    def current(self) -> ssl.SSLContext:
        # while one looks at a database that does not answer, handshakes go on with what there is
        if not self._lock.acquire(blocking=self._tls is None):
            assert self._tls is not None
            return self._tls
        try:
            if self._tls is None:
                self._make(cacerts.trust_version(self._context))
            elif (
                time.monotonic() - self._looked > LOOK_SECONDS or self._changes != self._context.trust_changes
            ):
                self._looked, self._changes = time.monotonic(), self._context.trust_changes
                try:
                    trust = cacerts.trust_version(self._context)
                    if trust != self._trust or time.time() >= self._renew_at:
                        self._make(trust)
                except Error as err:  # what there is still serves
                    log.error("the TLS settings cannot be made anew: %s", err)
            assert self._tls is not None
            return self._tls
        finally:
            self._lock.release()

    def _make(self, trust: int) -> None:
        chain, key, password = self._pair()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.options |= ssl.OP_NO_RENEGOTIATION
        tls.num_tickets = 1  # each holds the client's certificate, and devices use none
        tls.verify_mode = ssl.CERT_OPTIONAL  # registration and /cacerts are anonymous
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        plain = serialization.load_pem_private_key(key, password)
        load_pair(
            tls,
            chain,
            lambda fd, secret: _write(
                fd, plain.private_bytes(_PEM, _PKCS8, serialization.BestAvailableEncryption(secret))
            ),
        )
        tls.load_verify_locations(cadata=self._context.management_ca.pem)
        for der in cacerts.ever_known(self._context):
            try:
                # one by one: a certificate that OpenSSL refuses does not take the others with it
                tls.load_verify_locations(cadata=crypto.parse_certificate(der).pem())
            except (ssl.SSLError, CryptoError) as err:
                log.warning("a CA certificate is passed over as trust: %s", err)
        self._tls, self._trust = tls, trust

    def _pair(self) -> tuple[str, bytes, bytes]:
        """Certificate, encrypted key and its password; a new pair when there is none or it is due."""
        path = self._context.data / "server.pem"
        password = self._context.sealer.derive("server key")
        names = self._context.config.hostnames
        if not names:
            raise SettingsError("proxy.toml: hostnames", "is empty: devices would not know this server")
        try:
            text = path.read_bytes()
            cert = x509.load_pem_x509_certificate(text)
            start, end = cert.not_valid_before_utc.timestamp(), cert.not_valid_after_utc.timestamp()
            self._renew_at = end - (end - start) / 3
            if time.time() < self._renew_at and self._fits(cert, names):
                return self._with_ca(cert), text, password
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as err:
            log.warning("%s is not usable and is made anew: %s", path, err)
        return self._new_pair(path, password, names)

    def _new_pair(self, path: Path, password: bytes, names: tuple[str, ...]) -> tuple[str, bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        text = self._context.management_ca.issue_server(key.public_key(), names).encode()
        text += key.private_bytes(_PEM, _PKCS8, serialization.BestAvailableEncryption(password))
        fresh = path.with_suffix(".new")
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as err:
            raise StorageError(f"cannot write {path}: {err.strerror}") from None
        cert = x509.load_pem_x509_certificate(text)
        start, end = cert.not_valid_before_utc.timestamp(), cert.not_valid_after_utc.timestamp()
        self._renew_at = end - (end - start) / 3
        log.info("new server certificate for %s, until %s", " ".join(names), cert.not_valid_after_utc.date())
        return self._with_ca(cert), text, password

    def _fits(self, cert: x509.Certificate, names: tuple[str, ...]) -> bool:
        """Is it of this CA, with these names?"""
        try:
            cert.verify_directly_issued_by(self._context.management_ca.certificate)
            san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:
            return False
        return [str(name.value) for name in san] == list(names)

    def _with_ca(self, cert: x509.Certificate) -> str:
        """With the CA behind it: a device that has only its fingerprint finds it there."""
        return cert.public_bytes(_PEM).decode() + self._context.management_ca.pem


def _write(fd: int, data: bytes) -> None:
    os.write(fd, data)
