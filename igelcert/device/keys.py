"""Keys and requests of one certificate: made, kept while pending, read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from .. import crypto
from ..codec import pkcs10
from ..errors import CryptoError, Error
from ..model import CsrSpec
from ..settings import CertSettings
from . import files
from .store import Tree

__all__ = ["Live", "certificate", "fingerprint", "key_for_request", "live", "read_key"]

CHANGED = "the key password changed"
DAMAGED = "pkey.pem is damaged"


def fingerprint(cert: CertSettings, spec: CsrSpec) -> str:
    """What a certificate was made for: a new value means a new enrollment. Holds no secret."""
    enrollment = cert.enrollment
    straight = enrollment.est or enrollment.scep
    target = [enrollment.proto]
    if straight:
        target += [str(getattr(straight, name, "")) for name in ("server", "label", "url", "profile")]
    parts = [
        spec.key_type,
        spec.subject.attributes(),
        spec.san.hostname,
        spec.san.ip,
        spec.san.email,
        spec.san.uri,
        target,
    ]
    return crypto.sha256(json.dumps(parts).encode()).hex()


def read_key(path: str, password: bytes | None) -> crypto.Key:
    """The key of a file; CryptoError or StorageError, FileNotFoundError when it is not there."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise files.failure(err, "read", path) from None
    try:
        return crypto.Key.read(handle, password)
    finally:
        os.close(handle)


class Live:
    """The live certificate of a friendly name; `problem` says why it cannot stay, "" when it can.

    `usable`: its key can be read, so it can authenticate its own renewal.
    """

    def __init__(self, cert: crypto.Certificate | None, problem: str, *, usable: bool = True) -> None:
        self.cert = cert
        self.problem = problem
        self.usable = usable


def certificate(tree: Tree, name: str) -> crypto.Certificate | None:
    """The live certificate alone; None when there is none, or it is damaged. Unlike `live` it derives no key from
    a password, which takes longer than all else of a run that has nothing to do."""
    from ..codec.pem import decode_pem

    if tree.live(name) is None:
        return None
    pem = tree.read(name, "cert.pem")
    try:
        blocks = decode_pem(pem or b"")
        return crypto.parse_certificate(blocks[0]) if blocks else None
    except Error:
        return None


def live(tree: Tree, name: str, password: bytes | None) -> Live:
    """Reads the live generation and looks whether it is whole: certificate, key under the password, files."""
    if tree.live(name) is None:
        return Live(None, "")
    cert = certificate(tree, name)
    if cert is None:
        return Live(None, "cert.pem is missing or damaged")
    key_file = os.path.join(tree.path, name, "pkey.pem")
    try:
        with open(key_file, "rb") as file:
            head = file.readline(100)
        encrypted = b"ENCRYPTED" in head
        if encrypted is not (password is not None):
            return Live(cert, CHANGED if encrypted or b"PRIVATE KEY" in head else DAMAGED, usable=False)
        if read_key(key_file, password).spki() != cert.spki:
            return Live(cert, "pkey.pem does not belong to cert.pem", usable=False)
    except CryptoError as err:
        problem = CHANGED if err.code == "PASSWORD" else DAMAGED
        return Live(cert, problem, usable=False)
    except OSError:
        return Live(cert, "pkey.pem is missing", usable=False)
    if not _is_whole(tree.read(name, "cert.pfx") or b""):
        return Live(cert, "cert.pfx is missing or damaged")
    bundle = _certificates(tree.read(name, "cacerts.pem"))
    if not bundle or bundle != {der for file in tree.singles(name) for der in _certificates(file)}:
        return Live(cert, "cacerts.pem or cacerts/ is missing or damaged")
    return Live(cert, "")


def _is_whole(der: bytes) -> bool:
    """Is it as long as its first element says? What was cut off or overwritten is seen without the password."""
    size = int.from_bytes(der[2 : 2 + (der[1] & 0x7F)], "big") if len(der) > 4 and der[1] > 0x80 else -1
    return der[:1] == b"\x30" and size == len(der) - 2 - (der[1] & 0x7F)


def _certificates(pem: bytes | None) -> set[bytes]:
    """DER of the certificates of a file; none when one of them is damaged."""
    from ..codec.pem import decode_pem

    try:
        found = set(decode_pem(pem or b""))
        for der in found:
            crypto.parse_certificate(der)
    except Error:
        return set()
    return found


def key_for_request(
    tree: Tree,
    cert: CertSettings,
    spec: CsrSpec,
    mark: str,
    generator: str,
    secret: Callable[[], crypto.Password | None],
) -> tuple[crypto.Key, bytes, bool]:
    """(key, CSR, kept): those of the pending request for just this, else new ones, on disk before they leave.

    `mark`: fingerprint of what is asked for. `generator`: of RSA keys. `secret`: what a new key is written under. A
    request that cannot be read back is dropped.
    """
    password = cert.key.password
    found = tree.pending(cert.friendly_name)
    if found and found[0].get("spec") == mark:
        try:
            key = read_key(os.path.join(tree.pending_dir(cert.friendly_name), "pkey.pem"), password)
            request = pkcs10.parse(found[1], verify=False)  # our own; it must be of the key beside it
            if request.spki == key.spki() and (request.challenge or "") == spec.challenge:
                return key, found[1], True
        except (Error, OSError):
            pass
    key = crypto.Key.generate(cert.key.type, generator=generator)
    csr = pkcs10.build(spec, key)
    tree.put_pending(cert.friendly_name, {"spec": mark}, csr, lambda fd: key.write(fd, secret()))
    return key, csr, False
