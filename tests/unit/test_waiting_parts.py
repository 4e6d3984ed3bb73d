"""Parts of waiting by themselves: the Prefer header, places, changes in the database, the thread that looks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import sqlalchemy as sa
from gunicorn.config import Config

from igelcert.errors import StorageError
from igelcert.proxy import changes, devices, profiles, schema, serve
from igelcert.proxy.changes import Change, Watch
from igelcert.proxy.context import Context
from igelcert.proxy.upstream import config as ca
from igelcert.proxy.waiting import REQUEST_MAX, Parked, Place, Room, Visit, preferred_wait
from igelcert.proxy.worker import Connection, Worker
from tests.support.until import until


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, WAIT = 7 ; x=1", 7),
        ('wait="8"', 8),
        ("wait=9, wait=1", 9),  # RFC 7240 2: the first one
        ("wait=999999999", 600),
        ("", 0),
        ("wait", 0),
        ("wait=", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=9999999999", 0),
        ("waiting=5", 0),
        ('foo="a, wait=5, b", bar', 0),
        ('foo="a\\", wait=5', 0),
    ],
)
def test_prefer(header: str, seconds: int) -> None:
    assert preferred_wait(header, 600) == seconds


def test_directories_of_a_place() -> None:
    assert Place("A", "/B/C", "", 0).directories == ["/", "/B", "/B/C"]
    assert Place("A", "/", "", 0).directories == ["/"]


def test_places_are_bounded_and_given_back() -> None:
    room, place = Room(2), Place("A", "/", "", 0)
    visits = [Visit(room, 100) for _ in range(3)]
    for visit in visits[:2]:
        with pytest.raises(Parked):
            visit.wait(place, 5)
    assert 30 <= visits[2].wait(place, 5) <= 90 and room.taken == 2
    with pytest.raises(Parked):  # woken too early, it keeps its place
        visits[0].wait(place, 5)
    assert room.taken == 2
    visits[0].until = time.monotonic() - 1
    assert visits[0].wait(place, 5) == 0
    for visit in (*visits, *visits):
        visit.leave()
    assert room.taken == 0
    assert Visit(room, REQUEST_MAX + 1).wait(place, 5) and room.taken == 0, "too large to keep"
    room.closed = True
    assert 5 <= Visit(room, 100).wait(place, 5) <= 35


@pytest.mark.parametrize(
    ("limits", "waiting", "places", "raised"),
    [
        ((1024, 20_000), 10_000, 10_000, (11_256, 20_000)),
        ((20_000, 20_000), 10_000, 10_000, None),
        ((1024, 4096), 10_000, 2840, (4096, 4096)),
        ((1024, 1024), 10_000, 256, None),
        ((1024, 1024), 0, 0, None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 10_000, 10_000, None),
        ((1024, resource.RLIM_INFINITY), 10_000, 10_000, (11_256, resource.RLIM_INFINITY)),
    ],
)
def test_open_files(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    waiting: int,
    places: int,
    raised: tuple[int, int] | None,
) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, value: made.append(value))
    assert serve.places(waiting) == places
    assert made == ([raised] if raised else [])


def noted(context: Context, after: int) -> list[tuple[str, str]]:
    return [(change.kind, change.target) for change in changes.since(context, after)]


def test_who_is_concerned(context: Context) -> None:
    document = json.dumps({"certs": [{"friendly_name": "lan"}]}).encode()
    devices.add(context, "A1")
    profiles.store(context, "p", document)
    assert changes.newest(context) == 0 and noted(context, 0) == [], "assigned to nobody"
    steps = [
        (lambda: profiles.assign(context, "p", directory="/B"), [("directory", "/B")]),
        (lambda: profiles.assign(context, "p", device="A1"), [("device", "A1")]),
        (lambda: profiles.store(context, "p", document), [("device", "A1"), ("directory", "/B")]),
        (lambda: profiles.allow_passthrough(context, "p", True), []),
        (lambda: profiles.unassign(context, "p", device="A1"), [("device", "A1")]),
        (lambda: profiles.remove(context, "p", force=True), [("directory", "/B")]),
        (lambda: devices.remove(context, "A1"), [("device", "A1")]),
        (lambda: ca.store(context, ca.ScepSettings("x", "http://ca/")), []),
        (
            lambda: ca.store(
                context, ca.ScepSettings("x", "http://ca/", ndes_url="http://ca/admin", ndes_user="u")
            ),
            [("directory", "/")],
        ),
        (lambda: ca.store(context, ca.EstSettings("x", "ca")), [("directory", "/")]),
        (lambda: ca.clear(context), []),
    ]
    for act, expected in steps:
        before = changes.newest(context)
        act()
        assert sorted(noted(context, before)) == expected
        assert changes.newest(context) == before + len(expected)


def test_old_changes_go_and_ids_are_never_used_again(context: Context) -> None:
    with context.db.begin() as connection:
        changes.note(connection, [("device", "A"), ("device", "A"), ("device", "B")])
        connection.execute(sa.update(schema.changes).values(at=1))
    with context.db.begin() as connection:
        changes.note(connection, [("device", "C")])
    assert changes.since(context, 0) == [Change(3, "device", "C")]


def test_a_change_that_is_rolled_back_is_none(context: Context) -> None:
    with pytest.raises(KeyError), context.db.begin() as connection:
        changes.note(connection, [("device", "A")])
        raise KeyError
    assert changes.newest(context) == 0 and changes.since(context, 0) == []


class Table:
    """Changes without a database; `asked` counts looks."""

    def __init__(self) -> None:
        self.rows: list[Change] = []
        self.asked: list[int] = []
        self.told: list[Change] = []
        self.news = threading.Event()
        self.broken = False

    def read(self, position: int) -> list[Change]:
        self.asked.append(position)
        if self.broken:
            raise StorageError("the database is away")
        return [change for change in self.rows if change.id > position]

    def tell(self, found: list[Change]) -> None:
        self.told += found
        self.news.set()

    def hears(self, change: Change) -> None:
        assert self.news.wait(30)
        self.news.clear()
        assert change in self.told
        self.told.clear()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(changes, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(changes, "TROUBLE_SECONDS", 0.05)
    return Table()


@pytest.fixture
def watch(table: Table) -> Iterator[Watch]:
    made = Watch(table.read, table.tell)
    yield made
    made.stop()


def stands_still(table: Table) -> bool:
    before = len(table.asked)
    time.sleep(0.5)
    return len(table.asked) == before


def test_it_looks_only_while_somebody_waits(table: Table, watch: Watch) -> None:
    time.sleep(0.2)
    assert table.asked == []
    watch.look_from(0)
    until(lambda: len(table.asked) > 2)
    watch.rest()
    until(lambda: stands_still(table), say="it goes on looking")
    before = len(table.asked)
    table.rows.append(Change(8, "device", "A"))
    watch.look_from(7)
    table.hears(table.rows[0])
    assert min(table.asked[before:]) == 7, "what was before anybody waited is not read"


def test_who_comes_late_hears_what_was_told_before(table: Table, watch: Watch) -> None:
    """Its settings were read before the change, and it waits only after the change was told."""
    watch.look_from(0)
    table.rows.append(Change(1, "device", "A"))
    table.hears(table.rows[0])
    table.rows.append(Change(2, "device", "B"))
    table.hears(table.rows[1])
    watch.look_from(1)
    table.hears(table.rows[1])
    assert table.asked[-1] >= 1, "what all have heard is not read again"


def test_a_database_that_is_away_is_asked_again(table: Table, watch: Watch) -> None:
    table.broken = True
    watch.look_from(0)
    time.sleep(0.2)
    table.rows.append(Change(1, "device", "A"))
    table.broken = False
    table.hears(table.rows[0])


class Pool:
    """Threads that never come to it."""

    def __init__(self) -> None:
        self.work: list[object] = []

    def submit(self, _function: object, conn: object) -> Future[object]:
        self.work.append(conn)
        return Future()


@pytest.fixture
def worker(table: Table, watch: Watch) -> Iterator[Worker]:
    cfg = Config()
    cfg.user_limits = {"handshake": 1, "request": 1, "waiting": 100}
    cfg.sends_preface = lambda address: address == "balancer"
    cfg.show_gate, cfg.view = lambda: None, contextlib.nullcontext
    made = Worker(1, os.getpid(), [], None, 30, cfg, logging.getLogger("test"))
    made.poller, made.tpool, made.watch = selectors.DefaultSelector(), Pool(), watch
    yield made
    made.tmp.close()
    made.poller.close()


@pytest.mark.parametrize("goes", [False, True])
def test_what_the_poller_saw_before_a_change_is_nothing_after_it(worker: Worker, goes: bool) -> None:
    """One round of the poller brings a change and, for the same connection, octets or its end: one thread gets it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        conn = Connection(worker.cfg, ours, ("", 0), "", admin=False)
        conn.request, conn.visit = b"GET / HTTP/1.1\r\n\r\n", Visit(worker.room, 100)
        with pytest.raises(Parked):
            conn.visit.wait(Place("A", "/", '"x"', 0), 60)
        worker.nr_conns = 1
        worker._park(conn)
        assert worker.nr_conns == 0 and worker.parked == {"A": conn}
        theirs.sendall(b"x")
        if goes:
            theirs.close()
        ((key, _),) = worker.poller.select(1)
        worker._changed([Change(1, "device", "A")])
        key.data(key.fileobj)
        assert worker.tpool.work == [[conn]] and worker.nr_conns == 1 and worker.room.taken == 1
        assert conn.buffer == b"" and ours.fileno() >= 0, "it is the thread's now"


