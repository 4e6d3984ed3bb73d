"""`ca-proxy serve`: gunicorn with our worker, both ports in one process."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import mmap
import os
import resource
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from ..errors import Error, SettingsError, StorageError, UnavailableError
from . import changes, figures
from .addresses import among
from .app import make_admin_app, make_device_app
from .context import DRAIN_MAX, Config, Context, is_address
from .lives import Lives
from .servertls import ServerTls

__all__ = ["places", "serve"]

log = logging.getLogger("igelcert.proxy")

HANDSHAKE_SECONDS = 10.0
REQUEST_SECONDS = 30.0
KEEPALIVE_SECONDS = 15
CONNECTIONS = 1000
GRACE_SECONDS = 20  # for what is being answered when the proxy ends, at least
GRACE_MARGIN = 5  # seconds beyond an exchange with the CA
GARBAGE = 10_000  # objects made and not freed, after which Python looks for cycles
_MEMORY = Path("/dev/shm")  # noqa: S108 - no disk
_COUNTS = "ca-proxy-"
_COUNTS_ROOM = 8 << 20  # octets; each process takes a quarter of a megabyte
FIRST_SECONDS = 60  # for which a proxy that begins waits for a database that has just gone
WRONG, GONE = Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR  # what ends the main process, too
FILES = 256  # descriptors for what is no connection of a client


def serve(data: Path, listen: str, admin_listen: str, drain: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT. DIR/run.json names process and ports meanwhile. drain: seconds for which it goes on
    after SIGTERM; None: as configured."""
    context = Context.open(data)
    drain = context.config.drain if drain is None else drain
    if not 0 <= drain <= DRAIN_MAX:
        raise SettingsError("--drain", f"is not a number from 0 to {DRAIN_MAX}")
    listen, admin_listen = listen or context.config.listen, admin_listen or context.config.admin_listen
    for option, address in (("--listen", listen), ("--admin-listen", admin_listen)):
        if not is_address(address):
            raise SettingsError(option, f"{address!r} is not HOST:PORT")
        _look_free(address)
    run = data / "run.json"
    with ExitStack() as stack:
        lock = stack.enter_context(_alone(data))
        run.unlink(missing_ok=True)
        ServerTls(context).current()  # what is wrong with it is said now, and not by a dead worker
        context.db.close()  # a connection must not cross a fork
        pid = os.getpid()
        stack.enter_context(_counting(data / "figures"))
        try:
            _Server(context.config, data, listen, admin_listen, drain, lock).run()
        except (SystemExit, HaltServer) as ended:
            # gunicorn lets its own exception out where a second process cannot begin, either
            code = ended.exit_status if isinstance(ended, HaltServer) else ended.code
            if os.getpid() != pid or code not in {WRONG, GONE}:
                raise
            return 75 if code == GONE else 1  # why, its processes have said
        finally:
            if os.getpid() == pid:  # a worker leaves this way, too
                run.unlink(missing_ok=True)
    return 0


@contextmanager
def _alone(data: Path) -> Iterator[int]:
    """One proxy serves a directory: two would ask the CA twice as much. Yields the descriptor of the lock. StorageError."""
    path, pid = data / "run.lock", os.getpid()
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    except BlockingIOError:
        raise StorageError(
            f"another proxy serves {data} already",
            hint="end that one first; one more proxy for the same devices has a directory of its own: ca-proxy join",
        ) from None
    finally:
        if os.getpid() == pid:  # a worker leaves this way, too, and has closed its own
            os.close(handle)


