"""The database away, read-only or full under running proxies: 503 with a time and a sentence, and recovery by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from igelcert.proxy.context import Context
from igelcert.proxy.database import PROBE_SECONDS
from igelcert.proxy.initialise import initialise
from tests.load import fleet
from tests.load.ca import SlowCa, slow_ca
from tests.support.chain import Proxy, proxy
from tests.support.postgres import Cluster
from tests.support.proxies import ANY, Member, all_processes, processes, request, together, use
from tests.support.until import until

pytestmark = pytest.mark.peers

SETTINGS = "/rmagent/settings"
PATIENCE = 9.0  # seconds: a connection may take 5


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowCa]:
    with slow_ca(tmp_path_factory.mktemp("ca") / "ca", delay=1) as made:
        yield made


@pytest.fixture(scope="module")
def gate(postgres: Cluster, ca: SlowCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with together(postgres, tmp_path_factory.mktemp("gate"), 1) as (made,):
        use(made, ca)
        yield made


@pytest.fixture
def members(gate: Proxy, tmp_path: Path) -> list[Member]:
    return Member.all(gate, tmp_path / "fleet", 3, f"M{time.monotonic_ns() % 10**9}N")


def refused(answer: tuple[int, dict[str, str], bytes], start: float) -> None:
    """It says so, in time, and when to come back."""
    status, headers, body = answer
    assert status == 503 and int(headers["retry-after"]) > 0, (status, body)
    assert b"the proxy cannot use its database now" in body and body.count(b"\n") == 1
    assert time.monotonic() - start < PATIENCE


def database_of(gate: Proxy) -> str:
    context = Context.open(gate.data)
    with context.db.read() as connection:
        name = str(connection.exec_driver_sql("SELECT current_database()").scalar())
    context.db.close()
    return name


def end_connections(postgres: Cluster, name: str) -> None:
    """Returns when the server has ended them all."""
    postgres.sql(f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608


def works(gate: Proxy, member: Member, csr: bytes, seconds: float = 60) -> bytes:
    deadline = time.monotonic() + seconds
    while (answer := request(gate, member, csr))[0] != 200:
        assert time.monotonic() < deadline, answer
        time.sleep(0.3)
    return answer[2]


def test_away(gate: Proxy, ca: SlowCa, postgres: Cluster, members: list[Member]) -> None:
    """Also while the CA works for a request: its certificate is not lost, and no second one is made."""
    before, pids = ca.seen().issued, all_processes(gate)
    one, two, three = members
    csrs = [member.csr() for member in members]
    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        stack.enter_context(ca.held())
        asked = pool.submit(request, gate, one, csrs[0])
        headers = {"Prefer": "wait=300"}
        etag = gate.ask("GET", SETTINGS, client=(three.pem, three.pem))[1]["etag"]
        headers["If-None-Match"] = etag
        waits = pool.submit(
            gate.ask, "GET", SETTINGS, client=(three.pem, three.pem), headers=headers, timeout=330
        )
        until(lambda: ca.seen().inside == 1)
        until(lambda: "igelcert_waiting_devices 1.0" in gate.admin("/metrics")[1])
        postgres.stop(crash=True)
        stack.close()
        start = time.monotonic()
        try:
            refused(asked.result(), start)
            for path in (SETTINGS, "/.well-known/est/cacerts"):
                start = time.monotonic()
                refused(gate.ask("GET", path, client=(two.pem, two.pem)), start)
            start = time.monotonic()
            refused(request(gate, two, csrs[1]), start)
            status, text = gate.admin("/readyz")
            assert status == 503 and "not ready" in text and text.count("\n") == 1
            assert gate.admin("/healthz")[0] == 200 and not waits.done()
        finally:
            postgres.start()
        first = works(gate, one, csrs[0])
        works(gate, two, csrs[1])
        assert ca.seen().issued - before == 2, (
            "what the CA had answered was recorded when that was possible again"
        )
        assert works(gate, one, csrs[0]) == first
        assert gate.admin("/readyz")[0] == 200 and processes(gate) == pids
        # who waited through all of it hears of what changes now
        gate.profile("fleet", {**fleet.PROFILE, "subject": {"auto_cn": "hostname", "org": "Other"}})
        assert waits.result(40)[0] == 200
        gate.profile("fleet", fleet.PROFILE)
    assert "Traceback" not in gate.log()


def test_connections_that_the_server_ended_are_not_noticed_by_who_comes_afterwards(
    gate: Proxy, postgres: Cluster, members: list[Member]
) -> None:
    """They are found out before they are used."""
    for member in members:
        assert gate.ask("GET", SETTINGS, client=(member.pem, member.pem))[0] == 200
    end_connections(postgres, database_of(gate))
    for member in members:
        assert gate.ask("GET", SETTINGS, client=(member.pem, member.pem))[0] == 200


def test_read_only(gate: Proxy, ca: SlowCa, postgres: Cluster, members: list[Member]) -> None:
    name, csr = database_of(gate), members[0].csr()
    for value in ("on", "off"):
        postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        end_connections(postgres, name)
        if value == "on":
            start = time.monotonic()
            refused(request(gate, members[0], csr), start)
            assert gate.ask("GET", SETTINGS, client=(members[0].pem, members[0].pem))[0] == 200
            assert "the database takes no changes now" in gate.log()
            # another process may have written a moment ago, which counts for some seconds
            until(lambda: gate.admin("/readyz")[0] != 200, 3 * PROBE_SECONDS)
            assert gate.admin("/healthz")[0] == 200
    works(gate, members[0], csr)


def test_a_proxy_begins_while_nothing_can_be_written(postgres: Cluster, ca: SlowCa, tmp_path: Path) -> None:
    """It serves what only needs reading, says what it cannot do, and does it as soon as it can."""
    name = postgres.create()
    made = Proxy(tmp_path / "gate/data", 0, 0)
    made.data.parent.mkdir()
    initialise(made.data, ["localhost", "127.0.0.1"], ANY, ANY, postgres.url(name))
    use(made, ca)
    member = Member.all(made, tmp_path / "fleet", 1, "B")[0]
    csr = member.csr()

    def read_only(value: str) -> None:
        postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        end_connections(postgres, name)

    def living() -> int:
        return len(postgres.sql("SELECT id FROM proxies WHERE until > extract(epoch FROM now())", name))

    read_only("on")
    with proxy(made.data) as gate:
        start = time.monotonic()
        refused(request(gate, member, csr), start)
        assert gate.ask("GET", SETTINGS, client=(member.pem, member.pem))[0] == 200
        assert gate.admin("/readyz")[0] == 503 and gate.admin("/healthz")[0] == 200
        pids = all_processes(gate)
        assert living() == 0
        read_only("off")
        until(lambda: living() >= len(pids) - 1)  # before anything asks it to: others see that it is there
        works(gate, member, csr)
        assert processes(gate) == pids and "Traceback" not in gate.log()
    postgres.drop(name)


def test_full(gate: Proxy, postgres: Cluster, members: list[Member]) -> None:
    name, csr = database_of(gate), members[0].csr()
    says = """
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = 'disk_full';
    END $$;
    CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON enrollments EXECUTE FUNCTION full_disk();
    """
    postgres.sql(says, name)
    try:
        start = time.monotonic()
        refused(request(gate, members[0], csr), start)
        assert "No space left on device" in gate.log()
    finally:
        postgres.sql("DROP TRIGGER full_disk ON enrollments; DROP FUNCTION full_disk()", name)
    works(gate, members[0], csr)
