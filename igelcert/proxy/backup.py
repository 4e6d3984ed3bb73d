"""`ca-proxy backup` and `restore`: one file that a proxy comes back from on another machine.

The file is a tar archive: manifest.json, which says what belongs to it and the SHA-256 of each, the configuration, the
database, and the master key, encrypted under a passphrase (scrypt, AES-256-GCM), or kept apart. Secrets in the database stay
sealed. With PostgreSQL the database is not in it: PostgreSQL's own tools save it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ..errors import CheckError, ConflictError, SettingsError, StorageError
from ..words import shown
from . import rekeying, rollover, schema
from .audit import actor
from .context import Context
from .database import Database, now
from .initialise import fresh_place
from .managementca import ManagementCa
from .secrets import Sealer

__all__ = ["Saved", "restore", "save"]

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE, CONFIGURATION, KEY = "proxy.db", "proxy.toml", "master.key.encrypted"
MEMBERS = (MANIFEST, CONFIGURATION, DATABASE, KEY)
SMALL = 1 << 20  # octets that anything but the database may have
CHUNK = 1 << 20
COST = 1 << 16  # scrypt: 64 MiB of memory
_PURPOSE = b"igelcert backup: master key"


@dataclass(frozen=True, slots=True)
class Saved:
    """What a backup holds. key: the master key is in it; database: it is in it (the embedded one); schema: its version."""

    created: int
    schema: str
    key: bool
    database: bool
    devices: int


# ---- saving -------------------------------------------------------------------------------------


def save(context: Context, to: Path, passphrase: str | None) -> Saved:
    """Writes the file while the proxy serves: whole, mode 0600, or not at all; it never replaces one.

    passphrase: the master key goes with it, encrypted under that; None: it is kept apart. What was written is read
    again before it gets its name. StorageError, CheckError.
    """
    if to.exists():
        raise StorageError(f"{to} is there already", hint="name another file: a backup never replaces one")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as name:
            place = Path(name)
            saved = _gather(context, place, passphrase)
            whole = place / "whole"
            _pack(place, whole, saved)
            whole.replace(to)
        _flush(to.parent)
    except OSError as err:
        raise StorageError(f"cannot write {to}: {err.strerror}") from None
    with context.db.begin() as connection:
        Database.record(
            connection,
            actor(),
            "backup",
            f"{shown(to.name)}, master key {'in it' if saved.key else 'kept apart'}",
        )
    return saved


def _gather(context: Context, place: Path, passphrase: str | None) -> Saved:
    (place / CONFIGURATION).write_bytes((context.data / CONFIGURATION).read_bytes())
    before = context.sealer.text()
    if not context.db.shared:
        _copy_database(context.data / DATABASE, place / DATABASE)
        _look_through(place / DATABASE)
    # the master key may be changed meanwhile: the keys of before and of after, so that each secret in the copy has its own
    lines = [line for text in (before, context.sealer.text()) for line in text.splitlines(keepends=True)]
    keys = Sealer(Path(KEY), b"".join(dict.fromkeys(lines)))
    if passphrase is not None:
        (place / KEY).write_bytes(_encrypt(keys.text(), passphrase))
    database = context.db if context.db.shared else Database.sqlite(place / DATABASE)
    try:
        found = _look_into(database, keys)
    finally:
        if not context.db.shared:
            database.close()
            _settle(place / DATABASE)
    return Saved(now(), found[0], passphrase is not None, not context.db.shared, found[1])


def _copy_database(source: Path, to: Path) -> None:
    """As it is at one moment, while others write: SQLite's online backup, in one step, which blocks nobody with WAL."""
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(to)) as new,
        ):
            old.backup(new)
        _settle(to)
    except sqlite3.Error as err:
        raise StorageError(f"the database cannot be copied: {err}") from None


def _settle(path: Path) -> None:
    """One file again, without a log beside it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


def _look_through(path: Path) -> None:
    """CheckError when the file is no whole database."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as err:
        found = str(err)
    if found != "ok":
        raise CheckError(f"the database is damaged: {found}", hint="take an older backup")


def _look_into(database: Database, sealer: Sealer) -> tuple[str, int]:
    """Schema, and how many devices; CheckError when a secret does not open with the master key."""
    database.check()
    with database.read() as connection:
        ManagementCa.issuing(connection, sealer)
        rekeying.check_opens(connection, sealer)
        count = connection.execute(sa.select(sa.func.count()).select_from(schema.devices)).scalar_one()
    return schema.HEAD, count


