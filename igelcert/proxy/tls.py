"""Keys for TLS contexts, without a file that anybody could read."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Callable

from ..errors import StorageError

__all__ = ["load_pair"]


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
