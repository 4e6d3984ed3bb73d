"""Secrets at rest: AES-256-GCM under a master key, which never lies in the database.

A master key file holds one key, and two while the key is changed (rekeying.py). A sealed value names its key. Which key
seals, the database says, so that all proxies on it change over in one transaction; a proxy that meets a key
which it does not know looks into its file again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import threading
from pathlib import Path

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import CheckError, StorageError
from .database import Database

__all__ = ["CURRENT", "Sealer", "key_of_sealed", "make_master_key"]

CURRENT = (
    "master_key"  # in meta: the name of the key that seals; without an entry it is the first of the file
)
KEY_BYTES = 32
NONCE_BYTES = 12
NAME_BYTES = 8
KEYS_MAX = 8  # of a file
_MARK = b"IGK1"  # begins a sealed value that names its key; older ones are nonce and ciphertext alone
_HEAD = len(_MARK) + NAME_BYTES


def make_master_key(path: Path) -> None:
    """A new master key, mode 0600; never replaces one."""
    _write_new(path, _text([os.urandom(KEY_BYTES)]))


def key_of_sealed(sealed: bytes) -> str:
    """The name of the key that the value says it is under; "" for one from before keys had names."""
    return sealed[len(_MARK) : _HEAD].hex() if sealed.startswith(_MARK) and len(sealed) > _HEAD else ""


class Sealer:
    """Seals and opens. The place (table, column, key) is bound in: a sealed value moved elsewhere fails. Safe for
    threads. A key that was read once is kept by this process: what it read from the database before a change still opens."""

    __slots__ = ("_keys", "_lock", "_path", "_seen")

    def __init__(self, path: Path, text: bytes) -> None:
        """path: of the file; text: what it holds. StorageError."""
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._keys = _parse(path, text)

    @classmethod
    def open(cls, path: Path) -> Sealer:
        """From a master key file, which nobody but its owner may read."""
        made = cls(path, _read(path))
        made._seen = _signature(path)
        return made

    # ---- the file -------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Of the keys that the file holds now, the first one first."""
        self._look_again()
        return tuple(_parse(self._path, _read(self._path)))

    @property
    def changed(self) -> float:
        """When the file was, seconds since 1970."""
        return _signature(self._path)[1] / 1e9

    def bears(self, name: str) -> bool:
        """Is that key known here? Looks into the file again when it is not."""
        if name not in self._keys:
            self._look_again()
        return name in self._keys

    def add_new(self) -> str:
        """Draws a key and puts it behind those of the file; its name."""
        key = os.urandom(KEY_BYTES)
        self._replace([*self._of_file().values(), key])
        return _name(key)

    def take_over(self, other: Sealer) -> int:
        """Puts the keys of another file behind ours; how many are new here."""
        mine = self._of_file()
        fresh = {name: key for name, key in other._of_file().items() if name not in mine}
        if fresh:
            self._replace([*mine.values(), *fresh.values()])
        return len(fresh)

    def keep_only(self, name: str) -> int:
        """Takes all other keys out of the file; how many went."""
        mine = self._of_file()
        if list(mine) != [name]:
            self._replace([mine[name]])
        return len(mine) - 1

    def keep(self, path: Path) -> None:
        """Writes the keys to another place, mode 0600; never replaces one."""
        _write_new(path, self.text())

    def text(self) -> bytes:
        """What the file holds: a secret."""
        return _text(list(self._of_file().values()))

    def _of_file(self) -> dict[str, bytes]:
        return _parse(self._path, _read(self._path)) if self._seen is not None else dict(self._keys)

    def _replace(self, keys: list[bytes]) -> None:
        if len(keys) > KEYS_MAX:
            raise StorageError(
                f"{self._path} would hold more than {KEYS_MAX} keys", hint="run: ca-proxy rekey --drop"
            )
        fresh = self._path.with_name(f".{self._path.name}.new")
        try:
            fresh.unlink(missing_ok=True)  # of a run that was cut
            owner = self._path.stat()
            _write_new(fresh, _text(keys), (owner.st_uid, owner.st_gid))
            fresh.replace(self._path)
            handle = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as err:
            raise StorageError(f"cannot write the master key {self._path}: {err.strerror}") from None
        self._look_again()

    def _look_again(self) -> None:
        if self._seen is None:
            return
        with self._lock:
            if (seen := _signature(self._path)) != self._seen:
                self._keys = {**_parse(self._path, _read(self._path)), **self._keys}
                self._seen = seen

    # ---- values ---------------------------------------------------------------------------------

    def current(self, connection: sa.Connection) -> str:
        """The name of the key that seals, as the transaction sees it."""
        return Database.meta_in(connection, CURRENT) or next(iter(self._of_file()))

    def seal(self, connection: sa.Connection, plain: bytes, place: str) -> bytes:
        """connection: the transaction that writes the value. StorageError when this proxy lacks the key that seals."""
        name = self.current(connection)
        if not self.bears(name):
            raise _lacking(name)
        nonce = os.urandom(NONCE_BYTES)
        return (
            _MARK
            + bytes.fromhex(name)
            + nonce
            + AESGCM(self._keys[name]).encrypt(nonce, plain, place.encode())
        )

    def unseal(self, sealed: bytes, place: str) -> bytes:
        """The plain bytes; CheckError when they were sealed under another key or for another place."""
        name = key_of_sealed(sealed)
        if name and self.bears(name):
            found = _open(self._keys[name], sealed[_HEAD:], place)
        else:
            opened = (_open(key, sealed, place) for key in self._keys.values())
            found = next((plain for plain in opened if plain is not None), None)
        if found is None:
            raise CheckError(
                f"the secret in {place} does not open with this master key",
                hint="is it the master.key of this database? after a change of it: ca-proxy rekey --add FILE",
            )
        return found

    def derive(self, purpose: str) -> list[bytes]:
        """Passwords (URL-safe base64 of 32 bytes) for that purpose alone: one of each key, the file's first first."""
        self._look_again()
        found = []
        for name in dict.fromkeys([*self._of_file(), *self._keys]):
            key = HKDF(hashes.SHA256(), KEY_BYTES, None, purpose.encode()).derive(self._keys[name])
            found.append(base64.urlsafe_b64encode(key))
        return found

    def __repr__(self) -> str:
        return "<Sealer>"


