"""HTTPS for the lab CA: a thread for each connection, bounded in number, size and time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..codec import est
from ..codec.http import Request, Response
from ..errors import Error
from .authority import Authority
from .est import EstService

__all__ = ["EstServer", "run"]

MAX_BODY = 65_536
TIMEOUT = 20.0  # seconds a connection may stay silent, the handshake included
MAX_CONNECTIONS = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lab-ca"
    sys_version = ""
    timeout = TIMEOUT
    wbufsize = 65_536  # header and body leave together: some EST clients read the header in one go
    server: EstServer

    def setup(self) -> None:
        self.request.settimeout(TIMEOUT)
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
            super().handle_one_request()
            return
        self.close_connection = True

    def _serve(self) -> None:
        response = self._response()
        if self.command == "HEAD":
            response = response._replace(body=b"")
        self.send_response(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        if response.status != 204:
            self.send_header("Content-Length", str(len(response.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(response.body)
        self.wfile.flush()

    def _response(self) -> Response:
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            return est.error_response(411, "send the length of the body")
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True
            return est.error_response(
                413 if length > 0 else 400, f"a body of at most {MAX_BODY} bytes is accepted"
            )
        body = self.rfile.read(length)
        request = Request(self.command, self.path, tuple(self.headers.items()), body)
        return self.server.service.answer(request, self.connection.getpeercert(True))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        line = (format % args).encode("ascii", "backslashreplace").decode()
        self.server.log(f"{self.client_address[0]} {line[:300]}")


class EstServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        authority: Authority,
        service: EstService,
        clients: Path | None,
        quiet: bool,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.service = service
        self._quiet = quiet
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(*authority.server_files)
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.load_verify_locations(authority.directory / "root.pem")
        self.context.load_verify_locations(authority.directory / "issuing.pem")
        if clients:
            try:
                self.context.load_verify_locations(clients)
            except (OSError, ssl.SSLError) as err:
                raise Error(f"{clients} holds no CA certificates: {err}") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        err = sys.exc_info()[1]
        if isinstance(err, (ConnectionError, TimeoutError, ssl.SSLError)):
            self.log(f"{client_address[0]} {type(err).__name__}: {err}")
        else:
            super().handle_error(request, client_address)

    def log(self, line: str) -> None:
        if not self._quiet:
            print(f"lab-ca: {line}", file=sys.stderr, flush=True)


def run(server: EstServer, directory: Path) -> None:
    """Serves until SIGTERM or SIGINT; `directory`/run.json names process and port meanwhile."""
    place = directory / "run.json"
    host, port = server.server_address[:2]
    shown = f"[{host!s}]" if ":" in str(host) else str(host)

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    temporary = directory / "run.json.new"
    temporary.write_text(json.dumps({"pid": os.getpid(), "est_port": port}) + "\n")
    temporary.replace(place)
    print(f"lab-ca: EST on https://{shown}:{port}", flush=True)
    try:
        server.serve_forever(poll_interval=0.1)
    finally:
        place.unlink(missing_ok=True)
        server.server_close()