def _pack(place: Path, whole: Path, saved: Saved) -> None:
    files = {name: _digest(place / name) for name in MEMBERS if (place / name).exists()}
    manifest = {
        "format": FORMAT,
        "created": saved.created,
        "schema": saved.schema,
        "database": "embedded" if saved.database else "postgresql",
        "key": "passphrase" if saved.key else "apart",
        "sha256": files,
    }
    (place / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    handle = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in MEMBERS:
                if (place / name).exists():
                    archive.add(place / name, name, filter=_plainly)
        file.flush()
        os.fsync(file.fileno())
    with _archive(whole) as packed:
        _check_whole(packed)


def _plainly(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o600
    return info


def _flush(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the master key -----------------------------------------------------------------------------


def _encrypt(plain: bytes, passphrase: str) -> bytes:
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    sealed = AESGCM(_derive(passphrase, salt)).encrypt(nonce, plain, _PURPOSE)
    return base64.b64encode(salt + nonce + sealed) + b"\n"


def _decrypt(text: bytes, passphrase: str) -> bytes:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
        return AESGCM(_derive(passphrase, raw[:16])).decrypt(raw[16:28], raw[28:], _PURPOSE)
    except (InvalidTag, ValueError):
        raise CheckError(
            "the passphrase is not the one of this backup", hint="give the right one, or --master-key"
        ) from None


def _derive(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=COST, r=8, p=1).derive(passphrase.encode())


# ---- restoring ----------------------------------------------------------------------------------


def restore(
    source: Path, data: Path, passphrase: str | None, master_key: Path | None, database: str = ""
) -> Saved:
    """The data directory of a backup, whole or not at all: everything is looked at before it gets its name.

    passphrase, master_key: one of them. database: URL of the PostgreSQL database, restored already, where the backup is
    of such a proxy. StorageError, CheckError, ConflictError: nothing was changed.
    """
    with _archive(source) as archive:
        manifest = _check_whole(archive)
        embedded = manifest["database"] == "embedded"
        if embedded == bool(database):
            raise ConflictError(
                "--database",
                "the backup holds its database"
                if embedded
                else "the backup holds no database: it is of a proxy on PostgreSQL",
                hint="leave --database out"
                if embedded
                else "restore that with pg_restore, and name it with --database",
            )
        keys = _keys(archive, manifest, passphrase, master_key)
        with fresh_place(data, database) as place:
            _unpack(archive, CONFIGURATION, place.path, 0o644)
            keys.keep(place.path / "master.key")
            if embedded:
                _unpack(archive, DATABASE, place.path, 0o600)
                _look_through(place.path / DATABASE)
                _bring_up(place.db, str(manifest["schema"]))
            found = _look_into(place.db, keys)
            context = Context(place.path)
            rollover.keep_trust(place.path, rollover.standing(context).pem)
            context.db.close()
            with place.db.begin() as connection:
                Database.record(
                    connection, actor(), "restore", f"{shown(source.name)} of {_date(manifest['created'])}"
                )
                connection.execute(schema.sessions.delete())  # who was logged in then is not now
            place.publish()
    return Saved(manifest["created"], found[0], KEY in manifest["sha256"], embedded, found[1])


def _date(moment: int) -> str:
    """RFC 3339; what the manifest of a stranger says may be no date."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(moment)))
    except (OverflowError, ValueError, OSError):
        return str(moment)


def _bring_up(database: Database, found: str) -> None:
    """An older schema is brought up to this program's."""
    if found > schema.HEAD:
        raise StorageError(
            f"the backup has schema {found}, this program knows {schema.HEAD}",
            hint="restore it with the newer program",
        )
    database.migrate()


def _keys(
    archive: tarfile.TarFile, manifest: dict[str, Any], passphrase: str | None, master_key: Path | None
) -> Sealer:
    if master_key is not None:
        return Sealer.open(master_key)
    if KEY not in manifest["sha256"]:
        raise SettingsError(
            "--master-key",
            "is missing: this backup was made without the master key",
            hint="name the file that was kept apart",
        )
    if passphrase is None:
        raise SettingsError(
            "--passphrase-file", "is missing", hint="the master key in the backup is encrypted"
        )
    return Sealer(Path(KEY), _decrypt(_small(archive, KEY), passphrase))


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as found:
            yield found
    except tarfile.TarError:
        raise CheckError(f"{path} is no backup of ca-proxy, or is damaged") from None
    except OSError as err:
        raise StorageError(f"cannot read {path}: {err.strerror}") from None


def _member(archive: tarfile.TarFile, name: str) -> tuple[IO[bytes], int]:
    found = [info for info in archive.getmembers() if info.name == name]
    if len(found) != 1 or not found[0].isreg():
        raise CheckError(f"the backup is damaged: {name} is not in it, or not once")
    file = archive.extractfile(found[0])
    assert file is not None
    return file, found[0].size


def _small(archive: tarfile.TarFile, name: str) -> bytes:
    file, size = _member(archive, name)
    if size > SMALL:
        raise CheckError(f"the backup is damaged: {name} is too large")
    return file.read()


def _check_whole(archive: tarfile.TarFile) -> dict[str, Any]:
    """The manifest, when all that it names is there as it says, and nothing else. CheckError."""
    try:
        manifest = json.loads(_small(archive, MANIFEST))
        version, wanted = manifest["format"], dict(manifest["sha256"])
        int(manifest["created"]), str(manifest["schema"]), str(manifest["database"])
    except (ValueError, KeyError, TypeError):
        raise CheckError("the backup is damaged: its manifest cannot be read") from None
    if version != FORMAT:
        raise CheckError(
            f"the backup is of format {version}, this program knows {FORMAT}", hint="use a newer program"
        )
    if sorted(archive.getnames()) != sorted([MANIFEST, *wanted]) or not set(wanted) <= set(MEMBERS):
        raise CheckError("the backup is damaged: it holds other files than its manifest names")
    for name, digest in wanted.items():
        file, _ = _member(archive, name)
        found = hashlib.sha256()
        while part := file.read(CHUNK):
            found.update(part)
        if found.hexdigest() != digest:
            raise CheckError(
                f"the backup is damaged: {name} is not as it was written", hint="take another backup"
            )
    return dict(manifest)


def _unpack(archive: tarfile.TarFile, name: str, to: Path, mode: int) -> None:
    source, _ = _member(archive, name)
    handle = os.open(to / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        while part := source.read(CHUNK):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
