"""Devices that wait for a change of their settings: told within a second, without a thread, within bounds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from igelcert.proxy.app import make_device_app
from igelcert.proxy.context import Context
from tests.support.chain import Device, LabCa, Proxy, proxy
from tests.support.crowd import crowd, register
from tests.support.tree import new_csr
from tests.support.until import PATIENCE, until

SETTINGS = "/rmagent/settings"
CERT = {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}, "subject": {"auto_cn": "hostname"}}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    # few threads: who waits must hold none
    with proxy(tmp_path_factory.mktemp("gate") / "data", "threads = 2\nwaiting = 3") as made:
        made.profile("first", CERT)
        made.profile("second", {**CERT, "friendly_name": "vpn"})
        yield made


def figure(gate: Proxy, name: str) -> int:
    found = re.search(rf"^{name} ([0-9.]+)$", gate.admin("/metrics")[1], re.MULTILINE)
    assert found, gate.admin("/metrics")[1]
    return int(float(found[1]))


def until_waiting(gate: Proxy, count: int, seconds: float = PATIENCE) -> None:
    """As many devices wait."""
    until(lambda: figure(gate, "igelcert_waiting_devices") == count, seconds)


def secure(gate: Proxy, device: Device) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(gate.data / "trust.pem"))
    context.load_cert_chain(device.agent / "cert.pem", device.agent / "key.pem")
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", gate.port), timeout=30), server_hostname="localhost"
    )


def answer(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while part := connection.recv(65_536):
        found += part
    return found


class Waiting(threading.Thread):
    """A request that waits. answer: status, headers, body; took: seconds until it came."""

    def __init__(self, gate: Proxy, device: Device, seconds: int, etag: str = "") -> None:
        super().__init__()
        self.gate = gate
        self.device = device
        etag = etag or gate.ask("GET", SETTINGS, client=device)[1]["etag"]
        self.headers = {"Prefer": f"respond-async, wait={seconds}", "If-None-Match": etag}
        self.answer: tuple[int, dict[str, str], bytes] = (0, {}, b"")
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self.answer = self.gate.ask("GET", SETTINGS, client=self.device, headers=self.headers, timeout=60)
        self.ended = time.monotonic()

    def done(self, seconds: float) -> tuple[int, dict[str, str], bytes]:
        self.join(seconds)
        assert not self.is_alive(), f"no answer within {seconds} s"
        return self.answer


def test_a_change_by_another_process_arrives(gate: Proxy, root: Path) -> None:
    device = gate.device(root, "CHANGED", "tc-changed", directory="/Changed/Below")
    took = []
    for act in (
        ("profile", "assign", "first", "--directory", "/Changed"),
        ("profile", "assign", "second", "--device", "CHANGED"),
        ("profile", "unassign", "first", "--directory", "/Changed"),
    ):
        waiting = Waiting(gate, device, 30)
        until_waiting(gate, 1)
        gate.cli(*act)
        committed = time.monotonic()
        status, headers, body = waiting.done(20)
        assert status == 200 and headers["preference-applied"] == "wait=30"
        assert headers["etag"] != waiting.headers["If-None-Match"] and b'"certs"' in body
        took.append(waiting.ended - committed)
        until_waiting(gate, 0)  # what is shown may be half a second old
    assert min(took) < 1 and statistics.median(took) < 3, (
        "the commands have ended, so the changes are at most that old"
    )


def test_a_change_elsewhere_wakes_nobody(gate: Proxy, root: Path) -> None:
    device = gate.device(root, "QUIET", "tc-quiet", directory="/Quiet")
    start = time.monotonic()
    waiting = Waiting(gate, device, 10)
    until_waiting(gate, 1)
    before = gate.log().count("QUIET GET"), figure(gate, "igelcert_waiting_devices_woken_total")
    gate.cli("profile", "assign", "first", "--directory", "/Quie")
    gate.cli("profile", "assign", "first", "--directory", "/Quiet/Below")
    gate.cli("profile", "set", "second", "--settings", gate.data.parent / "profile.json")
    status, headers, body = waiting.done(30)
    assert (status, body, headers["preference-applied"]) == (304, b"", "wait=10")
    assert waiting.ended - start > 9
    assert "retry-after" not in headers
    assert gate.log().count("QUIET GET") == before[0] + 1
    assert figure(gate, "igelcert_waiting_devices_woken_total") == before[1]


def test_a_change_that_comes_to_nothing_is_not_told(gate: Proxy, root: Path) -> None:
    """The settings are looked at again, are the same, and the device goes on waiting until its time is over."""
    device = gate.device(root, "SAME", "tc-same", directory="/Same")
    gate.cli("profile", "assign", "first", "--directory", "/Same")
    waiting = Waiting(gate, device, 30)
    until_waiting(gate, 1)
    gate.profile("first", CERT)
    time.sleep(1.2)
    assert waiting.is_alive() and figure(gate, "igelcert_waiting_devices") == 1
    gate.profile("first", {**CERT, "subject": {"auto_cn": "unitid"}})
    status, _, body = waiting.done(20)
    assert status == 200 and b'"unitid"' in body
    gate.profile("first", CERT)
    waiting = Waiting(gate, device, 8)
    until_waiting(gate, 1)
    start = time.monotonic()
    time.sleep(5)
    changed = time.monotonic()
    gate.profile("first", CERT)
    assert waiting.done(30)[0] == 304
    assert waiting.ended - start < 8 + 0.9 * (changed - start), "the time is not counted anew"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Prefer": "wait=30"}, 200),
        ({"Prefer": "wait=30", "If-None-Match": '"other"'}, 200),
        ({"If-None-Match": "same"}, 304),
        ({"If-None-Match": "same", "Prefer": "wait=0"}, 304),
        ({"If-None-Match": "same", "Prefer": "wait"}, 304),
        ({"If-None-Match": "same", "Prefer": "wait=abc, respond-async"}, 304),
        ({"If-None-Match": "same", "Prefer": 'x="a, wait=30"'}, 304),
    ],
)
def test_what_is_answered_at_once(gate: Proxy, quick: Device, headers: dict[str, str], status: int) -> None:
    etag = gate.ask("GET", SETTINGS, client=quick)[1]["etag"]
    if headers.get("If-None-Match") == "same":
        headers = {**headers, "If-None-Match": etag}
    start = time.monotonic()
    found = gate.ask("GET", SETTINGS, client=quick, headers=headers)
    assert found[0] == status and time.monotonic() - start < 15
    assert not {"preference-applied", "retry-after"} & set(found[1])


def test_a_long_wait_is_cut(gate: Proxy, quick: Device) -> None:
    waiting = Waiting(gate, quick, 100_000)
    until_waiting(gate, 1)
    gate.cli("profile", "assign", "second", "--device", quick.unit_id)
    assert waiting.done(30)[1]["preference-applied"] == "wait=600"
    gate.cli("profile", "unassign", "second", "--device", quick.unit_id)


@pytest.fixture(scope="module")
def quick(gate: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return gate.device(tmp_path_factory.mktemp("quick") / "root", "QUICK", "tc-quick", directory="/Quick")


def test_a_client_that_goes_is_forgotten(gate: Proxy, quick: Device) -> None:
    etag = gate.ask("GET", SETTINGS, client=quick)[1]["etag"]
    request = (
        f"GET {SETTINGS} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {etag}\r\nPrefer: wait=60\r\n\r\n".encode()
    )
    for rude in (False, True):
        connection = secure(gate, quick)
        connection.sendall(request)
        until_waiting(gate, 1)
        if rude:  # a reset, in place of a farewell
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        until_waiting(gate, 0)
    # one that says more than anybody needs to say while it waits
    with secure(gate, quick) as connection:
        connection.sendall(request)
        until_waiting(gate, 1)
        with contextlib.suppress(OSError):
            connection.sendall(b"x" * 100_000)
        until_waiting(gate, 0)


def test_the_next_request_may_come_while_one_waits(gate: Proxy, quick: Device) -> None:
    etag = gate.ask("GET", SETTINGS, client=quick)[1]["etag"]
    head = f"GET {SETTINGS} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {etag}\r\n"
    with secure(gate, quick) as connection:
        connection.sendall(f"{head}Prefer: wait=8\r\n\r\n".encode())
        until_waiting(gate, 1)
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert answer(connection).count(b"HTTP/1.1 304 ") == 2
    until_waiting(gate, 0)


def test_a_device_waits_once_at_a_process(tmp_path: Path) -> None:
    """Its older connection, mostly dead, makes way; two with one identity do not chase each other."""
    with proxy(tmp_path / "data", "processes = 1") as gate:
        quick = gate.device(tmp_path / "root", "ONCE", "tc-once")
        older = Waiting(gate, quick, 30)
        until_waiting(gate, 1)
        newer = Waiting(gate, quick, 3)
        status, headers, _ = older.done(20)
        assert status == 304 and 30 <= int(headers["retry-after"]) <= 90
        assert newer.done(30)[0] == 304
        until_waiting(gate, 0)


def test_no_more_than_the_bound(gate: Proxy, tmp_path: Path) -> None:
    assert figure(gate, "igelcert_waiting_devices_max") == 3
    made = [
        gate.device(tmp_path / f"{n}" / "root", f"BOUND{n}", f"tc-bound{n}", directory="/Bound")
        for n in range(5)
    ]
    waiting = [Waiting(gate, device, 30) for device in made[:3]]
    until_waiting(gate, 3)
    later = set()
    for _ in range(4):
        for device in made[3:]:
            beyond = Waiting(gate, device, 30)
            status, headers, _ = beyond.done(20)
            assert status == 304 and "preference-applied" not in headers
            later.add(int(headers["retry-after"]))
    assert len(later) > 1 and 30 <= min(later) <= max(later) <= 90
    # threads = 2: those that wait hold none
    assert gate.ask("GET", SETTINGS, client=made[4])[0] == 200
    gate.cli("profile", "assign", "first", "--directory", "/Bound")
    assert [each.done(20)[0] for each in waiting] == [200, 200, 200]
    until_waiting(gate, 0)


def test_a_device_that_is_removed_or_registers_anew(gate: Proxy, tmp_path: Path) -> None:
    gone = gate.device(tmp_path / "1/root", "GONE", "tc-gone")
    waiting = Waiting(gate, gone, 30)
    until_waiting(gate, 1)
    gate.cli("device", "remove", "--unit-id", "GONE")
    status, _, body = waiting.done(20)
    assert status == 403 and b"removed" in body
    anew = gate.device(tmp_path / "2/root", "ANEW", "tc-anew")
    waiting = Waiting(gate, anew, 30)
    until_waiting(gate, 1)
    token = tmp_path / "token"
    token.write_text(json.loads(gate.cli("device", "token", "--unit-id", "ANEW", "--json"))["token"])
    twin = Device(tmp_path / "3/root", "ANEW", "tc-anew")
    shutil.copytree(anew.root / "etc", twin.root / "etc")
    twin.register(gate, token)
    assert waiting.done(20)[0] == 403


def gone(pid: int) -> bool:
    """A child of this process that has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return not Path(f"/proc/{pid}").exists()


