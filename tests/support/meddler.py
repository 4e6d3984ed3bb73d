"""A man in the middle on plain HTTP, between a proxy and its SCEP CA: passes everything, and does what he is told."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

__all__ = ["Meddler", "meddler"]


class Meddler:
    """twist: makes another answer of a PKIOperation's; None from it cuts the connection. seen: what passed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.target = f"{parts.scheme}://{parts.netloc}"
        self.path = parts.path
        self.twist: Callable[[bytes], bytes | None] = lambda body: body
        self.twist_cas: Callable[[bytes], bytes] = lambda body: body  # of GetCACert
        self.answers: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


@contextlib.contextmanager
def meddler(url: str) -> Iterator[Meddler]:
    state = Meddler(url)

    class Handler(BaseHTTPRequestHandler):
        timeout = 20

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(size) if size else None
            asked = urllib.request.Request(state.target + self.path, data=data, method=self.command)
            if kind := self.headers.get("Content-Type"):
                asked.add_header("Content-Type", kind)
            try:
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    status, body, kind = answer.status, answer.read(), answer.headers.get("Content-Type")
            except urllib.error.HTTPError as err:
                status, body, kind = err.code, err.read(), err.headers.get("Content-Type")
            if "GetCACert" in self.path:
                body = state.twist_cas(body)
            if "PKIOperation" in self.path:
                state.answers.append(body)
                changed = state.twist(body)
                if changed is None:
                    self.close_connection = True
                    return
                body = changed
            self.send_response(status)
            if kind:
                self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
