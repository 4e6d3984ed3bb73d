"""Turns: a few threads at a time, never a standstill."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from igelcert.proxy import tls, turns
from igelcert.proxy.database import Database
from tests.support.badca import make_ca
from tests.support.until import until


def run(*acts: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 10.0)


class Count:
    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self._lock:
            self.now -= 1


def test_so_many_work_at_a_time_and_those_who_wait_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 20.0)
    at_work, asleep = Count(), Count()

    def act() -> None:
        with turns.working():
            at_work.enter()
            time.sleep(0.01)
            at_work.leave()
            with turns.waiting():
                asleep.enter()
                time.sleep(0.2)
                asleep.leave()
            at_work.enter()
            time.sleep(0.01)
            at_work.leave()

    join(run(*[act] * 12))
    assert at_work.most == turns.TURNS
    assert asleep.most > turns.TURNS


def test_a_turn_comes_back_from_who_fails() -> None:
    def fail() -> None:
        with pytest.raises(ValueError, match="no"), turns.working(), turns.waiting():
            raise ValueError("no")

    join(run(*[fail] * 10))
    start = time.monotonic()

    def act() -> None:
        with turns.working():
            pass

    join(run(*[act] * 4))
    assert time.monotonic() - start < 5


def test_nothing_stands_still_where_a_turn_is_never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    end, done = threading.Event(), threading.Event()

    def stuck() -> None:
        with turns.working():
            end.wait(20)

    def act() -> None:
        with turns.working():
            done.set()

    held = run(*[stuck] * (turns.TURNS + 2))
    time.sleep(0.3)
    join(run(act))
    assert done.is_set()
    end.set()
    join(held)


def test_who_is_in_no_hurry_lets_others_go_first_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "COURTESY", 20.0)
    monkeypatch.setattr(turns, "PATIENCE", 20.0)
    order: list[str] = []
    end = threading.Event()

    def hold() -> None:
        with turns.working():
            end.wait(20)

    def urgent() -> None:
        with turns.working():
            order.append("urgent")

    def later() -> None:
        with turns.working(first=False):
            order.append("later")

    held = run(*[hold] * turns.TURNS)
    until(lambda: turns._turns.free.empty() and not turns._turns.wanted)
    waiting = run(urgent, urgent)
    until(lambda: len(turns._turns.wanted) == 2)
    waiting += run(later)
    time.sleep(0.1)
    assert order == [] and len(turns._turns.wanted) == 2, (
        "who is in no hurry does not even stand in the queue"
    )
    end.set()
    join([*held, *waiting])
    assert order == ["urgent", "urgent", "later"]

    end.clear()
    stuck = run(*[hold] * (turns.TURNS + 3))
    until(lambda: len(turns._turns.wanted) == 3)
    monkeypatch.setattr(turns, "COURTESY", 0.05)
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    start = time.monotonic()
    join(run(later))
    assert time.monotonic() - start < 10
    end.set()
    join(stuck)


def test_who_has_no_turn_gives_none_up() -> None:
    with turns.waiting():
        assert turns._turns.free.qsize() == turns.TURNS
    assert turns._turns.free.qsize() == turns.TURNS


def test_who_writes_to_the_database_has_given_the_turn_up(tmp_path: Path) -> None:
    db = Database.sqlite(tmp_path / "db")
    with turns.working():
        assert turns._turns.free.qsize() == turns.TURNS - 1
        with db.begin():
            assert turns._turns.free.qsize() == turns.TURNS
        assert turns._turns.free.qsize() == turns.TURNS - 1
    assert turns._turns.free.qsize() == turns.TURNS


def test_who_waits_for_the_other_side_of_a_connection_has_given_the_turn_up(tmp_path: Path) -> None:
    """Handshake, reading and writing, each while the other side does nothing for a moment."""
    key, cert = make_ca("localhost")
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    (tmp_path / "pair.pem").write_bytes(cert.public_bytes(pem) + key.private_bytes(pem, *form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    context.sslsocket_class = tls.Socket
    large = bytes(8 << 20)  # more than a socket holds
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.settimeout(20)
    begun = [threading.Event() for _ in range(3)]  # ours is at work, and about to wait
    sees = []

    def look() -> None:
        assert begun[len(sees)].wait(20)
        deadline = time.monotonic() + 30
        while (free := turns._turns.free.qsize()) < turns.TURNS and time.monotonic() < deadline:
            time.sleep(0.01)
        sees.append(free)

    def other() -> None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.load_verify_locations(cadata=cert.public_bytes(pem).decode())
        trusting.check_hostname = False  # the certificate has no alternative name
        look()
        with trusting.wrap_socket(theirs) as line:
            look()
            line.sendall(b"a request")
            look()
            left = len(large)
            while left:
                left -= len(line.recv(left))

    threads = run(other)
    with contextlib.closing(ours), turns.working():
        begun[0].set()
        line = context.wrap_socket(ours, server_side=True)
        begun[1].set()
        with line.makefile("rb") as file:  # as http.client reads
            assert file.read(9) == b"a request"
        begun[2].set()
        line.sendall(large)
        assert turns._turns.free.qsize() == turns.TURNS - 1
        line.close()
    join(threads)
    assert sees == [turns.TURNS] * 3
