"""`ca-proxy init`: a data directory, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from argon2 import PasswordHasher

from ..errors import SettingsError, StorageError
from .context import is_address
from .database import Database, now
from .managementca import ManagementCa, check_server_name
from .schema import accounts
from .secrets import Sealer, make_master_key

__all__ = ["Initialised", "initialise"]

ADMIN = "admin"
_HEAD = """\
# The proxy's configuration; read when it starts.
#
# hostnames          names and addresses in the proxy's certificate: how devices call it
# listen             where devices connect, over TLS
# admin_listen       administration, /healthz, /readyz and /metrics; plain HTTP: keep it on loopback
# trusted_frontends  addresses or networks of TLS front ends whose Client-Cert header (RFC 9440) counts
# threads            requests of devices that are worked on at once (32)
# upstream_parallel  requests to the CA at once (8)
# upstream_timeout   seconds for an answer of the CA (30)
# upstream_wait      seconds that a few requests wait for their turn before the device is told to come back (1)
# waiting            devices that wait for a change of their settings, each with a connection (10000)
"""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `init` shows, once."""

    fingerprint: str
    trust: Path
    admin_password: str = field(repr=False)


def initialise(data: Path, hostnames: list[str], listen: str, admin_listen: str) -> Initialised:
    """Makes the data directory; one that holds something is never touched."""
    names = tuple(dict.fromkeys(check_server_name(name) for name in hostnames))
    for key, value in (("--listen", listen), ("--admin-listen", admin_listen)):
        if not is_address(value):
            raise SettingsError(key, f"{value!r} is not HOST:PORT")
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        if data.exists() and (not data.is_dir() or any(data.iterdir())):
            raise StorageError(
                f"{data} is there already and is not empty",
                hint="name a new directory, or remove this one if it is no longer needed",
            )
        # made beside and renamed: a data directory is complete or not there
        fresh = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
        try:
            done = _fill(fresh, names, listen, admin_listen)
            fresh.rename(data)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    except OSError as err:
        raise StorageError(f"cannot write {data}: {err.strerror}") from None
    return Initialised(done.fingerprint, data / "trust.pem", done.admin_password)


def _fill(directory: Path, names: tuple[str, ...], listen: str, admin_listen: str) -> Initialised:
    make_master_key(directory / "master.key")
    sealer = Sealer.open(directory / "master.key")
    password = secrets.token_urlsafe(15)
    old_umask = os.umask(0o077)
    try:
        db = Database.sqlite(directory / "proxy.db")
        db.migrate()
        with db.begin() as connection:
            ManagementCa.create(connection, sealer)
            connection.execute(
                accounts.insert().values(
                    name=ADMIN,
                    password_hash=PasswordHasher().hash(password),
                    role="admin",
                    must_change=True,
                    created=now(),
                )
            )
            db.record(connection, "ca-proxy", "init", "for " + " ".join(names))
        ca = ManagementCa(db, sealer)
        db.close()
    finally:
        os.umask(old_umask)
    (directory / "trust.pem").write_text(ca.pem)
    (directory / "trust.pem").chmod(0o644)
    lines = [f"hostnames = {json.dumps(names)}", f"listen = {json.dumps(listen)}"]
    lines.append(f"admin_listen = {json.dumps(admin_listen)}")
    (directory / "proxy.toml").write_text(_HEAD + "\n" + "\n".join(lines) + "\n")
    return Initialised(ca.fingerprint, directory / "trust.pem", password)
