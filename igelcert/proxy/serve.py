"""`ca-proxy serve`: gunicorn with our worker, both ports in one process."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from ..errors import SettingsError, StorageError
from . import changes
from .addresses import among
from .app import make_admin_app, make_device_app
from .context import DRAIN_MAX, Context, is_address
from .servertls import ServerTls

__all__ = ["places", "serve"]

HANDSHAKE_SECONDS = 10.0
REQUEST_SECONDS = 30.0
KEEPALIVE_SECONDS = 15
CONNECTIONS = 1000
GRACE_SECONDS = 20  # for what is being answered when the proxy ends, at least
GRACE_MARGIN = 5  # seconds beyond an exchange with the CA
GARBAGE = 10_000  # objects made and not freed, after which Python looks for cycles
FILES = 256  # descriptors for what is no connection of a client


def serve(data: Path, listen: str, admin_listen: str, drain: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT. DIR/run.json names process and ports meanwhile. drain: seconds for which it goes on
    after SIGTERM; None: as configured."""
    context = Context.open(data)
    drain = context.config.drain if drain is None else drain
    if not 0 <= drain <= DRAIN_MAX:
        raise SettingsError("--drain", f"is not a number from 0 to {DRAIN_MAX}")
    run = data / "run.json"
    listen, admin_listen = listen or context.config.listen, admin_listen or context.config.admin_listen
    for option, address in (("--listen", listen), ("--admin-listen", admin_listen)):
        if not is_address(address):
            raise SettingsError(option, f"{address!r} is not HOST:PORT")
        _look_free(address)
    try:
        run.unlink(missing_ok=True)
    except OSError as err:
        raise StorageError(f"cannot remove {run}: {err.strerror}") from None
    ServerTls(context).current()  # what is wrong with it is said now, and not by a dead worker
    context.db.close()  # a connection must not cross a fork
    pid = os.getpid()
    try:
        _Server(data, listen, admin_listen, drain).run()
    finally:
        if os.getpid() == pid and _is_of(run, pid):  # a worker leaves this way, too
            run.unlink(missing_ok=True)
    return 0


def _is_of(run: Path, pid: int) -> bool:
    """Another proxy that began to serve the same directory meanwhile has written its own."""
    try:
        return bool(json.loads(run.read_text())["pid"] == pid)
    except (OSError, ValueError, KeyError):
        return False


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
    def __init__(self, data: Path, listen: str, admin_listen: str, drain: int) -> None:
        self._data = data
        self._drain = drain
        self._binds = [listen, admin_listen]
        self._tls: ServerTls | None = None
        self._admin: Any = None
        super().__init__()

    def load_config(self) -> None:
        context = Context(self._data)
        put = self.cfg.set
        put("bind", self._binds)
        put("worker_class", "igelcert.proxy.worker.Worker")
        put("workers", 1)
        put("threads", context.config.threads)
        put("worker_connections", CONNECTIONS)
        put("keepalive", KEEPALIVE_SECONDS)
        grace = max(GRACE_SECONDS, context.config.upstream_timeout + GRACE_MARGIN)
        put("graceful_timeout", self._drain + grace + GRACE_MARGIN)  # the worker's own bounds come first
        put("timeout", 120)
        put("proc_name", "ca-proxy")
        put("limit_request_line", 8190)  # a SCEP message in a URL
        put("ssl_context", self._ssl_context)
        put("when_ready", self._ready)
        put("forwarded_allow_ips", "")
        put("loglevel", "info")
        put("logconfig_dict", _LOGGING)
        put("worker_tmp_dir", "/dev/shm" if Path("/dev/shm").is_dir() else None)  # noqa: S108
        if "control_socket_disable" in self.cfg.settings:  # newer gunicorns would open one
            put("control_socket_disable", True)
        self.cfg.is_admin = lambda server: server == self._admin
        self.cfg.sends_preface = lambda address: among(context.config.proxy_protocol, address)
        self.cfg.user_limits = {
            "handshake": HANDSHAKE_SECONDS,
            "request": REQUEST_SECONDS,
            "waiting": context.config.waiting,
            "drain": self._drain,
            "grace": grace,
        }

    def load(self) -> Callable[..., Iterable[bytes]]:
        """Called in the worker: its connections to database and CA are its own."""
        context = Context.open(self._data)
        self._tls = ServerTls(context)
        self.cfg.hear_changes = changes.hearing(context)
        self.cfg.set("worker_exit", lambda _server, _worker: context.leases.close())
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

    def _ssl_context(self, _config: Any, _factory: Any) -> ssl.SSLContext:
        assert self._tls is not None
        return self._tls.current()

    def _ready(self, arbiter: Any) -> None:
        names = [listener.sock.getsockname() for listener in arbiter.LISTENERS]
        device, admin = names
        self._admin = admin
        self.cfg.user_limits["waiting"] = places(self.cfg.user_limits["waiting"])
        state = {"pid": os.getpid(), "device_port": device[1], "admin_port": admin[1]}
        fresh = self._data / "run.json.new"
        fresh.write_text(json.dumps(state) + "\n")
        fresh.replace(self._data / "run.json")
        logging.getLogger("igelcert.proxy").info(
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
        logging.getLogger("igelcert.proxy").warning(
            "only %d devices can wait for changes: the limit of open files (ulimit -n) is %d", waiting, fit
        )
    return waiting


_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"screen": {"class": "logging.StreamHandler", "formatter": "plain", "stream": sys.stderr}},
    "root": {"level": "WARNING", "handlers": ["screen"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["screen"], "propagate": False},
        "gunicorn.access": {"level": "WARNING", "handlers": ["screen"], "propagate": False},
        "igelcert.proxy": {"level": "INFO", "handlers": ["screen"], "propagate": False},
    },
}
