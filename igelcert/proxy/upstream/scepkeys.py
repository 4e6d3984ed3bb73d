"""Transport keys: RSA keys that sign the proxy's SCEP messages, and that answers are encrypted for.

A device's key may be of any type, and never leaves the device; SCEP needs an RSA key that signs and decrypts. Making
one takes a hundred times as long as signing a certificate for it, so a key serves for an hour, in all requests of this
process, and the next one is made beside the work. Each lies sealed in the database for as long as an answer may
come: a proxy that starts again, or another one, goes on with what this one began.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import secrets
import threading
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ... import crypto
from ..database import now
from ..schema import scep_keys

if TYPE_CHECKING:
    from ..context import Context

__all__ = ["TransportKeys", "place"]

log = logging.getLogger("igelcert.proxy")

KEY_TYPE = "rsa_2048"
LIFE = 3600  # seconds in which a key signs new requests
AHEAD = 600  # seconds before its end when the next one is made
KEPT = 45 * 86_400  # seconds for which answers can be opened
ITERATIONS = 1000  # it lies sealed under the master key besides


class TransportKeys:
    """Safe for threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._current: tuple[str, crypto.Key, int] | None = None

    def __repr__(self) -> str:
        return "<TransportKeys>"

    def prepare(self) -> None:
        """Makes a key in the background when there is none, or none for long: no request need wait for it."""
        with self._lock:
            found = self._current
        if (found is None or found[2] + LIFE - now() < AHEAD) and not self._making.locked():
            # no daemon: a process must not end in the middle of libcrypto
            threading.Thread(target=self._quietly).start()

    def current(self) -> tuple[str, crypto.Key]:
        """Name and key for a new request."""
        with self._lock:
            found = self._current
        if found is not None and found[2] + LIFE > now():
            return found[0], found[1]
        return self._make()

    def get(self, name: str) -> crypto.Key | None:
        """The key of an earlier request; None when it is kept no more."""
        with self._lock:
            if self._current is not None and self._current[0] == name:
                return self._current[1]
        with self._context.db.read() as connection:
            sealed = connection.execute(
                sa.select(scep_keys.c.sealed).where(scep_keys.c.name == name)
            ).scalar()
        if sealed is None:
            return None
        secret = json.loads(self._context.sealer.unseal(sealed, place(name)))
        handle = os.memfd_create("scep", os.MFD_CLOEXEC)
        try:
            os.write(handle, base64.b64decode(secret["key"]))
            os.lseek(handle, 0, os.SEEK_SET)
            return crypto.Key.read(handle, secret["password"].encode())
        finally:
            os.close(handle)

    def _quietly(self) -> None:
        try:
            self._make()
        except Exception as err:
            log.error("a transport key for SCEP cannot be made: %s", err)

    def _make(self) -> tuple[str, crypto.Key]:
        """One at a time; whoever waited takes what was made meanwhile."""
        with self._making:
            with self._lock:
                found = self._current
            if found is not None and found[2] + LIFE - now() >= AHEAD:
                return found[0], found[1]
            key = crypto.Key.generate(KEY_TYPE)
            name = hashlib.sha256(key.spki()).hexdigest()[:32]
            secret, moment = _secret(key), now()
            with self._context.db.begin() as connection:
                connection.execute(scep_keys.delete().where(scep_keys.c.created < moment - KEPT))
                connection.execute(
                    scep_keys.insert().values(
                        name=name,
                        sealed=self._context.sealer.seal(connection, secret, place(name)),
                        created=moment,
                    )
                )
            with self._lock:
                self._current = (name, key, moment)
            return name, key


def _secret(key: crypto.Key) -> bytes:
    """What is sealed of a key."""
    password = secrets.token_urlsafe(24)
    handle = os.memfd_create("scep", os.MFD_CLOEXEC)
    try:
        key.write(handle, crypto.Password(password.encode(), ITERATIONS))
        pem = os.pread(handle, 65_536, 0)
    finally:
        os.close(handle)
    return json.dumps({"key": base64.b64encode(pem).decode(), "password": password}).encode()


def place(name: str) -> str:
    return f"scep_keys:{name}"
