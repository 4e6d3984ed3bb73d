"""Two proxies on one database whose clocks differ by 90 seconds; and a CA that is slower than the proxies' patience."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from igelcert.proxy.admin.accounts import ACCOUNT_FAILURES
from igelcert.proxy.initialise import initialise, join
from tests.load import fleet
from tests.load.ca import SlowCa, slow_ca
from tests.support.chain import Proxy, lab_ca
from tests.support.keep import Keep
from tests.support.person import Person
from tests.support.postgres import Cluster
from tests.support.proxies import ANY, Member, request, use
from tests.support.rest import Rest
from tests.support.until import until

pytestmark = pytest.mark.peers

APART = 90  # seconds
CAP = 3
SETTINGS = "/rmagent/settings"


def ahead(place: Path, seconds: int) -> dict[str, str]:
    """The environment of a program whose clock is that much ahead."""
    library = place / "clock.so"
    source = Path(__file__).parents[1] / "support/clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(seconds)}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowCa]:
    with slow_ca(tmp_path_factory.mktemp("ca") / "ca", delay=0.5, cap=CAP) as made:
        yield made


@pytest.fixture(scope="module")
def keeps(
    postgres: Cluster, ca: SlowCa, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Keep, Keep]]:
    """The second one's clock is ahead."""
    place = tmp_path_factory.mktemp("apart")
    url = postgres.url(name := postgres.create())
    first, second = place / "0/data", place / "1/data"
    initialise(first, ["localhost"], ANY, ANY, url)
    join(second, url, first / "master.key", [], ANY, ANY)
    for data in (first, second):
        with (data / "proxy.toml").open("a") as file:
            file.write(f"upstream_parallel = {CAP}\nupstream_timeout = 6\n")
    made = Keep(first), Keep(second, env=ahead(place, APART))
    try:
        for keep in made:
            keep.start()
        use(Proxy(first, made[0].port, made[0].admin_port), ca)
        for keep in made:
            keep.await_ready()
        yield made
    finally:
        for keep in made:
            keep.kill()
        postgres.drop(name)


@pytest.fixture
def two(keeps: tuple[Keep, Keep]) -> list[Proxy]:
    for keep in keeps:
        if keep.process is None or keep.process.poll() is not None:
            keep.start()
            keep.await_ready()
    return [Proxy(keep.data, keep.port, keep.admin_port) for keep in keeps]


def settings(gate: Proxy, member: Member, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return gate.ask("GET", SETTINGS, client=(member.pem, member.pem), headers=headers, timeout=40)


def test_the_clocks_are_apart(two: list[Proxy]) -> None:
    said = []
    for gate in two:
        settings_of = gate.ask("GET", "/rmagent/cacerts")
        assert settings_of[0] == 200
        said.append(time.mktime(time.strptime(settings_of[1]["date"], "%a, %d %b %Y %H:%M:%S %Z")))
    assert APART - 3 <= said[1] - said[0] <= APART + 30


def test_places_and_requests_go_by_the_database(two: list[Proxy], ca: SlowCa, tmp_path: Path) -> None:
    """The cap holds, one request at both is one, and a turn is as long at either."""
    members = Member.all(two[0], tmp_path / "fleet", 12, "CLOCK")
    before = ca.seen().issued

    csrs = [member.csr() for member in members]

    def both(number: int) -> bytes:
        found = []
        for gate in (two[number % 2], two[1 - number % 2]):
            while (answer := request(gate, members[number], csrs[number]))[0] == 202:
                time.sleep(min(int(answer[1]["retry-after"]), 2))
            assert answer[0] == 200, answer
            found.append(answer[2])
        assert found[0] == found[1]
        return found[0]

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(both, [*range(12), *range(12)]))
    seen = ca.seen()
    assert len(set(answers)) == 12 and seen.issued - before == 12
    assert (seen.peak, seen.over) == (CAP, 0)


