"""Several proxies on one PostgreSQL database, as real processes; and devices of a fleet that ask them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from igelcert.codec import est, pkcs10
from igelcert.crypto import Key
from igelcert.proxy import profiles
from igelcert.proxy.context import Context
from igelcert.proxy.initialise import initialise, join
from igelcert.proxy.upstream import config
from tests.load import fleet
from tests.load.ca import SlowCa
from tests.support.chain import Proxy, proxy
from tests.support.postgres import Cluster
from tests.support.until import PATIENCE, until

__all__ = [
    "ANY",
    "Member",
    "all_processes",
    "persistent",
    "processes",
    "request",
    "signalled",
    "together",
    "use",
]

ANY = "127.0.0.1:0"


@contextlib.contextmanager
def together(cluster: Cluster, directory: Path, count: int, config: str = "") -> Iterator[list[Proxy]]:
    """`count` proxies; `config` goes to the proxy.toml of each. The directory of the first is directory/0/data."""
    name = cluster.create()
    url = cluster.url(name)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.drop, name)
        made: list[Proxy] = []
        for number in range(count):
            data = directory / str(number) / "data"
            data.parent.mkdir(parents=True)
            if not made:
                initialise(data, ["localhost", "127.0.0.1"], ANY, ANY, url)
            else:
                join(data, url, made[0].data / "master.key", [], ANY, ANY)
            made.append(stack.enter_context(proxy(data, config)))
        yield made


def use(gate: Proxy, ca: SlowCa, rate: int = 0) -> None:
    """That CA, of so many certificates an hour, and the profile of the fleet for all of it."""
    context = Context.open(gate.data)
    settings = config.EstSettings("test", "localhost", ca.port, rate=rate)
    word = (ca.dir / "ra.password").read_text().strip()
    config.store(context, settings, (ca.dir / "ra.p12").read_bytes(), word)
    profiles.store(context, "fleet", json.dumps({"certs": [fleet.PROFILE]}).encode())
    profiles.assign(context, "fleet", directory=fleet.DIRECTORY)
    context.db.close()


def processes(gate: Proxy) -> list[int]:
    """Of a proxy that serves: the one that watches, then those that answer."""
    pid = json.loads((gate.data / "run.json").read_text())["pid"]
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def all_processes(gate: Proxy) -> list[int]:
    """The same, when all that are to be have begun: they come one after the other."""
    wanted = 1 + Context(gate.data).config.in_processes()
    found: list[int] = []

    def all_there() -> bool:
        found[:] = processes(gate)
        return len(found) == wanted

    until(all_there)
    return found


def signalled(gate: Proxy, number: signal.Signals) -> None:
    """To all processes of a proxy."""
    for pid in processes(gate):
        os.kill(pid, number)


@dataclass
class Member:
    """A device of a fleet: its unit ID, and the file with certificate and key of its management identity."""

    unit: str
    pem: Path

    @classmethod
    def all(cls, gate: Proxy, to: Path, count: int, prefix: str) -> list[Member]:
        """New ones, in a directory to which the profile of the fleet is assigned."""
        made = fleet.make(gate.data, to, count, prefix)
        return [cls(unit, made.dir / f"{unit}.pem") for unit in made.units]

    def csr(self) -> bytes:
        key = Key.generate("ec_prime256v1")
        return pkcs10.build(fleet.profile().csr_spec(fleet.facts(self.unit)), key)


def request(
    gate: Proxy, member: Member, csr: bytes, timeout: float = 60
) -> tuple[int, dict[str, str], bytes]:
    sent = est.enroll_request(csr, fleet.PROFILE["friendly_name"])
    return gate.ask(
        sent.method, sent.path, sent.body, client=(member.pem, member.pem), headers=dict(sent.headers),
        timeout=timeout,
    )  # fmt: skip


def persistent(gate: Proxy, member: Member, csr: bytes) -> tuple[int, dict[str, str], bytes]:
    """The same until it is no "later": a proxy that a busy machine holds up lets devices come back."""
    end = time.monotonic() + PATIENCE
    while (answer := request(gate, member, csr))[0] == 202 and time.monotonic() < end:
        time.sleep(min(int(answer[1]["retry-after"]), 2))
    return answer
