"""One question for settings that the proxy holds until there are others (RFC 7240 `wait`, RFC 9110 ETag).

A TLS connection without http.client: the resident agent waits on it in its own poll, and stays small. Only
status and header fields are read; the settings themselves are fetched by the child that applies them.
"""

from __future__ import annotations

import os
import socket
import ssl

from ..errors import TransportError
from . import files
from .wire import TIMEOUT, client_context, failure

__all__ = ["Answer", "Watch"]

HEAD_MAX = 16_384
KEEP_IDLE, KEEP_EVERY, KEEP_COUNT = 60, 20, 3  # the kernel notices a peer that is gone; no wake-up of ours


class Answer:
    """status, and header fields by their names in lower case."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers

    @property
    def retry_after(self) -> int | None:
        """Seconds; the proxy sends no dates."""
        text = self.headers.get("retry-after", "")
        return min(int(text), 86_400) if text.isascii() and text.isdecimal() and len(text) < 10 else None

    @property
    def held(self) -> bool:
        """Did the server say that it waits (RFC 7240 3)?"""
        return "wait" in self.headers.get("preference-applied", "")


def parse_head(data: bytes) -> Answer | None:
    """The answer once its head is whole (RFC 9112 2.1); TransportError when it is no HTTP."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > HEAD_MAX:
            raise TransportError("the proxy does not answer with HTTP", link="http")
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdecimal() and len(code) == 3):
        raise TransportError("the proxy does not answer with HTTP", link="http")
    fields = (line.partition(":") for line in lines)
    return Answer(int(code), {key.strip().lower(): value.strip() for key, _, value in fields})


class Watch:
    """The connection. `server`: https://HOST[:PORT]; `directory`: of the management identity."""

    def __init__(self, server: str, directory: str) -> None:
        host, port = _split(server)
        self._host, self._port = host, port
        self._name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._data = b""
        try:
            trust = files.read(os.path.join(directory, "trust-store", "cacerts.pem")).decode(
                "ascii", "replace"
            )
            context = client_context(ca_pem=trust)
            context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
            plain = socket.create_connection((host.encode("ascii"), port), TIMEOUT)  # type: ignore[arg-type]
            try:
                for option, value in (
                    (socket.TCP_KEEPIDLE, KEEP_IDLE),
                    (socket.TCP_KEEPINTVL, KEEP_EVERY),
                    (socket.TCP_KEEPCNT, KEEP_COUNT),
                ):
                    plain.setsockopt(socket.IPPROTO_TCP, option, value)
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._socket = context.wrap_socket(plain, server_hostname=host.encode("ascii"))
            except OSError:
                plain.close()
                raise
        except FileNotFoundError as err:
            raise TransportError(
                f"{err.filename or 'the management identity'} is not there", link="identity"
            ) from None
        except OSError as err:
            raise failure(err, host, self._name) from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def ask(self, tags: str, wait: int) -> None:
        """Sends the question; the answer is `receive`'s."""
        host = self._name if self._port != 443 else self._name.rpartition(":")[0]
        lines = ["GET /rmagent/settings HTTP/1.1", f"Host: {host}", f"Prefer: wait={wait}"]
        if tags:
            lines.append(f"If-None-Match: {tags}")
        self._data = b""
        try:
            self._socket.settimeout(TIMEOUT)
            self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            self._socket.setblocking(False)
        except OSError as err:
            raise failure(err, self._host, self._name) from None

    def receive(self) -> Answer | None:
        """What has arrived: the answer, or None while there is more to come."""
        while True:
            try:
                data = self._socket.recv(4096)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None
            except OSError as err:
                raise failure(err, self._host, self._name) from None
            if not data:
                raise failure(ConnectionResetError(), self._host, self._name)
            self._data += data
            if (answer := parse_head(self._data)) is not None:
                return answer


def _split(server: str) -> tuple[str, int]:
    """Host and port of a URL that registration has checked."""
    rest = server.removeprefix("https://").rstrip("/")
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = rest.partition(":")
    if not host or (port and not (port.isascii() and port.isdecimal())):
        raise TransportError(f"{server[:200]!r} is not the address of a proxy", link="name")
    return host, int(port or 443)
