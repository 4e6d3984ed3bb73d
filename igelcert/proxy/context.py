"""What every part of the proxy stands on: its data directory, opened."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError, StorageError
from . import postgres
from .database import CONNECTIONS, Database
from .secrets import Sealer

if TYPE_CHECKING:
    from .leases import Leases
    from .lives import Lives
    from .managementca import ManagementCa
    from .merging import Effective
    from .rollover import Standing
    from .upstream import Upstreams

__all__ = ["DRAIN_MAX", "ETAG_KEY", "Config", "Context", "is_address"]

ETAG_KEY = "etag_key"  # in meta

MERGED_KEPT = 64
DRAIN_MAX = 600
THREADS = 16  # of each process
PROCESSES_MAX = 4  # where nothing is said: each takes a hundred megabytes


@dataclass(frozen=True, slots=True)
class Config:
    """DIR/proxy.toml. Times in seconds."""

    hostnames: tuple[str, ...] = ()
    listen: str = "0.0.0.0:8443"
    admin_listen: str = "127.0.0.1:8444"
    trusted_frontends: tuple[str, ...] = ()
    proxy_protocol: tuple[str, ...] = ()
    threads: int = THREADS
    upstream_parallel: int = 8
    upstream_timeout: int = 30
    upstream_wait: int = 1
    waiting: int = 10_000
    drain: int = 5
    database_connections: int = CONNECTIONS
    processes: int = 0

    def in_processes(self) -> int:
        """How many serve: one for each processor, where nothing else is said, and at least a place at the CA for each."""
        wanted = self.processes or min(PROCESSES_MAX, len(os.sched_getaffinity(0)))
        return min(wanted, self.upstream_parallel)


_NUMBERS = {
    "threads": (1, 512),
    "upstream_parallel": (1, 256),
    "upstream_timeout": (1, 600),
    "upstream_wait": (0, 600),
    "waiting": (0, 100_000),
    "drain": (0, DRAIN_MAX),
    "database_connections": (2, 500),
    "processes": (0, 64),
}
_NETWORKS = ("trusted_frontends", "proxy_protocol")
_LISTS = ("hostnames", *_NETWORKS)


def is_address(value: str) -> bool:
    """Is it HOST:PORT (an IPv6 address in brackets)?"""
    host, _, port = value.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and int(port) <= 65_535


def _is_network(value: str) -> bool:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return True


def _config(path: Path) -> Config:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{path.parent} is no proxy's data directory", hint="run: ca-proxy init --data DIR"
        ) from None
    except OSError as err:
        raise StorageError(f"cannot read {path}: {err.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(str(path), f"not TOML: {err}") from None
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key in _NUMBERS:
            low, high = _NUMBERS[key]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise SettingsError(f"{path}: {key}", f"is not a number from {low} to {high}")
        elif key in _LISTS:
            if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
                raise SettingsError(f"{path}: {key}", "is not a list of texts")
            value = tuple(value)
            if key in _NETWORKS and not all(map(_is_network, value)):
                raise SettingsError(f"{path}: {key}", "holds what is neither an address nor a network")
        elif key in {"listen", "admin_listen"}:
            if not isinstance(value, str) or not is_address(value):
                raise SettingsError(f"{path}: {key}", "is not HOST:PORT")
        else:
            raise SettingsError(f"{path}: {key}", "is not a known key")
        values[key] = value
    if "threads" not in values:
        # as many as wait for a CA that stalls are left for everything else
        values["threads"] = max(THREADS, 2 * values.get("upstream_parallel", 0))
    return Config(**values)


class Context:
    """An opened data directory. Cheap to make; the database and keys open when they are used."""

    def __init__(self, data: Path, part: tuple[int, int] = (0, 1), config: Config | None = None) -> None:
        """part: which of how many processes that serve it this one is. config: as that began with it."""
        self.data = data
        self.part = part
        self.health_noted = (0, False, 0)  # cahealth.note: version, up, when
        self.kept_management_ca: ManagementCa | None = None  # rollover.issuing
        self.kept_standing: Standing | None = None  # rollover.standing
        self.kept_cas: tuple[int, list[bytes], int] = (0, [], 0)  # cacerts.fresh: version, certificates, when
        self.counted: Any = [0]  # numbers, in memory that its processes share
        self.lives: Lives | None = None  # of a process that serves
        self.config = config or _config(data / "proxy.toml")

    @classmethod
    def open(cls, data: Path, part: tuple[int, int] = (0, 1), config: Config | None = None) -> Context:
        """Opened and looked at: the schema must fit."""
        context = cls(data, part, config)
        context.db.check()
        return context

    @property
    def trust_changes(self) -> int:
        """Another number when the processes' TLS fronts should look at once whom they trust."""
        return int(self.counted[0])

    def count_trust_change(self) -> None:
        self.counted[0] += 1

    @property
    def address(self) -> str:
        """https://NAME:PORT, as devices are to call this proxy."""
        name = next(iter(self.config.hostnames), "PROXY")
        port = self.config.listen.rpartition(":")[2]
        with suppress(OSError, ValueError, KeyError):
            port = str(json.loads((self.data / "run.json").read_text())["device_port"])
        return f"https://[{name}]:{port}" if ":" in name else f"https://{name}:{port}"

    @cached_property
    def db(self) -> Database:
        if url := postgres.kept(self.data / postgres.FILE):
            return Database(url, max(2, self.share(self.config.database_connections)))
        made = Database.sqlite(self.data / "proxy.db")
        if self.part[1] > 1:
            made.share(self.data / "writing.lock")
        return made

    def share(self, count: int) -> int:
        """This process's part of what the proxy has `count` of."""
        number, processes = self.part
        return count // processes + (number < count % processes)

    @cached_property
    def sealer(self) -> Sealer:
        return Sealer.open(self.data / "master.key")

    @cached_property
    def leases(self) -> Leases:
        from .leases import Leases

        return Leases(self)

    @property
    def management_ca(self) -> ManagementCa:
        """The one that issues certificates now."""
        from . import rollover

        with self.db.read() as connection:
            return rollover.issuing(self, connection)

    @cached_property
    def etag_key(self) -> bytes:
        """Keys the tags of settings; a change of the master key leaves it as it is, so that tags stay."""
        with self.db.read() as connection:
            sealed = self.db.meta_in(connection, ETAG_KEY)
        if sealed:
            return self.sealer.unseal(base64.b64decode(sealed), f"meta/{ETAG_KEY}")
        return self.sealer.derive("settings etag")[0]

    @cached_property
    def merged(self) -> Callable[[tuple[tuple[str, bytes, bool], ...]], Effective]:
        """merging.merge of what was asked for last: thousands of devices have the same few profiles."""
        from .merging import merge

        return lru_cache(MERGED_KEPT)(partial(merge, self))

    @cached_property
    def upstreams(self) -> Upstreams:
        """The one holder of upstream connections in this process."""
        from .upstream import Upstreams

        return Upstreams(self)
