"""Two and three proxies on one PostgreSQL database: what one knows counts at all, and what one dies with is nobody's."""

from __future__ import annotations

import json
import re
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from igelcert.codec import est
from igelcert.codec.http import Response
from igelcert.proxy import profiles
from igelcert.proxy.admin.accounts import ACCOUNT_FAILURES
from igelcert.proxy.context import Context
from igelcert.proxy.database import Database
from tests.load import fleet
from tests.load.ca import SlowCa, slow_ca
from tests.support.chain import Proxy, lab_ca
from tests.support.person import Person
from tests.support.postgres import Cluster
from tests.support.proxies import Member, persistent, request, signalled, together, use
from tests.support.rest import Rest
from tests.support.until import until

pytestmark = pytest.mark.peers

CAP = 3
SETTINGS = "/rmagent/settings"
CONFIG = f"upstream_parallel = {CAP}\nupstream_timeout = 5"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowCa]:
    with slow_ca(tmp_path_factory.mktemp("ca") / "ca", delay=0.4, cap=CAP) as made:
        yield made


@pytest.fixture(scope="module")
def three(postgres: Cluster, ca: SlowCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Proxy]]:
    with together(postgres, tmp_path_factory.mktemp("three"), 3, CONFIG) as made:
        use(made[0], ca)
        yield made


def rows(gate: Proxy, member: Member) -> list[dict[str, Any]]:
    return [row for row in gate.enrollments() if row["unit_id"] == member.unit]


def issues(gate: Proxy, unit: str) -> list[str]:
    """What the audit log has of certificates for a device."""
    found = json.loads(gate.cli("audit", "--search", unit, "--json"))
    return [row["detail"] for row in found if row["action"] == "issue"]


def certificate(answer: tuple[int, dict[str, str], bytes]) -> bytes:
    status, headers, body = answer
    found = est.enroll_reply(Response(status, tuple(headers.items()), body), int(time.time()))
    assert status == 200, (status, body)
    return found.certificates[0]  # type: ignore[union-attr]


# ---- the CA -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cap_holds_across_proxies(three: list[Proxy], ca: SlowCa, tmp_path: Path) -> None:
    """A herd at three proxies: the CA sees as many requests at once as it takes, and never one more."""
    members = Member.all(three[0], tmp_path / "fleet", 36, "CAP")
    before = ca.seen()

    def persist(number: int) -> bytes:
        member = members[number]
        csr, gate = member.csr(), three[number % 3]
        while (answer := request(gate, member, csr))[0] == 202:
            time.sleep(min(int(answer[1]["retry-after"]), 3))
        return certificate(answer)

    with ThreadPoolExecutor(36) as pool:
        found = list(pool.map(persist, range(36)))
    seen = ca.seen()
    assert len(set(found)) == 36 and seen.issued - before.issued == 36
    assert (seen.peak, seen.over) == (CAP, 0)


def test_one_request_at_all_proxies_is_one(three: list[Proxy], ca: SlowCa, tmp_path: Path) -> None:
    (member,) = Member.all(three[0], tmp_path / "fleet", 1, "ONE")
    before, csr = ca.seen().issued, member.csr()
    with ThreadPoolExecutor(9) as pool:
        first = list(pool.map(lambda number: request(three[number % 3], member, csr), range(9)))
        answers = list(pool.map(lambda number: persistent(three[number % 3], member, csr), range(9)))
    assert sum(answer[0] == 200 for answer in first) > 4, "who comes while it is asked waits for the answer"
    assert len({certificate(answer) for answer in answers}) == 1
    assert ca.seen().issued - before == 1
    assert len(issues(three[1], member.unit)) == 1
    assert [row["state"] for row in rows(three[2], member)] == ["issued"]


