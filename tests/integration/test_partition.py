"""Two proxies and a cable between them: one is cut off from database, CA and the other one, without a word of farewell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from igelcert.proxy.initialise import initialise, join
from tests.load import fleet
from tests.load.ca import slow_ca
from tests.support.chain import Proxy, command
from tests.support.fronts import running
from tests.support.keep import Keep
from tests.support.netns import Namespace, namespace
from tests.support.peers import peer
from tests.support.ports import free_port
from tests.support.postgres import PASSWORD, Cluster
from tests.support.proxies import ANY, Member, request, use
from tests.support.until import until

pytestmark = [pytest.mark.peers, pytest.mark.slow]

SETTINGS = "/rmagent/settings"
CAP = 3
PATIENCE = 55.0  # seconds; a connection that is dead without a word is noticed after 15 to 20
_CABLE = """
global
    maxconn 200
defaults
    mode tcp
    timeout connect 3s
    timeout client 10m
    timeout server 10m
"""


@contextlib.contextmanager
def passing(place: Path, words: tuple[str, ...], *ways: tuple[str, str]) -> Iterator[None]:
    """HAProxy passes connections on: from an address to another, each HOST:PORT. words: before its name."""
    lines = [
        f"listen way{n}\n    bind {here}\n    server there {there}\n" for n, (here, there) in enumerate(ways)
    ]
    place.with_suffix(".cfg").write_text(_CABLE + "".join(lines))
    args: list[str | Path] = [*words, peer("haproxy"), "-db", "-f", place.with_suffix(".cfg")]
    with running(args, 0, place.with_suffix(".log")):
        yield


@pytest.fixture
def cable() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def test_one_is_cut_off(cable: Namespace, postgres: Cluster, tmp_path: Path) -> None:
    name = postgres.create()
    ports = free_port(), free_port()
    word = PASSWORD.replace(" ", "%20").replace("/", "%2F").replace("&", "%26")
    far = f"postgresql://{postgres.user}:{word}@{cable.here}:{ports[0]}/{name}"
    first, second = tmp_path / "0/data", tmp_path / "1/data"
    with contextlib.ExitStack() as stack:
        stack.callback(postgres.drop, name)
        ca = stack.enter_context(slow_ca(tmp_path / "ca", delay=0.3, cap=CAP))
        database = (f"{cable.here}:{ports[0]}", f"127.0.0.1:{postgres.port}")
        there = (f"{cable.here}:{ports[1]}", f"127.0.0.1:{ca.port}")
        stack.enter_context(passing(tmp_path / "here", (), database, there))
        # the CA is called localhost, there as well
        within = (f"127.0.0.1:{ca.port}", there[0])
        stack.enter_context(passing(tmp_path / "within", cable.command(), within))
        initialise(first, ["localhost"], ANY, ANY, postgres.url(name))
        join(second, far, first / "master.key", [], ANY, ANY)
        for data in (first, second):
            with (data / "proxy.toml").open("a") as file:
                file.write(f"upstream_parallel = {CAP}\nupstream_timeout = 5\n")
        keeps = Keep(first), Keep(second, program=cable.command(command("ca-proxy")))
        for keep in keeps:
            keep.start()
            stack.callback(keep.kill)
        one, two = (Proxy(keep.data, keep.port, keep.admin_port) for keep in keeps)
        use(one, ca)
        keeps[0].await_ready()
        until(lambda: cable.inside(lambda: ready(two) == 200))
        _cut(cable, one, two, tmp_path)
        assert ca.seen().over == 0, "no more at once at the CA than it takes"
        assert all(keep.process and keep.process.poll() is None for keep in keeps)
        assert "Traceback" not in keeps[1].log


def ready(gate: Proxy) -> int:
    """What /readyz says; 0: nothing."""
    try:
        return gate.admin("/readyz")[0]
    except OSError:
        return 0


def _cut(cable: Namespace, one: Proxy, two: Proxy, place: Path) -> None:
    members = Member.all(one, place / "fleet", 4, "CUT")
    mine, waiting = members[0], members[3]
    csr = mine.csr()

    def ask(member: Member, **headers: str) -> tuple[int, dict[str, str], bytes]:
        pair = (member.pem, member.pem)
        return cable.inside(lambda: two.ask("GET", SETTINGS, client=pair, headers=headers, timeout=600))

    etag = ask(waiting)[1]["etag"]
    with ThreadPoolExecutor(8) as pool:
        waits = pool.submit(ask, waiting, Prefer="wait=600", **{"If-None-Match": etag})
        until(lambda: "igelcert_waiting_devices 1.0" in cable.inside(lambda: two.admin("/metrics"))[1])
        asked = pool.submit(cable.inside, lambda: request(two, mine, csr))
        time.sleep(0.15)  # somewhere in the middle of it
        cable.pull()
        start = time.monotonic()
        asks = [pool.submit(ask, member) for member in members[1:3]]
        # the other one goes on as if nothing were
        assert request(one, members[1], members[1].csr())[0] == 200
        assert time.monotonic() - start < 15
        for each in asks:
            refused(each.result())
        assert time.monotonic() - start < PATIENCE
        asked.result()
        until(lambda: said_soon(lambda: ask(mine)), say="once it is known, it is to be said sooner")
        assert cable.inside(lambda: ready(two)) == 503
        # what the one that is cut off was asked, the other one does when the lease is over
        until(lambda: request(one, mine, csr)[0] == 200)
        found = request(one, mine, csr)[2]
        assert not waits.done()
        cable.plug()
        until(lambda: ask(mine)[0] == 200)
        until(lambda: cable.inside(lambda: ready(two)) == 200)
        until(lambda: cable.inside(lambda: request(two, mine, csr))[2] == found)
        other = members[2].csr()
        until(lambda: cable.inside(lambda: request(two, members[2], other))[0] == 200)
        one.profile("fleet", {**fleet.PROFILE, "subject": {"auto_cn": "hostname", "org": "Other"}})
        assert waits.result(30)[0] == 200, "and who waited through all of it hears of changes"


def said_soon(ask: Callable[[], tuple[int, dict[str, str], bytes]]) -> bool:
    """It is refused, within ten seconds."""
    start = time.monotonic()
    refused(ask())
    return time.monotonic() - start < 10


def refused(answer: tuple[int, dict[str, str], bytes]) -> None:
    """It says so, in a sentence, and when to come back."""
    status, headers, body = answer
    assert status == 503 and int(headers["retry-after"]) > 0, answer
    assert b"the proxy cannot use its database now" in body and body.count(b"\n") == 1
