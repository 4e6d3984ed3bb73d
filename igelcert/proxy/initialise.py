"""`ca-proxy init` and `join`: a data directory, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from argon2 import PasswordHasher

from ..errors import SettingsError, StorageError
from . import postgres
from .context import is_address
from .database import Database, now
from .managementca import ManagementCa, check_server_name
from .schema import accounts
from .secrets import Sealer, make_master_key

__all__ = ["HOSTNAMES", "Initialised", "fresh_place", "initialise", "join"]

ADMIN = "admin"
HOSTNAMES = "hostnames"  # in meta: for proxies that join
_HEAD = """\
# The proxy's configuration; read when it starts.
#
# hostnames          names and addresses in the proxy's certificate: how devices call it
# listen             where devices connect, over TLS
# admin_listen       administration, /healthz, /readyz and /metrics; plain HTTP: keep it on loopback
# trusted_frontends  addresses or networks of TLS front ends whose Client-Cert header (RFC 9440) counts
# proxy_protocol     addresses or networks of balancers that pass TLS through; each connection of theirs must begin with
#                    the PROXY protocol (version 1 or 2)
# processes          that serve: 0 for one of each processor, at most four; each takes a hundred megabytes (0)
# threads            of each process: requests of devices that are worked on at once (16, or twice upstream_parallel)
# upstream_parallel  requests to the CA at once (8)
# upstream_timeout   seconds for an answer of the CA (30)
# upstream_wait      seconds that a few requests wait for their turn before the device is told to come back (1)
# waiting            devices that wait for a change of their settings, each with a connection (10000)
# drain              seconds after SIGTERM in which /readyz says 503 and requests are still taken (5)
# database_connections  connections to PostgreSQL at most (20); one more of each process hears what changes
"""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `init` shows, once. admin_password: "" where another proxy's `init` made it."""

    fingerprint: str
    trust: Path
    admin_password: str = field(default="", repr=False)


def initialise(
    data: Path, hostnames: list[str], listen: str, admin_listen: str, database: str = ""
) -> Initialised:
    """Makes the data directory; one that holds something is never touched.

    database: the URL of a PostgreSQL database, which must be empty; "" for the embedded one.
    """
    names = _names(hostnames)
    _check_addresses(listen, admin_listen)
    with fresh_place(data, database) as place:
        make_master_key(place.path / "master.key")
        sealer = Sealer.open(place.path / "master.key")
        password = secrets.token_urlsafe(15)
        with place.db.begin() as connection:
            if place.db.tables_in(connection):
                raise StorageError(
                    "the database is not empty",
                    hint="for one more proxy on it: ca-proxy join; else name a database without tables",
                )
            place.db.migrate_in(connection)
            ManagementCa.create(connection, sealer)
            place.db.put_meta(connection, HOSTNAMES, json.dumps(names))
            connection.execute(
                accounts.insert().values(
                    name=ADMIN,
                    password_hash=PasswordHasher().hash(password),
                    role="admin",
                    must_change=True,
                    created=now(),
                )
            )
            place.db.record(connection, "ca-proxy", "init", "for " + " ".join(names))
            ca = ManagementCa.issuing(connection, sealer)
            _write_files(place.path, ca, names, listen, admin_listen)
            if place.db.shared:
                place.publish()  # the last that can fail before the commit
        if not place.db.shared:
            place.publish()
    return Initialised(ca.fingerprint, data / "trust.pem", password)


def join(
    data: Path, database: str, master_key: Path, hostnames: list[str], listen: str, admin_listen: str
) -> Initialised:
    """The data directory of one more proxy on a database. hostnames: none for those of the first proxy."""
    _check_addresses(listen, admin_listen)
    sealer = Sealer.open(master_key)
    with fresh_place(data, database) as place:
        place.db.check()
        with place.db.begin() as connection:
            ca = ManagementCa.issuing(
                connection, sealer
            )  # CheckError when the master key is another database's
            found = hostnames or json.loads(place.db.meta_in(connection, HOSTNAMES, "[]"))
            names = _names(found)
            if not names:
                raise SettingsError("--hostname", "is missing, and the database names none")
            sealer.keep(place.path / "master.key")
            _write_files(place.path, ca, names, listen, admin_listen)
            place.db.record(connection, "ca-proxy", "join", "for " + " ".join(names))
            place.publish()
    return Initialised(ca.fingerprint, data / "trust.pem")


def _names(hostnames: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check_server_name(name) for name in hostnames))


def _check_addresses(listen: str, admin_listen: str) -> None:
    for key, value in (("--listen", listen), ("--admin-listen", admin_listen)):
        if not is_address(value):
            raise SettingsError(key, f"{value!r} is not HOST:PORT")


class _Place:
    """A data directory that is made beside its place and renamed: it is complete or not there."""

    def __init__(self, data: Path, database: str) -> None:
        self._data = data
        self.path = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
        if database:
            postgres.keep(self.path / postgres.FILE, database)
            self.db = Database(database)
        else:
            self.db = Database.sqlite(self.path / "proxy.db")

    def publish(self) -> None:
        if not self.db.shared:
            self.db.close()
        self.path.rename(self._data)
        self.path = self._data


@contextmanager
def fresh_place(data: Path, database: str) -> Iterator[_Place]:
    """A data directory in the making, with its database; one that holds something is never touched. StorageError."""
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        if data.exists() and not data.is_dir():
            raise StorageError(f"{data} is not a directory", hint="name a new directory")
        if data.exists() and any(data.iterdir()):
            raise StorageError(
                f"{data} is there already and is not empty",
                hint="name a new directory, or remove this one if it is no longer needed",
            )
        place = _Place(data, database)
        old_umask = os.umask(0o077)
        try:
            yield place
        except BaseException:
            shutil.rmtree(place.path, ignore_errors=True)
            raise
        finally:
            os.umask(old_umask)
            place.db.close()
    except OSError as err:
        raise StorageError(f"cannot write {data}: {err.strerror}") from None


def _write_files(
    directory: Path, ca: ManagementCa, names: tuple[str, ...], listen: str, admin_listen: str
) -> None:
    lines = [f"hostnames = {json.dumps(names)}", f"listen = {json.dumps(listen)}"]
    lines.append(f"admin_listen = {json.dumps(admin_listen)}")
    for name, text in (("trust.pem", ca.pem), ("proxy.toml", _HEAD + "\n" + "\n".join(lines) + "\n")):
        (directory / name).write_text(text)
        (directory / name).chmod(0o644)
