"""Power fails at every single system call that changes a file: what readers see is whole at once, and after the next
run everything is as the settings say, and the CA has issued exactly one certificate.

Lab CA and proxy are real; the device's program is ended by SIGKILL at call number 1, 2, 3 ... of each thing that it
does (tests/support/cut.c), each time on a fresh copy of the same device.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tests.support.badca import make_ca
from tests.support.chain import LabCa, Proxy, lab_ca, proxy
from tests.support.cuts import (
    KILLED,
    Call,
    Program,
    build,
    cases,
    check_set,
    check_store,
    check_what_is_open,
    live_sets,
    state_of,
    undurable,
)

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
DAY = 86_400
HOOK = """#!/bin/sh
root=${0%/etc/igelcert/*}
digest=$(sha256sum "$IGELCERT_DIR/cert.pem" 2>/dev/null | cut -c1-64)
echo "$1 $IGELCERT_FRIENDLY_NAME $digest" >>"$root/heard"
"""
# the widest and the narrowest: what must be private is, and what is for everybody is
UMASKS = (0o000, 0o077)

Check = Callable[[Path, Path], None]  # the tree after a cut or at the end, the tree before


def entry(name: str = "lan", **subject: str) -> dict[str, Any]:
    return {
        "friendly_name": name,
        "subject": {"auto_cn": "hostname", **subject},
        "key": {"type": "ec_prime256v1", "crypt_password": PASSWORD},
        # a certificate of an hour is due at once (it begins a minute before it is issued), one of 90 days is not
        "enrollment": {"renewal_period": 99},
    }


@dataclass
class Worker:
    """A device, and the program that runs on copies of it. fresh: registered. young: with a certificate that is due
    for renewal. grown: with one that is not."""

    program: Program
    place: Path
    hostname: str
    fresh: Path = field(init=False)
    young: Path = field(init=False)
    grown: Path = field(init=False)

    def run(self, root: Path, *argv: str, code: int | None = 0, **more: int) -> int:
        found = self.program.run(root, argv, **more)
        assert code is None or found == code, f"{argv}: exit {found}\n{self.program.said()}"
        return found

    def copy(self, tree: Path, name: str) -> Path:
        made = self.place / name
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(tree, made, symlinks=True)
        return made


class Fleet:
    def __init__(self, gate: Proxy, lab: LabCa, workers: list[Worker]) -> None:
        self.gate, self.lab, self.workers = gate, lab, workers
        self._known: dict[str, tuple[str, bytes]] = {}
        self._lock = threading.Lock()
        self._profile: list[dict[str, Any]] = []

    def wants(self, *certs: dict[str, Any]) -> None:
        """What the proxy has for the devices from now on."""
        if self._profile != list(certs):
            self.gate.profile("cuts", *certs, directory="/Cuts")
            self._profile = list(certs)

    def issued(self, hostname: str) -> int:
        """How many certificates the CA issued for that device, each for another key."""
        with self._lock:
            for name in os.listdir(self.lab.dir / "issued"):
                if name.endswith(".pem") and name not in self._known:
                    cert = x509.load_pem_x509_certificate((self.lab.dir / "issued" / name).read_bytes())
                    cn = cert.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
                    key = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
                    self._known[name] = str(cn), key
            keys = [key for cn, key in self._known.values() if cn == hostname]
        assert len(set(keys)) == len(keys), "two certificates for one key"
        return len(keys)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    place = tmp_path_factory.mktemp("cuts").resolve()
    library = build(place)
    workers = [
        Worker(Program(place / f"w{number}", library, umask), place / f"w{number}", f"tc-{number}")
        for number, umask in enumerate(UMASKS)
    ]
    try:
        with proxy(place / "data") as gate:
            with lab_ca(place / "lab", "--validity", "1h") as lab:
                gate.use(lab)
                fleet = Fleet(gate, lab, workers)
                fleet.wants(entry())
                for worker in workers:
                    worker.fresh = worker.place / "fresh"
                    gate.device(worker.fresh, worker.hostname.upper(), worker.hostname, directory="/Cuts")
                    _install_hook(worker.fresh)
                    worker.young = worker.copy(worker.fresh, "young")
                    worker.run(worker.young, "rmagent", "sync")
            with lab_ca(place / "lab") as lab:
                gate.use(lab)
                fleet.lab = lab
                for worker in workers:
                    worker.grown = worker.copy(worker.young, "grown")
                    worker.run(worker.grown, "igel-certs", "apply")
                yield fleet
    finally:
        for worker in workers:
            worker.program.close()


def _install_hook(root: Path) -> None:
    hook = root / "etc/igelcert/hooks.d/10-hear"
    hook.parent.mkdir()
    hook.write_text(HOOK)
    hook.chmod(0o755)


# ---- every cut ------------------------------------------------------------------------------------


@dataclass
class Story:
    """Something that a device does, and what must hold whenever it is cut.

    prepared: the device before, by worker. then: what runs after the cut, the same by default. issues: how many
    certificates the CA issues, given the tree after the cut and before. main: with half writes and lost contents.
    """

    prepared: Callable[[Worker], Path]
    argv: Sequence[str]
    done: Check
    then: Sequence[str] = ()
    issues: Callable[[Path, Path], int] = lambda _cut, _before: 1
    leaves: frozenset[str] = frozenset()
    ahead: int = 0
    main: bool = False


def tell(fleet: Fleet, story: Story) -> list[Call]:
    """Cuts at every call; the calls of the run that was not cut."""
    before = {worker.hostname: story.prepared(worker) for worker in fleet.workers}
    worker = fleet.workers[0]
    root = worker.copy(before[worker.hostname], "root")
    worker.run(root, *story.argv, ahead=story.ahead)
    calls = worker.program.calls()
    story.done(root, before[worker.hostname])
    assert undurable(calls, str(root / "wfs")) == []
    todo: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for case in cases(calls, main=story.main):
        todo.put(case)
    wrong: list[str] = []

    def work(mine: Worker) -> None:
        while len(wrong) < 5:
            try:
                at, how = todo.get_nowait()
            except queue.Empty:
                return
            try:
                _cut(fleet, mine, story, before[mine.hostname], at, how)
            except Exception as err:
                call = calls[at - 1]
                path = (call.other or call.path).removeprefix(f"{root}/")
                wrong.append(
                    f"cut {('before', 'halfway', 'losing data')[how]} {at} ({call.what} {path}): {err!r}"
                )

    threads = [threading.Thread(target=work, args=(each,)) for each in fleet.workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, "\n\n".join(wrong)
    return calls


def _cut(fleet: Fleet, worker: Worker, story: Story, before: Path, at: int, how: int) -> None:
    root = worker.copy(before, "root")
    issued = fleet.issued(worker.hostname)
    worker.run(root, *story.argv, code=KILLED, at=at, how=how, ahead=story.ahead)
    look(root, before, story.leaves)
    expected = story.issues(root, before)
    worker.run(root, *(story.then or story.argv), ahead=story.ahead)
    look(root, before, story.leaves)
    story.done(root, before)
    assert fleet.issued(worker.hostname) - issued == expected


def look(root: Path, before: Path, leaves: frozenset[str] = frozenset()) -> None:
    """Every reader's view at this instant."""
    old, new = live_sets(before), live_sets(root)
    assert set(old) - set(new) <= leaves
    for name, files in new.items():
        if files != old.get(name):
            check_set(files, PASSWORD)
    check_store(root, done=False)
    check_what_is_open(root, PASSWORD)


def whole(*names: str, **subject: str) -> Check:
    """The device has just these certificates, everything beside them agrees, and nothing else is left."""

    def done(root: Path, before: Path) -> None:
        sets, old = live_sets(root), live_sets(before)
        assert set(sets) == set(names)
        place, cas = root / "wfs/igel-certs", set()
        assert set(os.listdir(place)) == {*names, ".lock", ".store"}
        assert set(os.listdir(place / ".store")) <= {*names, ".lock", ".castore.json"}
        for name, files in sets.items():
            cert = check_set(files, PASSWORD)
            cas |= set(x509.load_pem_x509_certificates(files["cacerts.pem"]))
            state = state_of(root, name)
            assert int(state["serial"], 16) == cert.serial_number and "error" not in state, state
            assert state["not_after"] == int(cert.not_valid_after_utc.timestamp())
            generations = sorted(set(os.listdir(place / ".store" / name)) - {"state.json"})
            live = (place / name).resolve().name
            assert generations[-1] == live and len(generations) <= 2, generations
            assert all(each.startswith("gen-") for each in generations), generations
            for key, value in subject.items():
                oid = {"org": x509.NameOID.ORGANIZATION_NAME}[key]
                assert [each.value for each in cert.subject.get_attributes_for_oid(oid)] == [value]
            if files != old.get(name):
                digest = hashlib.sha256(files["cert.pem"]).hexdigest()
                assert any(line.endswith(f" {name} {digest}") for line in heard(root, before)), heard(
                    root, before
                )
        assert check_store(root, done=True) == cas
        check_identity(root)

    return done


def heard(root: Path, before: Path) -> list[str]:
    """What the hook has heard since."""
    lines = [
        (at / "heard").read_text().splitlines() if (at / "heard").exists() else [] for at in (before, root)
    ]
    return lines[1][len(lines[0]) :]


def check_identity(root: Path) -> x509.Certificate:
    """The management identity fits together, and nothing lies beside it."""
    place = root / "wfs/igel-rmagent"
    cert = x509.load_pem_x509_certificate((place / "cert.pem").read_bytes())
    key = load_pem_private_key((place / "key.pem").read_bytes(), None)
    assert key.public_key() == cert.public_key()
    ca = x509.load_pem_x509_certificate((place / "trust-store/cacerts.pem").read_bytes())
    cert.verify_directly_issued_by(ca)
    known = {
        "cert.pem",
        "key.pem",
        "trust-store",
        "server.json",
        "settings.json",
        "settings.etag",
        "agenda.json",
    }
    assert set(os.listdir(place)) - {".lock"} <= known and os.listdir(place / "trust-store") == [
        "cacerts.pem"
    ]
    return cert


# ---- what a device does ---------------------------------------------------------------------------


def test_the_first_enrollment(fleet: Fleet) -> None:
    fleet.wants(entry())
    story = Story(lambda worker: worker.fresh, ("rmagent", "sync"), whole("lan"), main=True)
    calls = tell(fleet, story)
    assert len(calls) > 80 and {call.what for call in calls} >= {
        "create",
        "write",
        "rename",
        "connect",
        "symlink",
    }


def _asked(cut: Path, before: Path) -> int:
    """1 when the request was on the disk, or its answer is."""
    under_way = (cut / "wfs/igel-certs/.store/lan/pending").exists()
    return int(under_way or live_sets(cut) != live_sets(before))


def test_a_forced_renewal(fleet: Fleet) -> None:
    """What was begun is ended by the next run, whatever that is for."""
    fleet.wants(entry())
    argv = ("igel-certs", "renew", "--force")
    done, apply = whole("lan"), ("igel-certs", "apply")
    tell(fleet, Story(lambda worker: worker.grown, argv, done, then=apply, issues=_asked, main=True))


def test_a_due_renewal(fleet: Fleet) -> None:
    fleet.wants(entry())
    tell(fleet, Story(lambda worker: worker.young, ("igel-certs", "apply"), whole("lan")))


def test_changed_settings(fleet: Fleet) -> None:
    fleet.wants(entry(org="Another"))
    tell(fleet, Story(lambda worker: worker.grown, ("rmagent", "sync"), whole("lan", org="Another")))


def test_a_dropped_certificate(fleet: Fleet) -> None:
    """It goes with its files and the CA that nothing else uses, and hooks hear of it."""
    fleet.wants(entry(), entry("vpn"))
    alone = make_ca("Alone CA")[1].public_bytes(Encoding.PEM)

    def prepared(worker: Worker) -> Path:
        root = worker.copy(worker.grown, "two")
        worker.run(root, "rmagent", "sync")
        home = root / "wfs/igel-certs/vpn"
        (home / "cacerts.pem").write_bytes((home / "cacerts.pem").read_bytes() + alone)
        (home / "cacerts/Alone CA.pem").write_bytes(alone)
        worker.run(root, "igel-certs", "apply")
        assert (root / "etc/ssl/certs/Alone CA.pem").exists()
        return root

    trees = {worker.hostname: prepared(worker) for worker in fleet.workers}
    fleet.wants(entry())

    def done(root: Path, before: Path) -> None:
        whole("lan")(root, before)
        assert "removed vpn " in heard(root, before)

    story = Story(lambda worker: trees[worker.hostname], ("rmagent", "sync"), done, issues=lambda *_: 0,
                  leaves=frozenset({"vpn"}))  # fmt: skip
    tell(fleet, story)


def test_an_empty_ca_store(fleet: Fleet) -> None:
    """At boot, where /etc is not kept."""

    def prepared(worker: Worker) -> Path:
        root = worker.copy(worker.grown, "bare")
        shutil.rmtree(root / "etc/ssl")
        return root

    tell(fleet, Story(prepared, ("igel-certs", "install-cas"), whole("lan"), issues=lambda *_: 0, main=True))


def test_changed_ca_certificates(fleet: Fleet) -> None:
    """The root is new to the device; the certificate stays."""
    fleet.wants(entry())

    def prepared(worker: Worker) -> Path:
        root = worker.copy(worker.grown, "before")
        home = root / "wfs/igel-certs/lan"
        (home / "cacerts.pem").write_bytes((home / "cacerts/Lab Issuing CA.pem").read_bytes())
        (home / "cacerts/Lab Root CA.pem").unlink()
        worker.run(root, "igel-certs", "apply")
        assert not (root / "etc/ssl/certs/Lab Root CA.pem").exists()
        note = root / "wfs/igel-certs/.store/lan/state.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), "cas_at": 0}))
        return root

    def done(root: Path, before: Path) -> None:
        whole("lan")(root, before)
        assert live_sets(root)["lan"]["cert.pem"] == live_sets(before)["lan"]["cert.pem"]
        assert (root / "etc/ssl/certs/Lab Root CA.pem").exists()

    tell(fleet, Story(prepared, ("igel-certs", "apply"), done, issues=lambda *_: 0))


def test_hooks_outstanding(fleet: Fleet) -> None:
    """A certificate whose hooks have not run: they have, after the next run that is not cut."""
    fleet.wants(entry())

    def prepared(worker: Worker) -> Path:
        root = worker.copy(worker.grown, "untold")
        note = root / "wfs/igel-certs/.store/lan/state.json"
        state = {key: value for key, value in json.loads(note.read_text()).items() if key != "announced"}
        note.write_text(json.dumps(state))
        (root / "heard").unlink()
        return root

    def done(root: Path, before: Path) -> None:
        whole("lan")(root, before)
        assert any(line.startswith("enrolled lan ") for line in heard(root, before))

    tell(fleet, Story(prepared, ("igel-certs", "apply"), done, issues=lambda *_: 0, main=True))


def test_the_management_certificate(fleet: Fleet, tmp_path: Path) -> None:
    """Renewed when its time comes; at no cut is the device a stranger to its proxy."""
    trees = {}
    for worker in fleet.workers:
        root = worker.place / "plain"
        fleet.gate.device(root, f"PLAIN-{worker.hostname}", f"plain-{worker.hostname}", directory="/Plain")
        worker.run(root, "rmagent", "sync")
        trees[worker.hostname] = root

    def done(root: Path, before: Path) -> None:
        # the sync before this one ended well: the proxy knows us
        assert check_identity(root).serial_number != check_identity(before).serial_number

    story = Story(lambda worker: trees[worker.hostname], ("rmagent", "sync"), done, issues=lambda *_: 0,
                  ahead=300 * DAY, main=True)  # fmt: skip
    tell(fleet, story)


def test_two_renewals_of_the_management_certificate(fleet: Fleet) -> None:
    """At once, as cron's sync and the resident agent's may be: one after the other, and the pair fits together."""
    root = fleet.workers[0].place / "both"
    fleet.gate.device(root, "BOTH", "both", directory="/Plain")
    codes: list[int] = []

    def renew(worker: Worker) -> None:
        codes.append(worker.run(root, "rmagent", "sync", code=None, ahead=300 * DAY))

    for _ in range(10):
        threads = [threading.Thread(target=renew, args=(worker,)) for worker in fleet.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_identity(root)
    assert codes == [0] * 20


def test_registration(fleet: Fleet, tmp_path: Path) -> None:
    """The token counts once, and again for the same key: whoever lost the answer asks again."""
    listing = tmp_path / "devices.csv"
    listing.write_text("unit_id,directory\n" + "".join(f"NEW-{n},/Plain\n" for n in range(150)))
    made = json.loads(fleet.gate.cli("device", "import", listing, "--json"))
    tokens = iter(made if isinstance(made, list) else made["devices"])
    lock = threading.Lock()

    def new(worker: Worker) -> tuple[Path, tuple[str, ...]]:
        with lock:
            found = next(tokens)
        root = worker.place / "root"
        shutil.rmtree(root, ignore_errors=True)
        (root / "etc/igelcert").mkdir(parents=True)
        (root / "wfs").mkdir(mode=0o755)
        (root / "etc/igelcert/device.toml").write_text(f'unit_id = "{found["unit_id"]}"\n')
        (root / "etc/hostname").write_text(f"{found['unit_id']}\n")
        token = worker.place / "token"
        token.write_text(found["token"])
        argv = ("rmagent", "register", "--server", fleet.gate.url, "--token-file", str(token))
        return root, (*argv, "--ca-file", str(fleet.gate.data / "trust.pem"))

    worker = fleet.workers[0]
    root, argv = new(worker)
    worker.run(root, *argv)
    calls = worker.program.calls()
    check_identity(root)
    assert undurable(calls, str(root / "wfs")) == []
    todo = list(cases(calls, main=True))

    def work(mine: Worker, part: list[tuple[int, int]]) -> None:
        for at, how in part:
            try:
                root, argv = new(mine)
                mine.run(root, *argv, code=KILLED, at=at, how=how)
                check_what_is_open(root, "PRIVATE")
                mine.run(root, *argv)
                check_identity(root)
                mine.run(root, "rmagent", "sync")
            except Exception as err:
                wrong.append(f"cut {how} at {at} {calls[at - 1]}: {err!r}")

    wrong: list[str] = []
    threads = [
        threading.Thread(target=work, args=(each, todo[number :: len(fleet.workers)]))
        for number, each in enumerate(fleet.workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, "\n\n".join(wrong)