@pytest.mark.slow
def test_a_lease_ends_no_earlier_for_the_one_that_is_ahead(
    two: list[Proxy], keeps: tuple[Keep, Keep], ca: SlowCa, tmp_path: Path
) -> None:
    members = Member.all(two[0], tmp_path / "fleet", CAP, "LEASE")
    csrs = [member.csr() for member in members]
    before = ca.seen().issued
    with ThreadPoolExecutor(CAP + 1) as pool:
        with ca.held():
            for member, csr in zip(members, csrs, strict=True):
                pool.submit(request, two[0], member, csr)
            until(lambda: ca.seen().inside == CAP)
            start = time.monotonic()
            keeps[0].kill()
        again = pool.submit(request, two[1], members[0], csrs[0])
        status, _, body = request(two[1], members[1], members[1].csr())
        assert status == 202 and b"has its turn later" in body, "all places are the dead one's"
        until(lambda: request(two[1], members[1], csrs[1])[0] == 200)
        assert 5 < time.monotonic() - start < 60, "as long as a lease lasts, whatever the clock says"
        assert again.result(60)[0] in {200, 202}
    assert ca.seen().over == 0 and ca.seen().issued - before <= 2 * CAP


def test_identities_and_tokens_of_one_count_at_the_other(two: list[Proxy], tmp_path: Path) -> None:
    for number, (here, there) in enumerate((two, two[::-1])):
        device = there.device(
            tmp_path / f"{number}/root", f"APART{number}", f"tc-apart{number}", register=False
        )
        device.register(here, tmp_path / f"{number}/APART{number}.token")
        assert [gate.ask("GET", SETTINGS, client=device)[0] for gate in (there, here)] == [200, 200]
    program = Rest.of(two[1], name="apart")
    for gate in two:
        Rest(gate.admin_port, program.token).ask("GET", "/devices")


def test_settings_wake_who_waits_at_the_other(two: list[Proxy], tmp_path: Path) -> None:
    for number, (here, there) in enumerate((two, two[::-1])):
        (member,) = Member.all(here, tmp_path / f"fleet{number}", 1, f"WAKE{number}N")
        etag = settings(there, member)[1]["etag"]
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(settings, there, member, Prefer="wait=30", **{"If-None-Match": etag})
            until(lambda there=there: "igelcert_waiting_devices 1.0" in there.admin("/metrics")[1])
            here.profile(
                "fleet", {**fleet.PROFILE, "subject": {"auto_cn": "hostname", "org": f"Other {number}"}}
            )
            start = time.monotonic()
            assert waits.result(20)[0] == 200 and time.monotonic() - start < 10
        here.profile("fleet", fleet.PROFILE)


def test_sessions_and_limits_are_the_same_at_both(two: list[Proxy]) -> None:
    for number, (here, there) in enumerate((two, two[::-1])):
        word = here.cli("user", "add", f"apart{number}", "--role", "viewer").split()[-1]
        people = [Person(here.admin_port), Person(there.admin_port)]
        people[0].log_in(f"apart{number}", word)
        people[1].cookie = people[0].cookie
        assert [each.get("/devices").place for each in people] == ["/password", "/password"]
        people[1].post("/logout")
        assert people[0].get("/devices").place.startswith("/login")
        # wrong passwords at either count at both, for as long as the window lasts
        name = f"wrong{number}"
        right = here.cli("user", "add", name, "--role", "viewer").split()[-1]
        strangers = [Person(here.admin_port), Person(there.admin_port)]
        for turn in range(ACCOUNT_FAILURES):
            assert strangers[turn % 2].log_in(name, "wrong").status == 401
        assert [each.log_in(name, right).status for each in strangers] == [429, 429]


@pytest.mark.slow
def test_a_ca_that_is_slower_than_its_time(two: list[Proxy], ca: SlowCa, tmp_path: Path) -> None:
    """It stands still: 503, when to come back, and why, in a sentence; when it goes on, so do the proxies."""
    (member,) = Member.all(two[0], tmp_path / "fleet", 1, "SLOW")
    with lab_ca(tmp_path / "lab") as lab:
        two[0].use(lab)
        pid = json.loads((lab.dir / "run.json").read_text())["pid"]
        request(two[1], member, member.csr())
        csr = member.csr()
        os.kill(pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(2) as pool:
                start = time.monotonic()
                answers = list(pool.map(lambda gate: request(gate, member, csr), two))
            assert time.monotonic() - start < 60
            refused = [answer for answer in answers if answer[0] == 503]
            assert refused and {answer[0] for answer in answers} <= {503, 202}
            for _, headers, body in refused:
                assert int(headers["retry-after"]) > 0 and body.count(b"\n") == 1
                assert b"the CA cannot be asked now" in body
        finally:
            os.kill(pid, signal.SIGCONT)
        for gate in two:
            until(lambda gate=gate: request(gate, member, csr)[0] == 200)
        use(two[0], ca)
