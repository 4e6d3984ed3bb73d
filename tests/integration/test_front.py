"""The proxy's front: many, slow, broken and hostile clients; a trusted TLS front end before it."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.badca import bad_ca, keystore
from tests.support.chain import Device, LabCa, Proxy, proxy
from tests.support.tree import new_csr

SETTINGS = "/rmagent/settings"


@pytest.fixture(scope="module")
def gate(lab: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    # few threads: whoever holds one is noticed
    with proxy(tmp_path_factory.mktemp("gate") / "data", "threads = 4\nupstream_timeout = 10") as made:
        made.use(lab)
        certs = {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}, "subject": {"auto_cn": "hostname"}}
        made.profile("lan", certs, directory="/")
        yield made


@pytest.fixture(scope="module")
def device(gate: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Device:
    made = gate.device(tmp_path_factory.mktemp("device") / "root", "FRONT", "tc-front")
    made.sync()
    return made


def raw(gate: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gate.port), timeout=30)


def secure(gate: Proxy, device: Device | None = None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(gate.data / "trust.pem"))
    if device:
        context.load_cert_chain(device.agent / "cert.pem", device.agent / "key.pem")
    return context.wrap_socket(raw(gate), server_hostname="localhost")


def answer(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while part := connection.recv(65_536):
        found += part
    return found


def test_stalled_clients_hold_up_nobody(gate: Proxy, device: Device) -> None:
    """Silent ones, halves of a ClientHello, halves of a request: many times more than there are threads."""
    held: list[socket.socket] = []
    try:
        for number in range(120):
            connection = raw(gate)
            held.append(connection)
            if number % 3 == 1:
                connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            elif number % 3 == 2:
                held[-1] = secure(gate)
                held[-1].sendall(b"POST /rmagent/report HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
                connection.close()
        start = time.monotonic()
        for _ in range(5):
            assert gate.ask("GET", SETTINGS, client=device)[0] == 200
        assert time.monotonic() - start < 9, "each waits for no stalled client"
        # and they do not stay: the handshake has ten seconds
        held[0].settimeout(20)
        assert held[0].recv(1) == b""
    finally:
        for connection in held:
            connection.close()


def test_a_ca_that_stalls_holds_up_neither_settings_nor_health(
    gate: Proxy, lab: LabCa, device: Device, tmp_path: Path
) -> None:
    with bad_ca(tmp_path / "ca") as ca:
        ca.mode = "stalled"
        store = keystore(tmp_path / "ra.p12", (ca.key, ca.cert))
        gate.use_est(ca.port, store, store.with_suffix(".password"))
        try:
            bodies = [new_csr(tmp_path / f"{n}.csr", "/CN=tc-front", "DNS:tc-front") for n in range(3)]
            found: list[int] = []

            def enroll(body: bytes) -> None:
                found.append(gate.ask("POST", "/.well-known/est/lan/simpleenroll", body, client=device)[0])

            threads = [threading.Thread(target=enroll, args=(body,)) for body in bodies]
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            start = time.monotonic()
            assert gate.ask("GET", SETTINGS, client=device)[0] == 200
            assert gate.admin("/healthz")[0] == 200
            assert time.monotonic() - start < 9
            for thread in threads:
                thread.join(30)
            assert 503 in found and set(found) <= {202, 503}
        finally:
            gate.use(lab)


def test_the_same_request_many_times_at_once_is_issued_once(
    gate: Proxy, lab: LabCa, device: Device, tmp_path: Path
) -> None:
    body = new_csr(tmp_path / "same.csr", "/CN=tc-front", "DNS:tc-front")
    before = len(lab.issued())
    found: list[tuple[int, bytes]] = []

    def enroll() -> None:
        status, _, text = gate.ask("POST", "/.well-known/est/lan/simpleenroll", body, client=device)
        found.append((status, text))

    threads = [threading.Thread(target=enroll) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {status for status, _ in found} <= {200, 202}
    assert len({text for status, text in found if status == 200}) == 1
    assert len(lab.issued()) == before + 1


CHUNKED = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUESTS = {
    "no length": (b"POST /rmagent/report HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "bad length": (b"POST /rmagent/report HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "two lengths": (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "length and chunked": (
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "too large": (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n", 413),
    "chunks too large": (
        CHUNKED + b"ffff\r\n" + b"a" * 65535 + b"\r\nffff\r\n", 413),
    "endless header": (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431),
    "not HTTP": (b"\x00\x01\x02\x03 hello\r\n\r\n", 400),
    "no such path": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_broken_http(gate: Proxy, device: Device, case: str) -> None:
    octets, status = REQUESTS[case]
    with secure(gate, device) as connection:
        connection.settimeout(40)
        try:
            connection.sendall(octets)
            found = answer(connection)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            found = b""
        if found:
            assert found.split(b" ", 2)[1] == str(status).encode(), found[:200]
            assert b"Traceback" not in found
        else:
            assert case in {"endless header", "chunks too large", "too large"}, (
                "it may stop us before we are done"
            )
    assert gate.ask("GET", SETTINGS, client=device)[0] == 200


def test_requests_in_a_row_and_in_pieces(gate: Proxy, device: Device) -> None:
    """Keep-alive, two requests in one write, one octet a write, and Expect: 100-continue."""
    one = b"GET /rmagent/settings HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /rmagent/settings HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with secure(gate, device) as connection:
        connection.sendall(one + one + last)
        assert answer(connection).count(b"HTTP/1.1 200 OK") == 3
    with secure(gate, device) as connection:
        for octet in last:
            connection.sendall(bytes([octet]))
        assert answer(connection).startswith(b"HTTP/1.1 200 OK")
    with secure(gate, device) as connection:
        connection.sendall(
            b"POST /rmagent/report HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert b" 204 " in answer(connection)


def test_plain_http_on_the_tls_port(gate: Proxy, device: Device) -> None:
    with raw(gate) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.settimeout(15)
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.1 200" not in answer(connection)
    assert gate.ask("GET", SETTINGS, client=device)[0] == 200


def header(device: Device) -> dict[str, str]:
    der = ssl.PEM_cert_to_DER_cert((device.agent / "cert.pem").read_text())
    return {"Client-Cert": f":{base64.b64encode(der).decode()}:"}


def test_a_client_cert_header_from_anybody_is_worth_nothing(gate: Proxy, device: Device) -> None:
    assert gate.ask("GET", SETTINGS, headers=header(device))[0] == 401


def test_a_trusted_front_end(lab: LabCa, tmp_path: Path) -> None:
    with proxy(tmp_path / "data", 'trusted_frontends = ["127.0.0.0/8"]') as gate:
        device = gate.device(tmp_path / "root", "BEHIND", "tc-behind", register=False)
        # registration is anonymous, and works through the front end as well
        device.register(gate, tmp_path / "BEHIND.token")
        assert gate.ask("GET", SETTINGS, headers=header(device))[0] == 200
        # its own connection to us is no device's
        assert gate.ask("GET", SETTINGS, client=device)[0] == 401
        for value in ("garbage", ":***:", "::", ":AAAA:", ":" + "A" * 20_000 + ":"):
            assert gate.ask("GET", SETTINGS, headers={"Client-Cert": value})[0] in {400, 401, 431}


def test_a_restart_keeps_everything(lab: LabCa, tmp_path: Path) -> None:
    with proxy(tmp_path / "data") as gate:
        gate.use(lab)
        device = gate.device(tmp_path / "root", "STAYS", "tc-stays")
        trust, server = (gate.data / "trust.pem").read_bytes(), (gate.data / "server.pem").read_bytes()
    assert not (tmp_path / "data/run.json").exists()
    with proxy(tmp_path / "data") as gate:
        assert gate.ask("GET", SETTINGS, client=device)[0] == 200
        assert (trust, server) == (
            (gate.data / "trust.pem").read_bytes(),
            (gate.data / "server.pem").read_bytes(),
        )
        assert "FAILED" not in gate.cli("ca", "test")