def _asleep(worker: Worker, unit: str, stack: contextlib.ExitStack) -> Connection:
    """A connection that waits."""
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    conn = Connection(worker.cfg, ours, ("", 0), "", admin=False)
    conn.request, conn.visit = b"GET / HTTP/1.1\r\n\r\n", Visit(worker.room, 100)
    with pytest.raises(Parked):
        conn.visit.wait(Place(unit, "/", '"x"', 0), 60)
    worker.nr_conns += 1
    worker._park(conn)
    return conn


class Clock:
    """In place of the module time."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds


def test_those_that_waited_are_answered_in_batches(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread has sixteen; another, up to a quarter of all, when that one is held up. What a thread does not come to
    in its time goes on with another."""
    worker.cfg.set("threads", 8)
    clock = Clock()
    monkeypatch.setattr("igelcert.proxy.worker.time", clock)
    with contextlib.ExitStack() as stack:
        conns = [_asleep(worker, str(number), stack) for number in range(50)]
        worker._changed([Change(1, "directory", "/")])
        assert worker.tpool.work == [conns[:16]] and worker.answering == 1
        worker._answer_parked()
        assert worker.answering == 1
        for _ in range(2):
            clock.now += 0.55
            for _ in range(2):
                worker._answer_parked()
            assert worker.tpool.work == [conns[:16], conns[16:32]] and worker.answering == 2
        slow = iter([0.0, 0.0, 0.2])
        monkeypatch.setattr(worker, "handle", lambda _: clock.take(next(slow)) or "linger")
        results = worker._answer_in_turn(conns[:16])
        assert results == ["linger"] * 3
        done: Future[list[str]] = Future()
        done.set_result(results)
        worker._answered(conns[:16], done)
        assert worker.tpool.work[2:] == [conns[3:16]] and worker.answering == 2
        assert worker.waiting == set(conns[:3]), "they say goodbye"
        broken: Future[list[str]] = Future()
        broken.set_exception(RuntimeError())
        worker._answered(conns[16:32], broken)
        assert all(each.sock.fileno() < 0 for each in conns[16:32])
        assert worker.answering == 1 and not worker.tpool.work[3:]
        done = Future()
        done.set_result(["linger"] * 13)
        worker._answered(conns[3:16], done)
        assert worker.tpool.work[3:] == [conns[32:48]] and worker.answering == 1


def test_half_a_preface_has_as_long_as_a_handshake(worker: Worker) -> None:
    """A balancer's connection whose PROXY header does not come to its end holds no thread, and is closed."""
    worker.cfg.user_limits = {**worker.cfg.user_limits, "handshake": 60}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        begun = time.monotonic()
        conn = Connection(worker.cfg, ours, ("balancer", 1), "", admin=False)
        deadline = conn.deadline
        assert begun + 60 <= deadline <= time.monotonic() + 60
        worker.nr_conns = 1
        for part in (b"\r\n\r\n\0\r\nQU", b"IT\n\x21\x11\x00\x0c"):
            theirs.sendall(part)
            assert conn.advance() == selectors.EVENT_READ
        worker._wait(conn, selectors.EVENT_READ)
        worker.sweep()
        assert worker.waiting == {conn}
        assert conn.deadline == deadline, "no part of it gives it more time"
        conn.deadline = time.monotonic() - 1
        worker._swept = 0.0
        worker.sweep()
        assert not worker.waiting and worker.nr_conns == 0 and ours.fileno() == -1
