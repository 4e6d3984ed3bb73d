"""Between a client and a server: passes everything on, and keeps what the server says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Wiretap", "wiretap"]


class Wiretap:
    """port: where the client is to go. said: every octet of every answer, as text."""

    def __init__(self, listener: socket.socket, target: int) -> None:
        self.port: int = listener.getsockname()[1]
        self._listener, self._target = listener, target
        self._heard: list[bytearray] = []

    @property
    def said(self) -> str:
        return "\n".join(bytes(each).decode("utf-8", "replace") for each in list(self._heard))

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                heard = bytearray()
                self._heard.append(heard)
                for source, sink, kept in ((client, server, None), (server, client, heard)):
                    threading.Thread(target=self._pass_on, args=(source, sink, kept), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if kept is not None:
                    kept += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def wiretap(target: int) -> Iterator[Wiretap]:
    """In front of 127.0.0.1:target."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Wiretap(listener, target)
        threading.Thread(target=made.serve, daemon=True).start()
        yield made