def test_a_proxy_that_stops_sends_them_on(tmp_path: Path) -> None:
    with proxy(tmp_path / "data") as gate:
        made = [gate.device(tmp_path / f"{n}/root", f"STOP{n}", f"tc-stop{n}") for n in range(4)]
        waiting = [Waiting(gate, device, 60) for device in made]
        until_waiting(gate, 4)
        pid = json.loads((gate.data / "run.json").read_text())["pid"]
        start = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        later = []
        for each in waiting:
            status, headers, _ = each.done(30)
            assert status == 304 and headers["etag"] == each.headers["If-None-Match"]
            later.append(int(headers["retry-after"]))
        assert all(each.ended - start < 20 for each in waiting)
        assert 5 <= min(later) <= max(later) <= 35
        until(lambda: gone(pid), 30, "it does not end when all are answered")


def test_a_server_of_somebody_else_cannot_wait(gate: Proxy, quick: Device) -> None:
    """The WSGI program without our worker: 304 at once, with a time to come back at."""
    program = make_device_app(Context.open(gate.data))
    der = ssl.PEM_cert_to_DER_cert((quick.agent / "cert.pem").read_text())

    class Connection:
        def getpeercert(self, _binary: bool) -> bytes:
            return der

    client, environ = program.test_client(), {"gunicorn.socket": Connection()}
    etag = client.get(SETTINGS, environ_overrides=environ).headers["ETag"]
    headers = {"If-None-Match": etag, "Prefer": "wait=60"}
    later = [
        int(client.get(SETTINGS, headers=headers, environ_overrides=environ).headers["Retry-After"])
        for _ in range(8)
    ]
    assert len(set(later)) > 1 and 30 <= min(later) <= max(later) <= 90


