"""What a front end that ends TLS needs of the management CA: a certificate that devices trust, and whose they may have."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .. import crypto
from ..errors import CryptoError, StorageError
from . import cacerts
from .audit import actor
from .context import Context
from .managementca import check_server_name

__all__ = ["write"]

_PEM = serialization.Encoding.PEM


def write(context: Context, to: Path, names: list[str]) -> list[Path]:
    """New files in the directory `to`, which is made: server.pem (certificate for these names, the management CA, and the
    key; mode 0600), trust.pem (the management CA), clients.pem (CAs of devices' certificates). SettingsError, StorageError.
    """
    checked = tuple(dict.fromkeys(check_server_name(name) for name in names))
    ca = context.management_ca
    clients = [ca.pem]
    for der in cacerts.ever_known(context):
        try:
            clients.append(crypto.parse_certificate(der).pem())
        except CryptoError:
            continue  # one that OpenSSL does not take would keep the front end from starting
    key = ec.generate_private_key(ec.SECP256R1())
    # whoever reads it there starts without asking anybody
    plain = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server = ca.issue_server(key.public_key(), checked) + ca.pem + plain.decode()
    files = {
        "server.pem": (server, 0o600),
        "trust.pem": (ca.pem, 0o644),
        "clients.pem": ("".join(clients), 0o644),
    }
    try:
        to.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name, (text, mode) in files.items():
            _replace(to / name, text.encode(), mode)
    except OSError as err:
        raise StorageError(f"cannot write {err.filename or to}: {err.strerror}") from None
    with context.db.begin() as connection:
        context.db.record(connection, actor(), "front-files", "a server certificate for " + " ".join(checked))
    return [to / name for name in files]


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Whole, or as it was."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
