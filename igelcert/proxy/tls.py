"""TLS as this program uses it: keys without a file that anybody could read, sockets that give up a turn."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Callable
from typing import Any

from ..errors import StorageError
from .turns import waiting

__all__ = ["Socket", "load_pair"]


class Socket(ssl.SSLSocket):
    """Where it waits for the other side, other threads have our turn (turns.py)."""

    def do_handshake(self, block: bool = False) -> None:
        if self.gettimeout() == 0.0:
            super().do_handshake(block)
            return
        with waiting():
            super().do_handshake(block)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.gettimeout() == 0.0 or self.pending():
            return super().recv_into(*args, **kwargs)
        with waiting():
            return super().recv_into(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        with waiting():
            super().sendall(*args, **kwargs)


def load_pair(context: ssl.SSLContext, certificates: str, write_key: Callable[[int, bytes], None]) -> None:
    """Certificate chain (PEM, leaf first) and key into the context.

    `write_key(fd, password)` writes the key in PEM, encrypted. The ssl module reads names only, so the
    pair passes through anonymous memory, encrypted under a password that nobody else ever has.
    """
    password = secrets.token_bytes(24).hex().encode()
    fd = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificates.encode())
        write_key(fd, password)
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=password)
    except OSError as err:  # ssl.SSLError is one
        reason = getattr(err, "reason", None) or err.strerror or "unknown reason"
        raise StorageError(f"certificate and key cannot be used for TLS: {reason}") from None
    finally:
        os.close(fd)
