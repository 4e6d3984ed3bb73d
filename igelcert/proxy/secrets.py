"""Secrets at rest: AES-256-GCM under the master key, which never lies in the database."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import CheckError, StorageError

__all__ = ["Sealer", "make_master_key"]

KEY_BYTES = 32
NONCE_BYTES = 12


def make_master_key(path: Path) -> None:
    """A new master key, mode 0600; never replaces one."""
    _write(path, os.urandom(KEY_BYTES))


def _write(path: Path, key: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise StorageError(f"cannot write the master key {path}: {err.strerror}") from None


class Sealer:
    """Seals and opens. The place (table, column, key) is bound in: a sealed value moved elsewhere fails."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise StorageError("the master key is not 32 bytes long")
        self._key = key

    @classmethod
    def open(cls, path: Path) -> Sealer:
        """From a master key file, which nobody but its owner may read."""
        try:
            mode = path.stat().st_mode
            text = path.read_bytes()
        except OSError as err:
            raise StorageError(f"cannot read the master key {path}: {err.strerror}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise StorageError(f"the master key {path} is open to others", hint=f"chmod 600 {path}")
        try:
            return cls(base64.b64decode(text.strip(), validate=True))
        except ValueError:
            raise StorageError(f"{path} is not a master key") from None

    def keep(self, path: Path) -> None:
        """Writes the master key to another place, mode 0600; never replaces one."""
        _write(path, self._key)

    def seal(self, plain: bytes, place: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._key).encrypt(nonce, plain, place.encode())

    def unseal(self, sealed: bytes, place: str) -> bytes:
        """The plain bytes; CheckError when they were sealed under another key or for another place."""
        try:
            return AESGCM(self._key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError):
            raise CheckError(
                f"the secret in {place} does not open with this master key",
                hint="is it the master.key of this database?",
            ) from None

    def derive(self, purpose: str) -> bytes:
        """A password (URL-safe base64 of 32 bytes) for that purpose alone."""
        key = HKDF(hashes.SHA256(), KEY_BYTES, None, purpose.encode()).derive(self._key)
        return base64.urlsafe_b64encode(key)

    def __repr__(self) -> str:
        return "<Sealer>"