def workers(pid: int) -> list[str]:
    """The processes below that one."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def resident(pid: int) -> int:
    """Kilobytes of the workers below that process."""
    texts = [Path(f"/proc/{worker}/status").read_text() for worker in workers(pid)]
    found = [re.search(r"VmRSS:\s+(\d+) kB", text) for text in texts]
    assert found and all(found)
    return sum(int(each[1]) for each in found if each)


def pace(gate: Proxy, device: Device, csrs: Path, number: int) -> float:
    """Median seconds of a new certificate, and of the CA's certificates, in turn."""
    took = []
    for n in range(number):
        body = new_csr(
            csrs / f"{n}-{time.monotonic_ns()}.csr", f"/CN={device.hostname}", f"DNS:{device.hostname}"
        )
        start = time.monotonic()
        for _ in range(60):
            status = gate.ask("POST", "/.well-known/est/lan/simpleenroll", body, client=device)[0]
            if status != 202:
                break
            time.sleep(0.5)
        assert status == 200
        assert gate.ask("GET", "/.well-known/est/cacerts")[0] == 200
        took.append(time.monotonic() - start)
    return statistics.median(took)


@contextlib.contextmanager
def few_files() -> Iterator[None]:
    """A limit of open files as a shell mostly has it; the programs raise it themselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_two_thousand_wait(lab: LabCa, tmp_path: Path) -> None:
    """They cost nobody else time, little memory, and all hear of a change within seconds."""
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = 2000 if room == resource.RLIM_INFINITY else min(2000, room - 1500)
    assert count >= 1000, "the limit of open files is too low for this test"
    with few_files(), proxy(tmp_path / "data") as gate:
        gate.use(lab)
        gate.profile("lan", CERT, directory="/")
        gate.cli("profile", "set", "more", "--settings", gate.data.parent / "profile.json")
        device = gate.device(tmp_path / "root", "OTHER", "tc-other", directory="/Other")
        device.sync()
        alone = pace(gate, device, tmp_path, 12)
        units = [f"CROWD{n:05}" for n in range(count)]
        register(gate.data, tmp_path / "crowd", units, "/Crowd/Below")
        pid = json.loads((gate.data / "run.json").read_text())["pid"]
        before = resident(pid)
        with crowd(tmp_path / "crowd", gate.port) as waiting:
            until_waiting(gate, count)
            each = (resident(pid) - before) / count
            beside = min(pace(gate, device, tmp_path, 12) for _ in range(2))
            print(f"\n{count} wait: {each:.0f} kB each; enrollment and cacerts {alone * 1e3:.0f} ms alone, "
                  f"{beside * 1e3:.0f} ms beside them")  # fmt: skip
            assert each < 100 and beside < 3 * alone + 0.25

            gate.cli("profile", "assign", "more", "--directory", "/Other")
            time.sleep(1.2)
            assert figure(gate, "igelcert_waiting_devices") == count
            assert figure(gate, "igelcert_waiting_devices_woken_total") == 0
            gate.profile("more", {**CERT, "friendly_name": "vpn"}, directory="/Crowd")
            committed = time.monotonic()
            slowest = [pace(gate, device, tmp_path, 1) for _ in range(5)]
            answers = waiting.collect(120)
            assert {(row["unit"], row["status"]) for row in answers} == {(unit, 200) for unit in units}
            late = sorted(row["at"] - committed for row in answers)
            print(f"99 % heard of a change within {late[count * 99 // 100]:.1f} s, all within {late[-1]:.1f} s; "
                  f"another enrolls meanwhile in {max(slowest) * 1e3:.0f} ms at most")  # fmt: skip
            assert late[count * 99 // 100] < 45
        until_waiting(gate, 0)
        with crowd(tmp_path / "crowd", gate.port) as waiting:
            until_waiting(gate, count)
            worker = workers(pid)
            # all go at the very moment when all are to be answered
            gate.cli("profile", "unassign", "more", "--directory", "/Crowd")
            waiting.kill()
            until_waiting(gate, 0)
        assert workers(pid) == worker and "Traceback" not in gate.log()
        assert gate.ask("GET", SETTINGS, client=device)[0] == 200
