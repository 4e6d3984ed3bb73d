"""HTTP and HTTPS for the lab CA: a thread for each connection, bounded in number, size and time."""

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
from typing import Any, Protocol

from ..codec import est
from ..codec.http import Request, Response
from ..errors import Error
from ..record import replace
from .authority import Authority

__all__ = ["Server", "Service", "run", "tls_context"]

MAX_BODY = 65_536
TIMEOUT = 20.0  # seconds a connection may stay silent, the handshake included
MAX_CONNECTIONS = 64


class Service(Protocol):
    def answer(self, request: Request, client: bytes | None) -> Response:
        """`client`: the verified TLS client certificate, DER."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lab-ca"
    sys_version = ""
    timeout = TIMEOUT
    wbufsize = 65_536  # header and body leave together: some EST clients read the header in one go
    server: Server

    def setup(self) -> None:
        self.request.settimeout(TIMEOUT)
        if self.server.context is not None:
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
            response = replace(response, body=b"")
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
        client = self.connection.getpeercert(True) if self.server.context is not None else None
        return self.server.service.answer(request, client)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        line = (format % args).encode("ascii", "backslashreplace").decode()
        self.server.log(f"{self.client_address[0]} {line[:300]}")


def tls_context(authority: Authority, clients: Path | None = None) -> ssl.SSLContext:
    """The server's certificate; a client's is asked for, of our CAs or those of the file `clients`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*authority.server_files)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(authority.directory / "root.pem")
    context.load_verify_locations(authority.directory / "issuing.pem")
    if clients:
        try:
            context.load_verify_locations(clients)
        except (OSError, ssl.SSLError) as err:
            raise Error(f"{clients} holds no CA certificates: {err}") from None
    return context


class Server(ThreadingHTTPServer):
    """name: "est", "scep" or "scep_https". context None: plain HTTP."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        service: Service,
        context: ssl.SSLContext | None,
        quiet: bool,
    ) -> None:
        self.name = name
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, _Handler)
        except OSError as err:
            raise Error(f"cannot listen on {address[0]}:{address[1]}: {err.strerror or err}") from None
        self.service = service
        self.context = context
        self._quiet = quiet
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"{'http' if self.context is None else 'https'}://{shown}:{port}"

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


def run(servers: list[Server], directory: Path) -> None:
    """Serves until SIGTERM or SIGINT; `directory`/run.json names process and ports meanwhile."""
    place = directory / "run.json"
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    ports = {f"{server.name}_port": server.server_address[1] for server in servers}
    temporary = directory / "run.json.new"
    temporary.write_text(json.dumps({"pid": os.getpid(), **ports}) + "\n")
    temporary.replace(place)
    threads = [threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    for server in servers:
        print(f"lab-ca: {server.name.partition('_')[0].upper()} on {server.url}", flush=True)
    try:
        while not ended.wait(0.5):
            pass
    finally:
        place.unlink(missing_ok=True)
        for server in servers:
            server.shutdown()
            server.server_close()
