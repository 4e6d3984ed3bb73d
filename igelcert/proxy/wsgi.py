"""The WSGI programs for any server: CA_PROXY_DATA names the data directory.

A server other than `ca-proxy serve` must hand over the client certificate: as `gunicorn.socket` in the
environ, or as Client-Cert header (RFC 9440) from an address in trusted_frontends of proxy.toml.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import StorageError
from .app import make_admin_app, make_device_app
from .context import Context

__all__ = ["admin_app", "device_app"]

_lock = threading.Lock()
_made: dict[str, Any] = {}


def _app(name: str) -> Any:
    with _lock:
        if not _made:
            data = os.environ.get("CA_PROXY_DATA")
            if not data:
                raise StorageError("no data directory is named", hint="set CA_PROXY_DATA")
            context = Context.open(Path(data))
            _made.update(device=make_device_app(context), admin=make_admin_app(context))
        return _made[name]


def device_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What devices talk to."""
    answer: Iterable[bytes] = _app("device")(environ, start_response)
    return answer


def admin_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Administration, health and figures; keep it away from the network."""
    answer: Iterable[bytes] = _app("admin")(environ, start_response)
    return answer
