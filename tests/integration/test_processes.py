"""A proxy is several processes: they ask the CA no more than one would, count together, and one that dies is replaced."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7
from cryptography.x509.oid import NameOID

from igelcert.proxy import profiles
from igelcert.proxy.context import Context
from tests.load import fleet
from tests.load.ca import SlowCa, slow_ca
from tests.support.chain import Proxy, proxy
from tests.support.proxies import Member, persistent, processes, request, signalled, use
from tests.support.until import until

CAP = 5
COUNT = 3
CONFIG = f"processes = {COUNT}\nupstream_parallel = {CAP}\nupstream_wait = 20\nthreads = 32\n"


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[SlowCa]:
    with slow_ca(tmp_path / "ca", delay=0.15, cap=CAP) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path, ca: SlowCa) -> Iterator[Proxy]:
    with proxy(tmp_path / "data", CONFIG) as made:
        use(made, ca)
        until(lambda: len(processes(made)) == 1 + COUNT)
        until(lambda: figure(made, "igelcert_ca_slots") == CAP)
        yield made


def figure(gate: Proxy, name: str) -> float:
    text = gate.admin("/metrics")[1]
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} is not in\n{text}"
    return float(found[1])


ISSUED = 'igelcert_requests_total{operation="enroll",result="issued"}'


def enroll(gate: Proxy, members: list[Member]) -> list[int]:
    def ask(member: Member) -> int:
        csr = member.csr()
        while (answer := request(gate, member, csr))[0] == 202:  # connections are not shared out evenly
            time.sleep(int(answer[1]["retry-after"]))
        return answer[0]

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(ask, members))


def test_together_they_are_one_proxy(gate: Proxy, ca: SlowCa, tmp_path: Path) -> None:
    assert len(processes(gate)) == 1 + COUNT
    members = Member.all(gate, tmp_path / "fleet", 36, "MANY")
    assert enroll(gate, members[:24]) == [200] * 24
    seen = ca.seen()
    assert seen.issued == 24 and seen.over == 0 and 1 < seen.peak <= CAP
    # whoever answers, the figures are of all
    assert {figure(gate, ISSUED) for _ in range(12)} == {24}
    exchanges = {figure(gate, 'igelcert_ca_round_trip_seconds_count{outcome="ok"}') for _ in range(6)}
    assert len(exchanges) == 1 and 24 < exchanges.pop() <= 24 + CAP, "each asks for the CA's own certificates"
    until(lambda: figure(gate, "igelcert_ca_slots") == CAP)
    for _ in range(6):  # and the same request is one, whichever gets it
        assert request(gate, members[0], members[0].csr())[0] == 200
    csr = members[30].csr()
    with ThreadPoolExecutor(9) as pool:
        first = list(pool.map(lambda _: request(gate, members[30], csr), range(9)))
        answers = list(pool.map(lambda _: persistent(gate, members[30], csr), range(9)))
    assert sum(answer[0] == 200 for answer in first) > 4, "who comes while it is asked waits for the answer"
    assert {each[0] for each in answers} == {200} and len({each[2] for each in answers}) == 1


def test_one_that_dies_is_replaced_and_nothing_is_forgotten(gate: Proxy, ca: SlowCa, tmp_path: Path) -> None:
    members = Member.all(gate, tmp_path / "fleet", 30, "DIES")
    assert enroll(gate, members[:12]) == [200] * 12
    _, first, *others = processes(gate)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(processes(gate)) == 1 + COUNT and first not in processes(gate))
    assert set(others) <= set(processes(gate)), "the others go on"
    assert enroll(gate, members[12:]) == [200] * 18
    seen = ca.seen()
    assert seen.over == 0 and seen.peak <= CAP, "the new one has the part of the one that died"
    assert {figure(gate, ISSUED) for _ in range(8)} == {30}
    until(lambda: figure(gate, "igelcert_ca_slots") == CAP)


def ask_in_vain(gate: Proxy, member: Member, csr: bytes) -> None:
    with suppress(OSError, HTTPException):
        request(gate, member, csr)


def issued_in_a_minute(gate: Proxy, member: Member, csr: bytes) -> None:
    start = time.monotonic()
    while (answer := request(gate, member, csr))[0] == 202:
        time.sleep(int(answer[1]["retry-after"]))
        assert time.monotonic() - start < 60
    assert answer[0] == 200


@pytest.mark.parametrize(
    ("killed", "issued"), [("one", 2), ("all", 2), ("main", 1)], ids=["a process", "all", "the main process"]
)
def test_what_a_process_that_dies_carried_is_taken_up(tmp_path: Path, killed: str, issued: int) -> None:
    """When the CA has surely ended it, with the embedded database as well. Who lives on without its main process ends what
    it began, and another proxy in that directory leaves it to it."""
    with slow_ca(tmp_path / "ca", delay=5, cap=CAP) as ca:
        with proxy(tmp_path / "data", f"{CONFIG}upstream_timeout = 10\n") as gate:
            use(gate, ca)
            member = Member.all(gate, tmp_path / "fleet", 1, "CARRY")[0]
            csr = member.csr()
            until(lambda: figure(gate, "igelcert_ca_slots") == CAP)
            with alone(gate, 0):
                Thread(target=ask_in_vain, args=(gate, member, csr), daemon=True).start()
                until(lambda: ca.seen().peak == 1)
            main, carrier, *_ = processes(gate)
            if killed == "one":
                os.kill(carrier, signal.SIGKILL)
                until(lambda: carrier not in processes(gate))
                issued_in_a_minute(gate, member, csr)
            elif killed == "all":
                signalled(gate, signal.SIGKILL)
            else:
                os.kill(main, signal.SIGKILL)
        if killed != "one":
            with proxy(tmp_path / "data") as gate:
                issued_in_a_minute(gate, member, csr)
        assert ca.seen().issued == issued, "the CA has heard of the first one, whoever asked"


def test_a_change_reaches_those_who_wait_at_any_of_them(gate: Proxy, tmp_path: Path) -> None:
    members = Member.all(gate, tmp_path / "fleet", 24, "WAIT")
    etag = gate.ask("GET", "/rmagent/settings", client=(members[0].pem, members[0].pem))[1]["etag"]

    def wait(member: Member) -> tuple[int, float]:
        headers = {"Prefer": "wait=60", "If-None-Match": etag}
        pair = (member.pem, member.pem)
        answer = gate.ask("GET", "/rmagent/settings", client=pair, headers=headers, timeout=90)
        return answer[0], time.monotonic()

    with ThreadPoolExecutor(len(members)) as pool:
        waits: list[Future[tuple[int, float]]] = []
        for part in range(COUNT):
            with alone(gate, part):
                waits.extend(pool.submit(wait, member) for member in members[part::COUNT])
                until(lambda: figure(gate, "igelcert_waiting_devices") == len(waits))
        assert _spread(gate, len(members)) == COUNT
        context = Context.open(gate.data)
        profiles.unassign(context, "fleet", directory=fleet.DIRECTORY)
        context.db.close()
        start = time.monotonic()
        told = [each.result() for each in waits]
    assert Counter(status for status, _ in told) == {200: len(members)}
    assert max(at for _, at in told) - start < 10
    until(lambda: figure(gate, "igelcert_waiting_devices") == 0)
    assert figure(gate, "igelcert_waiting_devices_woken_total") == len(members)


@contextmanager
def alone(gate: Proxy, part: int) -> Iterator[None]:
    """Who comes meanwhile comes to that process: the others stand still."""
    others = processes(gate)[1:]
    del others[part]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def _spread(gate: Proxy, waiting: int) -> int:
    """At how many processes devices wait, by their open connections."""
    port = f"{gate.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = {line[9] for line in lines if line[1].endswith(f":{port}") and line[3] == "01"}
    assert len(mine) >= waiting
    found = 0
    for pid in processes(gate)[1:]:
        links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]
        found += any(link.removeprefix("socket:[").rstrip("]") in mine for link in links)
    return found


def test_who_follows_has_the_same_configuration(gate: Proxy, ca: SlowCa, tmp_path: Path) -> None:
    """Whatever is in proxy.toml by then; and without what they count in, they go on."""
    members = Member.all(gate, tmp_path / "fleet", 14, "SAME")
    assert enroll(gate, members[:2]) == [200] * 2
    path = gate.data / "proxy.toml"
    path.write_text(path.read_text().replace(f"upstream_parallel = {CAP}", "upstream_parallel = 1 nonsense"))
    shutil.rmtree((gate.data / "figures").readlink())
    for _ in range(COUNT):
        before = processes(gate)
        os.kill(before[1], signal.SIGKILL)
        until(lambda before=before: len(processes(gate)) == 1 + COUNT and before[1] not in processes(gate))
    time.sleep(1)
    again = processes(gate)
    assert enroll(gate, members[2:]) == [200] * 12
    assert processes(gate) == again, "none of them ends"
    assert ca.seen().over == 0


def test_a_copy_of_the_directory_takes_nothing_from_who_serves(gate: Proxy, tmp_path: Path) -> None:
    place = (gate.data / "figures").readlink()
    shutil.copytree(gate.data, tmp_path / "copy/data", symlinks=True)
    with proxy(tmp_path / "copy/data") as other:
        assert (other.data / "figures").readlink() != place
        assert place.is_dir() and gate.admin("/metrics")[0] == 200
    assert place.is_dir()


def test_nothing_is_left_of_what_they_counted(tmp_path: Path, ca: SlowCa) -> None:
    memory = Path("/dev/shm")  # noqa: S108

    def places() -> set[str]:
        return {each.name for each in memory.glob("ca-proxy-*")}

    def of(gate: Proxy) -> str:
        maps = Path(f"/proc/{processes(gate)[1]}/maps").read_text()
        found = re.search(rf"{memory}/(ca-proxy-[^/]+)/", maps)
        assert found, maps
        return found[1]

    with proxy(tmp_path / "data", CONFIG) as gate:
        until(lambda: len(processes(gate)) > 1)
        until(lambda: "/dev/shm" in Path(f"/proc/{processes(gate)[1]}/maps").read_text())  # noqa: S108
        mine = of(gate)
        assert mine in places() and (memory / mine).stat().st_mode & 0o077 == 0
    assert mine not in places()
    with proxy(tmp_path / "data") as gate:
        until(lambda: len(processes(gate)) > 1)
        until(lambda: "/dev/shm" in Path(f"/proc/{processes(gate)[1]}/maps").read_text())  # noqa: S108
        killed = of(gate)
        pids = processes(gate)
        signalled(gate, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert killed in places()
    with proxy(tmp_path / "data"):
        assert killed not in places(), "the next one clears it away"


def test_a_ca_that_one_has_just_learned_of_is_known_to_all(gate: Proxy, tmp_path: Path) -> None:
    """OpenSSL ends the handshake of a client whose certificate is of a CA that it does not know."""
    for _ in range(12):  # each has made its TLS settings
        assert gate.ask("GET", "/rmagent/cacerts")[0] == 200
    member = Member.all(gate, tmp_path / "fleet", 1, "LEARN")[0]
    key = ec.generate_private_key(ec.SECP256R1())
    name = fleet.facts(member.unit).hostname
    attributes = [(NameOID.ORGANIZATION_NAME, "Load"), (NameOID.COMMON_NAME, name)]
    subject = x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])
    sans = x509.SubjectAlternativeName([x509.DNSName(name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(sans, critical=False)
    status, _, body = request(gate, member, csr.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    assert status == 200, body
    (cert,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
    pair = tmp_path / "pair.pem"
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pair.write_bytes(cert.public_bytes(Encoding.PEM) + key.private_bytes(*form))
    asked = [
        gate.ask("GET", "/.well-known/est/lan/cacerts", client=(pair, pair))[0] for _ in range(4 * COUNT)
    ]
    assert asked == [200] * (4 * COUNT)
