"""The TLS side towards devices: our certificate, and whose client certificates may appear.

One SSLContext serves all connections: making one for each costs a third of the handshakes a second. It is
made anew when our certificate is due, a CA became known, or the management CAs changed (rollover.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .. import crypto
from ..errors import CryptoError, Error, SettingsError, StorageError
from . import cacerts, rollover
from .context import Context
from .rollover import Standing
from .tls import Socket, load_pair
from .turns import waiting

__all__ = ["ServerTls"]

log = logging.getLogger("igelcert.proxy")

LOOK_SECONDS = 1.0
CHANGED_SECONDS = 1.0  # for which a handshake waits for another's look at what has changed
_PURPOSE = "server key"
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
        # while one looks at a database that does not answer, handshakes go on with what there is; where others are known
        # to count now, they wait for it, for a moment
        if not self._lock.acquire(blocking=False):
            with waiting():
                ours = self._tls is None or self._changes != self._context.trust_changes
                ours = ours and self._lock.acquire(timeout=-1 if self._tls is None else CHANGED_SECONDS)
            if not ours:
                assert self._tls is not None
                return self._tls
        try:
            counted = self._context.trust_changes
            if self._tls is None:
                self._make(cacerts.trust_version(self._context))
            elif time.monotonic() - self._looked > LOOK_SECONDS or self._changes != counted:
                self._looked = time.monotonic()
                try:
                    trust = cacerts.trust_version(self._context)
                    if trust != self._trust or time.time() >= self._renew_at:
                        self._make(trust)
                except Error as err:  # what there is still serves
                    log.error("the TLS settings cannot be made anew: %s", err)
            self._changes = counted
            assert self._tls is not None
            return self._tls
        finally:
            self._lock.release()

    def _make(self, trust: int) -> None:
        with _directory_alone(self._context.data):
            # what another process read before must not be written over this
            cas = rollover.standing(self._context)
            chain, plain = self._pair(cas)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.sslsocket_class = Socket
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.options |= ssl.OP_NO_RENEGOTIATION
        tls.num_tickets = 1  # each holds the client's certificate, and devices use none
        tls.verify_mode = ssl.CERT_OPTIONAL  # registration and /cacerts are anonymous
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        load_pair(
            tls,
            chain,
            lambda fd, secret: _write(
                fd, plain.private_bytes(_PEM, _PKCS8, serialization.BestAvailableEncryption(secret))
            ),
        )
        tls.load_verify_locations(cadata=cas.pem)
        for der in cacerts.ever_known(self._context):
            try:
                # one by one: a certificate that OpenSSL refuses does not take the others with it
                tls.load_verify_locations(cadata=crypto.parse_certificate(der).pem())
            except (ssl.SSLError, CryptoError) as err:
                log.warning("a CA certificate is passed over as trust: %s", err)
        self._tls, self._trust = tls, trust

    def _pair(self, cas: Standing) -> tuple[str, ec.EllipticCurvePrivateKey]:
        """Certificate with what stands behind it, and key; a new pair when there is none or it is due."""
        rollover.keep_trust(self._context.data, cas.pem)
        path = self._context.data / "server.pem"
        names = self._context.config.hostnames
        if not names:
            raise SettingsError("proxy.toml: hostnames", "is empty: devices would not know this server")
        try:
            text = path.read_bytes()
            cert, key, again = self._read(text)
            if time.time() < self._note_renewal(cert) and self._fits(cert, cas, names):
                if again:  # the master key was changed
                    self._keep(path, cert, key)
                return cert.public_bytes(_PEM).decode() + cas.behind, key
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as err:
            log.warning("%s is not usable and is made anew: %s", path, err)
        return self._new_pair(path, cas, names)

    def _read(self, text: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, bool]:
        """Certificate, key, and whether it is encrypted under another master key than the first. ValueError."""
        cert = x509.load_pem_x509_certificate(text)
        for number, password in enumerate(self._context.sealer.derive(_PURPOSE)):
            with contextlib.suppress(ValueError):
                key = serialization.load_pem_private_key(text, password)
                if isinstance(key, ec.EllipticCurvePrivateKey):
                    return cert, key, number > 0
        raise ValueError("its key does not open with the master key")

    def _note_renewal(self, cert: x509.Certificate) -> float:
        start, end = cert.not_valid_before_utc.timestamp(), cert.not_valid_after_utc.timestamp()
        self._renew_at = end - (end - start) / 3
        return self._renew_at

    def _new_pair(
        self, path: Path, cas: Standing, names: tuple[str, ...]
    ) -> tuple[str, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = self._context.management_ca.issue_server(key.public_key(), names)
        cert = x509.load_pem_x509_certificate(pem.encode())
        self._keep(path, cert, key)
        self._note_renewal(cert)
        log.info("new server certificate for %s, until %s", " ".join(names), cert.not_valid_after_utc.date())
        return pem + cas.behind, key

    def _keep(self, path: Path, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        password = self._context.sealer.derive(_PURPOSE)[0]
        text = cert.public_bytes(_PEM)
        text += key.private_bytes(_PEM, _PKCS8, serialization.BestAvailableEncryption(password))
        fresh = path.with_suffix(f".new{os.getpid()}")  # other processes may do the same
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as err:
            raise StorageError(f"cannot write {path}: {err.strerror}") from None

    def _fits(self, cert: x509.Certificate, cas: Standing, names: tuple[str, ...]) -> bool:
        """Is it of the CA that issues now, with these names?"""
        try:
            cert.verify_directly_issued_by(cas.root)
            san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:
            return False
        return [str(name.value) for name in san] == list(names)


@contextlib.contextmanager
def _directory_alone(data: Path) -> Iterator[None]:
    """One process at a time; another one waits. A process that dies waits for nobody and holds nothing."""
    handle = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(fd: int, data: bytes) -> None:
    os.write(fd, data)