@pytest.mark.slow
def test_a_pending_request_goes_on_at_another_proxy(postgres: Cluster, tmp_path: Path) -> None:
    """Over SCEP: the second asks with the transaction and the transport key of the first."""
    with (
        lab_ca(tmp_path / "ca", "--scep", "127.0.0.1:0", "--pending", "3s") as ca,
        together(postgres, tmp_path / "proxies", 2) as (one, two),
    ):
        one.use_scep(ca.scep, "--poll", "1", "--fingerprint", ca.root_fingerprint())
        one.profile("fleet", fleet.PROFILE, directory=fleet.DIRECTORY)
        (member,) = Member.all(one, tmp_path / "fleet", 1, "PENDING")
        csr = member.csr()
        assert request(one, member, csr)[0] == 202
        signalled(one, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while (answer := request(two, member, csr))[0] == 202:
            assert time.monotonic() < deadline
            time.sleep(1)
        certificate(answer)
        assert len(ca.issued()) == 1 and len(issues(two, member.unit)) == 1


# ---- who dies, and who stands still ---------------------------------------------------------------


@pytest.fixture
def pair(postgres: Cluster, tmp_path: Path) -> Iterator[tuple[Proxy, Proxy]]:
    """They wait for the CA for a minute: what is asked of it is still asked when a busy machine comes to the next line."""
    config = CONFIG.replace("upstream_timeout = 5", "upstream_timeout = 60")
    with together(postgres, tmp_path / "pair", 2, config) as (one, two):
        yield one, two


def leases_end(context: Context) -> None:
    """As if ten minutes went by, for all leases: those of who lives are pushed on within three seconds."""
    with context.db.begin() as connection:
        connection.exec_driver_sql("UPDATE proxies SET until = until - 600")
        connection.exec_driver_sql("UPDATE slots SET until = until - 600 WHERE until > 0")


def held(context: Context) -> int:
    """Places at the CA."""
    with context.db.read() as connection:
        statement = "SELECT count(*) FROM slots WHERE until > extract(epoch FROM clock_timestamp())"
        return int(connection.exec_driver_sql(statement).scalar_one())


@pytest.mark.slow
def test_what_a_dead_proxy_held_is_free_when_its_lease_is_over(
    pair: tuple[Proxy, Proxy], tmp_path: Path
) -> None:
    one, two = pair
    context = Context.open(one.data)
    with slow_ca(tmp_path / "ca", delay=2, cap=CAP) as ca:
        use(one, ca)
        members = Member.all(one, tmp_path / "fleet", CAP, "DEAD")
        csrs = [member.csr() for member in members]
        with ThreadPoolExecutor(CAP) as pool:
            with ca.held():
                dying = [pool.submit(request, one, *each) for each in zip(members, csrs, strict=True)]
                until(lambda: ca.seen().inside == CAP)
                signalled(one, signal.SIGKILL)
            for each in dying:
                with pytest.raises(OSError):
                    each.result()
            # nobody knows whether the CA still works for the dead one: no place for others, and no taking over
            status, _, body = request(two, members[1], members[1].csr())
            assert status == 202 and b"has its turn later" in body
            again = pool.submit(request, two, members[0], csrs[0])
            time.sleep(2)
            assert not again.done() and (ca.seen().peak, ca.seen().over) == (CAP, 0)
            leases_end(context)
            certificate(again.result(30))
        for member, csr in zip(members, csrs, strict=True):
            until(lambda member=member, csr=csr: request(two, member, csr)[0] == 200)
            assert len(issues(two, member.unit)) == 1
        until(lambda: held(context) == 0)
    context.db.close()


def test_who_stood_still_too_long_has_lost_its_request(pair: tuple[Proxy, Proxy], tmp_path: Path) -> None:
    one, two = pair
    context = Context.open(one.data)
    with slow_ca(tmp_path / "ca", delay=1, cap=CAP) as ca:
        use(one, ca)
        (member,) = Member.all(one, tmp_path / "fleet", 1, "STILL")
        csr = member.csr()
        with ThreadPoolExecutor(1) as pool:
            with ca.held():
                slow = pool.submit(request, one, member, csr)
                until(lambda: ca.seen().inside == 1)
                signalled(one, signal.SIGSTOP)
            try:
                leases_end(context)
                until(lambda: (request(two, member, csr))[0] == 200)
                (row,) = rows(two, member)
            finally:
                signalled(one, signal.SIGCONT)
            status, _, body = slow.result()
        assert (status, body) == (202, b"this very request is under way\n")
        assert rows(two, member) == [row] and len(issues(two, member.unit)) == 1
        assert certificate(request(one, member, csr)) == certificate(request(two, member, csr))
        assert "another proxy took this request over" in one.log()
        assert ca.seen().issued == 2, "that the first one was asked for cannot be undone"
    context.db.close()


# ---- settings -------------------------------------------------------------------------------------


class Waiting(threading.Thread):
    """A device that waits for other settings."""

    def __init__(self, gate: Proxy, member: Member) -> None:
        super().__init__()
        self._ask = lambda headers: gate.ask(
            "GET", SETTINGS, client=(member.pem, member.pem), headers=headers, timeout=60
        )
        self._etag = self._ask({})[1]["etag"]
        self.status, self.ended = 0, 0.0
        self.start()

    def run(self) -> None:
        self.status = self._ask({"Prefer": "wait=30", "If-None-Match": self._etag})[0]
        self.ended = time.monotonic()


def figure(gate: Proxy, name: str) -> int:
    found = re.search(rf"^{name} ([0-9.]+)$", gate.admin("/metrics")[1], re.MULTILINE)
    assert found
    return int(float(found[1]))


def heard(
    three: list[Proxy], members: list[Member], word: str, before: float = 0.0
) -> tuple[list[float], float]:
    """Seconds after which devices at each proxy hear of settings that are changed at the first, and when the last of them
    heard. before: when the last one heard the last time, which was a proxy's look, where looks alone tell of changes: the
    next one is to be as far away as can be."""
    context = Context.open(three[0].data)
    waiting = [Waiting(gate, member) for gate, member in zip(three, members, strict=True)]
    until(lambda: all(figure(gate, "igelcert_waiting_devices") == 1 for gate in three))
    while before and not 0.05 < (time.monotonic() - before) % 1 < 0.2:
        time.sleep(0.01)
    document = {"certs": [{**fleet.PROFILE, "friendly_name": word}]}
    profiles.store(context, "fleet", json.dumps(document).encode())
    changed = time.monotonic()
    context.db.close()
    for each in waiting:
        each.join(20)
        assert each.status == 200
    return [each.ended - changed for each in waiting], max(each.ended for each in waiting)


@pytest.fixture
def herd(three: list[Proxy], tmp_path: Path) -> Iterator[list[Member]]:
    """A device for each proxy."""
    yield Member.all(three[0], tmp_path / "fleet", 3, f"H{time.monotonic_ns()}N")
    three[0].profile("fleet", fleet.PROFILE)


def test_settings_reach_who_waits_at_another_proxy(three: list[Proxy], herd: list[Member]) -> None:
    rounds: list[list[float]] = []
    _, last = heard(three, herd, "first")
    while sum(max(took) < 0.2 for took in rounds) < 3:
        assert len(rounds) < 12, f"as with a look a second: {rounds}"
        took, last = heard(three, herd, f"word {len(rounds)}", last)
        rounds.append(took)


def test_a_notification_that_is_lost_costs_a_second(
    three: list[Proxy], herd: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "notify", lambda _connection, _channel: None)
    took = [seconds for word in ("x", "y", "z") for seconds in heard(three, herd, word)[0]]
    assert statistics.median(took) < 3 and max(took) < 15, took


# ---- what administrators do -------------------------------------------------------------------------


def test_what_is_taken_away_counts_everywhere_with_the_next_request(
    three: list[Proxy], tmp_path: Path
) -> None:
    one, two, _ = three
    (member,) = Member.all(one, tmp_path / "fleet", 1, "GONE")
    here = {"client": (member.pem, member.pem)}
    assert [gate.ask("GET", SETTINGS, **here)[0] for gate in three] == [200, 200, 200]
    program = Rest.of(one, name="shared")
    programs = [Rest(gate.admin_port, program.token) for gate in three]
    for each in programs:
        each.ask("GET", "/devices")
    programs[1].ask("DELETE", f"/devices/{member.unit}")
    assert [gate.ask("GET", SETTINGS, **here)[0] for gate in three] == [403, 403, 403]
    two.cli("token", "remove", "shared")
    for each in programs:
        each.ask("GET", "/devices", status=401)


def test_another_ca_counts_everywhere_with_the_next_request(
    three: list[Proxy], ca: SlowCa, tmp_path: Path
) -> None:
    with slow_ca(tmp_path / "other", cap=CAP) as other:
        members = Member.all(three[0], tmp_path / "fleet", 6, "OTHER")
        try:
            use(three[0], other)
            before = ca.seen().issued
            for gate, member in zip(three, members, strict=False):
                certificate(request(gate, member, member.csr()))
            assert (other.seen().issued, ca.seen().issued) == (3, before)
        finally:
            use(three[1], ca)
        for gate, member in zip(three, members[3:], strict=True):
            certificate(request(gate, member, member.csr()))
        assert (other.seen().issued, ca.seen().issued) == (3, before + 3)


def test_a_session_is_one_at_all_proxies(three: list[Proxy]) -> None:
    word = three[0].cli("user", "add", "shared", "--role", "viewer").split()[-1]
    people = [Person(gate.admin_port) for gate in three]
    people[0].log_in("shared", word)
    for each in people[1:]:
        assert each.get("/devices").place.startswith("/login")
        each.cookie = people[0].cookie
        assert each.get("/devices").place == "/password"
    people[1].post("/logout")
    for each in people:
        assert each.get("/devices").place.startswith("/login")


def test_wrong_passwords_are_counted_together(three: list[Proxy]) -> None:
    word = three[0].cli("user", "add", "counted", "--role", "viewer").split()[-1]
    people = [Person(gate.admin_port) for gate in three]
    for number in range(ACCOUNT_FAILURES):
        assert people[number % 2].log_in("counted", "wrong").status == 401
    assert people[2].log_in("counted", word).status == 429