@contextmanager
def _counting(link: Path) -> Iterator[None]:
    """A directory in which the processes count; the link says where, to who comes after one that was killed. It is in use
    as long as a process has its lock."""
    with suppress(OSError):
        left = link.readlink()
        if left.name.startswith(_COUNTS):
            handle = os.open(left / _COUNTS, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(handle)
    link.unlink(missing_ok=True)
    pid = os.getpid()
    place = tempfile.mkdtemp(prefix=_COUNTS, dir=_MEMORY if _has_room(_MEMORY) else None)
    handle = os.open(Path(place, _COUNTS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            link.symlink_to(place)
        except OSError as err:
            raise StorageError(f"cannot write {link}: {err.strerror}") from None
        figures.share_in(place)
        yield
    finally:
        if os.getpid() == pid:  # a worker leaves this way, too
            shutil.rmtree(place, ignore_errors=True)
            link.unlink(missing_ok=True)
            os.close(handle)


def _has_room(place: Path) -> bool:
    """A full one would end whoever counts in it."""
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    return os.access(place, os.W_OK) and found.f_bavail * found.f_frsize > _COUNTS_ROOM


def _look_free(address: str) -> None:
    """Says in words what gunicorn would try five times and then say in its own."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as err:
            raise StorageError(
                f"cannot listen on {address}: {err.strerror}",
                hint="name another with --listen or --admin-listen; is a proxy running already?",
            ) from None


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(
        self, config: Config, data: Path, listen: str, admin_listen: str, drain: int, lock: int
    ) -> None:
        self._config = config  # of all processes, whenever they begin
        self._data = data
        self._lock = lock
        self._drain = drain
        self._binds = [listen, admin_listen]
        self._tls: ServerTls | None = None
        self._admin: Any = None
        self._processes = config.in_processes()
        self._number = 0  # of this process among those
        shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._waiting, self._counted = shared[: self._processes], shared[self._processes :]
        self._worker: Any = None  # in its process
        self._follows = False  # one that ended
        super().__init__()

    def load_config(self) -> None:
        config = self._config
        put = self.cfg.set
        put("bind", self._binds)
        put("worker_class", "igelcert.proxy.worker.Worker")
        put("workers", self._processes)
        put("threads", config.threads)
        put("worker_connections", CONNECTIONS)
        put("keepalive", KEEPALIVE_SECONDS)
        grace = max(GRACE_SECONDS, config.upstream_timeout + GRACE_MARGIN)
        put("graceful_timeout", self._drain + grace + GRACE_MARGIN)  # the worker's own bounds come first
        put("timeout", 120)
        put("proc_name", "ca-proxy")
        put("limit_request_line", 8190)  # a SCEP message in a URL
        put("ssl_context", self._ssl_context)
        put("when_ready", self._ready)
        put("pre_fork", self._numbered)
        put("post_fork", self._begun)
        put("child_exit", self._ended)
        put("forwarded_allow_ips", "")
        put("loglevel", "info")
        put("logconfig_dict", _LOGGING)
        put("worker_tmp_dir", str(_MEMORY) if _MEMORY.is_dir() else None)
        if "control_socket_disable" in self.cfg.settings:  # newer gunicorns would open one
            put("control_socket_disable", True)
        self.cfg.is_admin = lambda server: server == self._admin
        self.cfg.sends_preface = lambda address: among(config.proxy_protocol, address)
        self.cfg.user_limits = {
            "handshake": HANDSHAKE_SECONDS,
            "request": REQUEST_SECONDS,
            "waiting": config.waiting,
            "drain": self._drain,
            "grace": grace,
        }

    def load(self) -> Callable[..., Iterable[bytes]]:
        """Called in the worker: its connections to database and CA are its own."""
        os.close(self._lock)  # the main process has it: when that is gone, another may serve
        context = self._opened()
        self.cfg.hear_changes = changes.hearing(context)
        self.cfg.set("worker_exit", lambda _server, _worker: context.leases.close())
        self.cfg.view = partial(changes.view, context)
        self.cfg.show_gate = context.upstreams.gate.show
        self.cfg.changes_since = lambda position: changes.since(context, position)
        self.cfg.note_lag = context.upstreams.gate.note_lag
        device, admin = make_device_app(context), make_admin_app(context)
        # what is there now stays: it need not be looked through each time
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)

        def program(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if isinstance(environ.get("gunicorn.socket"), ssl.SSLSocket):
                environ["wsgi.url_scheme"] = "https"
                return device(environ, start_response)
            return admin(environ, start_response)

        return program

    def _opened(self) -> Context:
        """What it stands on. The database may have gone since the main process looked: the first ones wait for it for a
        while, and one that follows a process that died waits until all can be had: it must not end the others."""
        context = Context(self._data, (self._number, self._processes), self._config)
        context.counted = self._counted
        end, said = time.monotonic() + FIRST_SECONDS, ""
        while True:
            try:
                self._stand_on(context)
            except Exception as err:
                passes, expected = isinstance(err, UnavailableError), isinstance(err, Error | OSError)
                if not self._follows and not (passes and time.monotonic() < end):
                    if not expected:
                        raise
                    log.error("%s%s", err, f" ({err.hint})" if isinstance(err, Error) and err.hint else "")
                    sys.exit(GONE if passes else WRONG)
                if repr(err) != said:
                    log.error("this process cannot begin yet: %s", err, exc_info=not expected)
                    said = repr(err)
                time.sleep(1)
                if not self._worker.alive or os.getppid() != self._worker.ppid:
                    sys.exit(0)
            else:
                return context

    def _stand_on(self, context: Context) -> None:
        context.db.check()
        self._tls = self._tls or ServerTls(context)
        self._tls.current()  # while the database is away, handshakes go on
        if context.lives is None and not context.db.shared:
            context.lives = Lives(self._data / "lives.lock")
        context.upstreams.gate.show()
        context.leases.start()  # last: this is done once

    def _numbered(self, arbiter: Any, worker: Any) -> None:
        """A new process takes the part of one that ended."""
        taken = {each.number for each in list(arbiter.WORKERS.values())}
        worker.number = min(set(range(self._processes)) - taken, default=0)
        worker.room.share(self._waiting, worker.number)

    def _begun(self, _arbiter: Any, worker: Any) -> None:
        self._number, self._worker = worker.number, worker
        self._follows = worker.age > self._processes

    def _ended(self, _arbiter: Any, worker: Any) -> None:
        self._waiting[worker.number] = 0
        figures.forget_process(worker.pid)

    def _ssl_context(self, _config: Any, _factory: Any) -> ssl.SSLContext:
        assert self._tls is not None
        return self._tls.current()

    def _ready(self, arbiter: Any) -> None:
        for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
            signal.signal(
                number, signal.SIG_IGN
            )  # more processes, or others beside these, would ask too much of the CA
        names = [listener.sock.getsockname() for listener in arbiter.LISTENERS]
        device, admin = names
        self._admin = admin
        self.cfg.user_limits["waiting"] = places(self.cfg.user_limits["waiting"])
        state = {"pid": os.getpid(), "device_port": device[1], "admin_port": admin[1]}
        fresh = self._data / "run.json.new"
        fresh.write_text(json.dumps(state) + "\n")
        fresh.replace(self._data / "run.json")
        log.info(
            "devices: https://%s:%d, administration: http://%s:%d", device[0], device[1], admin[0], admin[1]
        )


def places(waiting: int) -> int:
    """Raises the limit of open files as needed; as many waiting devices as it has room for, at most `waiting`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = waiting + CONNECTIONS + FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return waiting
    fit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if fit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fit, hard))
    if fit < needed:
        waiting = min(waiting, max(fit - CONNECTIONS - FILES, fit // 4))
        log.warning(
            "only %d devices can wait for changes: the limit of open files (ulimit -n) is %d", waiting, fit
        )
    return waiting


def _is_ours_to_say(record: logging.LogRecord) -> bool:
    """gunicorn names every address as of plain HTTP; ours are named when all is ready."""
    return not str(record.msg).startswith("Listening at")


_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "filters": {"addresses": {"()": lambda: _is_ours_to_say}},
    "handlers": {"screen": {"class": "logging.StreamHandler", "formatter": "plain", "stream": sys.stderr}},
    "root": {"level": "WARNING", "handlers": ["screen"]},
    "loggers": {
        "gunicorn.error": {
            "level": "INFO",
            "handlers": ["screen"],
            "filters": ["addresses"],
            "propagate": False,
        },
        "gunicorn.access": {"level": "WARNING", "handlers": ["screen"], "propagate": False},
        "igelcert.proxy": {"level": "INFO", "handlers": ["screen"], "propagate": False},
    },
}