def _open(key: bytes, value: bytes, place: str) -> bytes | None:
    try:
        return AESGCM(key).decrypt(value[:NONCE_BYTES], value[NONCE_BYTES:], place.encode())
    except (InvalidTag, ValueError):
        return None


def _lacking(name: str) -> StorageError:
    return StorageError(
        f"this proxy's master.key lacks the key {name}, under which the database's secrets are sealed now",
        hint="copy master.key from a proxy that has it, and run here: ca-proxy rekey --add FILE",
    )


# ---- files --------------------------------------------------------------------------------------


def _name(key: bytes) -> str:
    return hashlib.sha256(b"name of an igelcert master key" + key).digest()[:NAME_BYTES].hex()


def _text(keys: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(key) + b"\n" for key in keys)


def _parse(path: Path, text: bytes) -> dict[str, bytes]:
    """Keys by their names, in the order of the file."""
    try:
        keys = [base64.b64decode(line.strip(), validate=True) for line in text.strip().split(b"\n")]
    except ValueError:
        raise StorageError(f"{path} is not a master key") from None
    if len(keys) > KEYS_MAX or any(len(key) != KEY_BYTES for key in keys):
        raise StorageError(f"{path} is not a master key: it holds no key of {KEY_BYTES} bytes in each line")
    return {_name(key): key for key in keys}


def _signature(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as err:
        raise StorageError(f"cannot read the master key {path}: {err.strerror}") from None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as err:
        raise StorageError(f"cannot read the master key {path}: {err.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StorageError(f"the master key {path} is open to others", hint=f"chmod 600 {path}")
    return text


def _write_new(path: Path, text: bytes, owner: tuple[int, int] | None = None) -> None:
    """Mode 0600; never replaces a file. owner: user and group, where they are others than ours."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(handle, *owner)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise StorageError(f"cannot write the master key {path}: {err.strerror}") from None
