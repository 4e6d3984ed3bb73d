"""A proxy that is told to end: it says so, finishes what runs, and sends on whoever waits; behind HAProxy nobody notices."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from igelcert.proxy.initialise import initialise, join
from tests.load.ca import SlowCa, slow_ca
from tests.support.chain import Proxy
from tests.support.fronts import BALANCER, haproxy
from tests.support.keep import Keep
from tests.support.postgres import Cluster
from tests.support.proxies import ANY, Member, request, use
from tests.support.until import until

SETTINGS = "/rmagent/settings"
DRAIN = 8  # seconds
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[SlowCa]:
    with slow_ca(tmp_path / "ca") as made:
        yield made


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    data = tmp_path / "0/data"
    initialise(data, ["localhost"], ANY, ANY)
    with (data / "proxy.toml").open("a") as file:
        file.write("upstream_timeout = 90\n")
    made = Keep(data, drain=DRAIN)
    made.start()
    yield made
    made.kill()


def ask(gate: Proxy, member: Member, wait: int = 0, etag: str = "") -> Answer:
    headers = {"Prefer": f"wait={wait}", "If-None-Match": etag} if wait else {}
    return gate.ask("GET", SETTINGS, client=(member.pem, member.pem), headers=headers, timeout=90 + wait)


@pytest.mark.slow
def test_it_ends_when_others_know_and_what_runs_is_done(keep: Keep, ca: SlowCa, tmp_path: Path) -> None:
    gate = Proxy(keep.data, keep.port, keep.admin_port)
    use(gate, ca)
    keep.await_ready()
    members = Member.all(gate, tmp_path / "fleet", 14, "DRAIN")
    etag = ask(gate, members[0])[1]["etag"]
    csr = members[0].csr()
    with ThreadPoolExecutor(16) as pool, ExitStack() as stack:
        stack.enter_context(ca.held())  # a certificate is still asked for when no more connections are taken
        waiting = [pool.submit(ask, gate, member, 60, etag) for member in members[2:]]
        running = pool.submit(request, gate, members[0], csr)
        until(lambda: f"igelcert_waiting_devices {len(waiting)}.0" in gate.admin("/metrics")[1])
        until(lambda: ca.seen().inside)
        assert keep.process
        start = time.monotonic()
        keep.process.send_signal(signal.SIGTERM)
        says = 503, "not ready: this proxy is about to end\n"
        until(lambda: gate.admin("/readyz") == says, DRAIN - 2, "it does not say that it ends")
        later = [int(each.result(10)[1]["retry-after"]) for each in waiting]
        assert {each.result()[0] for each in waiting} == {304}
        assert min(later) >= 5 and max(later) <= 35 and len(set(later)) > 4, "spread out"
        # who has not heard of it is served, and told to come back on another connection; nobody waits here any more
        rounds = 0
        while not rounds or time.monotonic() < start + 3:
            rounds += 1
            status, headers, _ = ask(gate, members[1])
            assert (status, headers["connection"]) == (200, "close")
            status, headers, _ = ask(gate, members[1], 60, etag)
            assert status == 304 and 5 <= int(headers["retry-after"]) <= 35
            assert gate.admin("/healthz")[0] == 200
            time.sleep(0.2)
        assert keep.process.poll() is None
        until(lambda: closed(gate), 3 * DRAIN)
        assert time.monotonic() > start + DRAIN - 0.5
        time.sleep(0.5)
        assert not running.done() and keep.process.poll() is None
        stack.close()
        assert running.result(20)[0] == 200, "what was begun is finished"
        assert keep.process.wait(20) == 0


def test_who_is_before_the_door_is_let_in(keep: Keep) -> None:
    """Connections that the kernel has accepted when the time is over are answered, not reset."""
    gate = Proxy(keep.data, keep.port, keep.admin_port)
    until(lambda: serves(gate))
    assert keep.process
    workers = children(keep.process.pid)
    start = time.monotonic()
    keep.process.send_signal(signal.SIGTERM)
    time.sleep(2)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    held = [socket.create_connection(("127.0.0.1", keep.port), timeout=30) for _ in range(5)]
    trust = ssl.create_default_context(cafile=str(gate.data / "trust.pem"))

    def ask(each: socket.socket) -> bytes:
        with trust.wrap_socket(each, server_hostname="localhost") as line:
            line.sendall(b"GET /rmagent/cacerts HTTP/1.1\r\nHost: x\r\n\r\n")
            return line.recv(100)

    with ThreadPoolExecutor(len(held)) as pool:
        answers = [pool.submit(ask, each) for each in held]
        time.sleep(max(0.0, start + DRAIN + 0.3 - time.monotonic()))
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        for answer in answers:
            assert answer.result().startswith(b"HTTP/1.1 200 ")
    assert keep.process.wait(30) == 0


def closed(gate: Proxy) -> bool:
    """Nobody listens there any more."""
    try:
        socket.create_connection(("127.0.0.1", gate.port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


def serves(gate: Proxy) -> bool:
    with contextlib.suppress(OSError):
        return gate.ask("GET", "/rmagent/cacerts")[0] == 200
    return False


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def waiting_at(keep: Keep) -> int:
    """How many devices wait there."""
    found = re.search(
        r"^igelcert_waiting_devices (\d+)", Proxy(keep.data, 0, keep.admin_port).admin("/metrics")[1], re.M
    )
    return int(found[1]) if found else 0


class Load:
    """Devices that ask again and again, each time on a new connection; what went wrong."""

    def __init__(self, gate: Proxy, members: list[Member]) -> None:
        self.wrong: list[str] = []
        self.done = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(gate, member)) for member in members]
        for thread in self._threads:
            thread.start()

    def _ask(self, gate: Proxy, member: Member) -> None:
        while not self._ended.is_set():
            try:
                for status in (ask(gate, member)[0], request(gate, member, member.csr())[0]):
                    if status not in {200, 202}:
                        self.wrong.append(f"answered {status}")
                    self.done += 1
            except OSError as err:
                self.wrong.append(f"{type(err).__name__}: {err}")

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.peers
@pytest.mark.slow
def test_behind_haproxy_nobody_notices(postgres: Cluster, tmp_path: Path) -> None:
    """One of two is drained under load, and comes back."""
    url = postgres.url(name := postgres.create())
    places = [tmp_path / str(number) / "data" for number in range(2)]
    initialise(places[0], ["localhost"], ANY, ANY, url)
    join(places[1], url, places[0] / "master.key", [], ANY, ANY)
    for place in places:
        with (place / "proxy.toml").open("a") as file:
            file.write(BALANCER + "\n")
    keeps = [Keep(place, drain=DRAIN) for place in places]
    try:
        with slow_ca(tmp_path / "ca", delay=0.1) as ca:
            for keep in keeps:
                keep.start()
            gates = [(each.port, each.admin_port) for each in keeps]
            direct = Proxy(places[0], 0, keeps[0].admin_port)
            use(direct, ca)
            members = Member.all(direct, tmp_path / "fleet", 14, "FRONT")
            for keep in keeps:
                keep.await_ready()
            with haproxy(tmp_path / "front", gates) as front:
                _drain_one(front.before(direct), keeps, members)
    finally:
        for keep in keeps:
            keep.kill()
        postgres.drop(name)


def _drain_one(gate: Proxy, keeps: list[Keep], members: list[Member]) -> None:
    etag = ask(gate, members[0])[1]["etag"]
    busy, patient = members[:6], members[6:]
    leaving = keeps[0].process
    assert leaving
    with ThreadPoolExecutor(8) as pool:
        waiting: list[Future[Answer]] = [pool.submit(ask, gate, member, 300, etag) for member in patient]
        load = Load(gate, busy)
        until(lambda: load.done > len(busy))
        until(lambda: all(at := [waiting_at(keep) for keep in keeps]) and sum(at) == len(waiting))
        leaving.send_signal(signal.SIGTERM)
        assert leaving.wait(DRAIN + 20) == 0
        before = load.done
        until(lambda: load.done > before + len(busy), say="the other one does not go on")
        load.end()
        assert not load.wrong, load.wrong
        sent_on = [each.result() for each in waiting if each.done()]
        assert 0 < len(sent_on) < len(waiting), "half of them waited there"
        assert all(status == 304 and 5 <= int(headers["retry-after"]) <= 35 for status, headers, _ in sent_on)
        # back in time, they wait at the other one
        again = [pool.submit(ask, gate, member, 1, etag) for member in patient[: len(sent_on)]]
        assert all(each.result()[1].get("preference-applied") == "wait=1" for each in again)
        keeps[1].process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        assert {each.result(20)[0] for each in waiting} == {304}
