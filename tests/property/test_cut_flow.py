"""A device's life in random order: settings and names change, time passes, the CA issues, waits, refuses, is away or its
answer is lost, hooks fail, and any run may be cut at any change of a file.

The flow is the device's own, with real keys, requests and certificates; network, clock and CA are this test.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from igelcert import crypto
from igelcert.device import hooks
from igelcert.device.config import Config
from igelcert.device.exits import EX_OK, EX_TEMPFAIL
from igelcert.device.flow import Run
from igelcert.device.log import Log
from igelcert.errors import TransportError
from igelcert.model import DeviceFacts, Issued, Outcome, Pending, Refused
from igelcert.settings import parse_settings
from tests.support.cuts import check_set, check_store, live_sets, state_of

PASSWORD = "correct horse"
HOOKS = ("10-steady", "20-moody")
START = 1_800_000_000
DAY = 86_400
LIFE = 90 * DAY
DER = serialization.Encoding.DER

Key = ec.EllipticCurvePrivateKey


def _date(moment: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC)


def _certificate(
    subject: x509.Name, public: Any, issuer: x509.Name, key: Key, dates: tuple[int, int], *, ca: bool
) -> x509.Certificate:
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        .serial_number(x509.random_serial_number()).not_valid_before(_date(dates[0])).not_valid_after(_date(dates[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip


@functools.cache
def root_ca(number: int) -> tuple[Key, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Root {number}")])
    return key, _certificate(name, key.public_key(), name, key, (START - DAY, START + 9000 * DAY), ca=True)


class Ca:
    """A CA behind a proxy: it gives the same request the same certificate. mode: what comes next.

    What it checks: whoever asks with another request for the same has the certificate of the one before.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.mode = "issues"
        self.root = 0
        self.issued: dict[bytes, x509.Certificate] = {}  # by request, in order
        # by friendly name, what it saw last: (subject, request)
        self.last: dict[str, tuple[bytes, bytes]] = {}
        self.ever: dict[str, bytes] = {}  # the same, of names that are wanted no more as well

    def answer(self, name: str, request: bytes, *, renew: bool) -> Outcome:
        if self.mode == "away":
            raise TransportError("nothing listens there", link="tcp")
        csr = x509.load_der_x509_csr(request)
        self._look(name, csr, request)
        if self.mode == "refuses":
            self.last.pop(name, None)
            return Refused(403, "not allowed")
        if self.mode == "busy":
            return Refused(503, "busy", 600)
        if self.mode == "waits":
            return Pending(600, "an officer must approve this")
        found = self.issued.get(request)
        if found is None or int(found.not_valid_after_utc.timestamp()) <= self.world.now:
            self.issued.pop(request, None)
            key, ca = root_ca(self.root)
            now = self.world.now
            found = self.issued[request] = _certificate(
                csr.subject, csr.public_key(), ca.subject, key, (now - 60, now + LIFE), ca=False
            )
        if self.mode == "loses":
            raise TransportError("the connection was closed without an answer", link="closed")
        return Issued((found.public_bytes(DER),))

    def _look(self, name: str, csr: x509.CertificateSigningRequest, request: bytes) -> None:
        subject = csr.subject.public_bytes()
        before = self.last.get(name)
        if before and before[0] == subject and before[1] != request and before[1] in self.issued:
            given = self.issued[before[1]]
            if int(given.not_valid_after_utc.timestamp()) > self.world.now:
                fits = given.issuer in {
                    root_ca(number)[1].subject for number in range(max(0, self.root - 1), self.root + 1)
                }
                assert not fits or self.world.live(name) == given, (
                    "asked anew, and the certificate before was lost"
                )
        self.last[name] = subject, request
        self.ever[name] = request

    def outlived(self) -> bool:
        """Is a certificate for the last request of a root that is gone?

        A name that was dropped counts: when the run that was to forget its request was cut, the device has it still.
        """
        gone = {root_ca(number)[1].subject for number in range(self.root - 1)}
        return any(
            request in self.issued and self.issued[request].issuer in gone for request in self.ever.values()
        )

    def cas(self) -> list[bytes]:
        """The root of now and the one before."""
        return [
            root_ca(number)[1].public_bytes(DER) for number in range(max(0, self.root - 1), self.root + 1)
        ]


@dataclass
class Way:
    ca: Ca
    name: str

    def enroll(self, key: crypto.Key, csr: bytes, *, renew: bool, kept: bool) -> Outcome:
        return self.ca.answer(self.name, csr, renew=renew)

    def cacerts(self) -> list[bytes]:
        if self.ca.mode == "away":
            raise TransportError("nothing listens there", link="tcp")
        return self.ca.cas()

    def close(self) -> None:
        pass


class Cut(BaseException):
    """The power is gone."""


@contextlib.contextmanager
def cut_at(number: int | None) -> Iterator[None]:
    """Ends what runs at that change of a file; nothing changes from then on, whoever tries to tidy up. Nothing is
    flushed: a file that is written is there."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if number is not None and count >= number:
            raise Cut

    def wrapped(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **more: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:
                step()
            return real(*args, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "write", "rename", "symlink", "unlink", "mkdir", "rmdir", "fchmod"):
            patch.setattr(os, name, wrapped(name))
        patch.setattr(os, "fsync", lambda _handle: None)
        with contextlib.suppress(Cut):
            yield


# ---- the world ------------------------------------------------------------------------------------


@dataclass
class World:
    root: Path
    now: int = START
    hostname: str = "tc"
    hook_works: bool = True
    wanted: tuple[tuple[str, str], ...] = (("lan", "A"),)  # friendly name, organization
    heard: list[tuple[str, str, str, str]] = field(default_factory=list)  # event, name, digest, hook
    newest: dict[str, int] = field(
        default_factory=dict
    )  # by name: when the live certificate was issued, counted

    def __post_init__(self) -> None:
        self.ca = Ca(self)
        (self.root / "wfs").mkdir()

    def document(self) -> bytes:
        import json

        certs = [
            {"friendly_name": name, "subject": {"auto_cn": "hostname", "org": org},
             "key": {"type": "ec_prime256v1", "crypt_password": PASSWORD}}
            for name, org in self.wanted
        ]  # fmt: skip
        return json.dumps({"show_user_notifications": False, "certs": certs}).encode()

    def live(self, name: str) -> x509.Certificate | None:
        path = self.root / "wfs/igel-certs" / name / "cert.pem"
        return x509.load_pem_x509_certificate(path.read_bytes()) if path.exists() else None

    def hooks(self, _config: Config, event: hooks.Event, _log: Log, done: Container[str] = ()) -> hooks.Heard:
        """One that always works, and one that does not always."""
        home = Path(event.directory)
        digest = _digest({path.name: path.read_bytes() for path in home.glob("*.pem")})
        able = HOOKS if self.hook_works else HOOKS[:1]
        self.heard += [(event.kind, event.friendly_name, digest, hook) for hook in able if hook not in done]
        return hooks.Heard(able, "" if self.hook_works else f"{HOOKS[1]} failed with exit status 1")

    def run(self, *, cut: int | None = None, force: bool = False, paced: bool = False) -> int | None:
        """The exit code, None when it was cut. Readers look at the end."""
        facts = DeviceFacts(self.hostname, "UNIT", ())
        log = Log("igel-certs", screen=False, quiet=True)
        run = Run(Config(root=str(self.root)), facts, log, lambda: self.now,
                  lambda cert, _current: Way(self.ca, cert.friendly_name), paced=paced)  # fmt: skip
        # what is dropped from the settings is forgotten with its request
        names = {name for name, _ in self.wanted}
        self.ca.last = {name: asked for name, asked in self.ca.last.items() if name in names}
        code = None
        with cut_at(cut), pytest.MonkeyPatch.context() as patch:
            patch.setattr(hooks, "run", self.hooks)
            document = parse_settings(self.document())
            code = run.renew(document, [], force) if force else run.apply(document)
        self.look()
        return code

    def look(self) -> None:
        """Whole sets only, and no older certificate after a newer one."""
        order = {cert: number for number, cert in enumerate(self.ca.issued.values())}
        for name, files in live_sets(self.root).items():
            number = order[check_set(files, PASSWORD)]
            assert number >= self.newest.get(name, -1), "an older certificate after a newer one"
            self.newest[name] = number
        check_store(self.root, done=False)

    def heal(self) -> None:
        """Everything works again and the waits are over: one run, and all is well; and then there is peace."""
        self.ca.mode, self.hook_works = "issues", True
        self.now += DAY + 1
        if self.ca.outlived():
            self.run()  # the certificate leads to no CA of now, and is asked for anew by the next run
        assert self.run() == EX_OK
        self.is_whole()
        # an answer that was lost for months gives a certificate that is due already
        assert self.run() == EX_OK
        self.is_whole()
        asked = len(self.ca.issued), len(self.heard)
        assert self.run() == EX_OK
        assert (len(self.ca.issued), len(self.heard)) == asked, "there was nothing to do"

    def is_whole(self) -> None:
        """The tree is what the settings say, nothing else is there, and hooks have heard."""
        names = {name for name, _ in self.wanted}
        sets = live_sets(self.root)
        assert set(sets) == names
        cas: set[x509.Certificate] = set()
        for name, org in self.wanted:
            cert = check_set(sets[name], PASSWORD)
            cas |= set(x509.load_pem_x509_certificates(sets[name]["cacerts.pem"]))
            assert cert.subject.rfc4514_string() == f"CN={self.hostname},O={org}", cert.subject
            assert int(cert.not_valid_after_utc.timestamp()) > self.now
            state = state_of(self.root, name)
            assert int(state["serial"], 16) == cert.serial_number
            assert not {"error", "pending", "hooks"} & set(state), state
        for hook in HOOKS:
            # the last that it heard of each
            told = {each[1]: each for each in self.heard if each[3] == hook and each[0] != "failed"}
            assert {name for name, each in told.items() if each[0] != "removed"} == names
            for name in names:
                assert told[name][2] == _digest(sets[name])
        assert check_store(self.root, done=bool(cas)) == cas
        self._nothing_is_left(names)

    def _nothing_is_left(self, names: set[str]) -> None:
        place = self.root / "wfs/igel-certs"
        assert set(os.listdir(place)) == {*names, ".lock", ".store"}
        assert set(os.listdir(place / ".store")) - {".lock", ".castore.json"} == names
        for name in names:
            left = sorted(set(os.listdir(place / ".store" / name)) - {"state.json"})
            assert (
                left[-1] == (place / name).resolve().name and len(left) <= 2 and left[0].startswith("gen-")
            ), left


def _digest(files: dict[str, bytes]) -> str:
    """What hooks hear of: the certificate and its CAs; "" without one."""
    return hashlib.sha256(files["cert.pem"] + files["cacerts.pem"]).hexdigest() if files else ""


# ---- what may happen ------------------------------------------------------------------------------

WANTED = [(("lan", "A"),), (("lan", "B"),), (("lan", "A"), ("vpn", "A")), (("vpn", "C"),), ()]
MODES = ["issues", "waits", "refuses", "loses", "away", "busy"]

cuts = st.one_of(st.none(), st.integers(1, 120))
step = st.one_of(
    st.tuples(st.just("run"), cuts, st.booleans(), st.booleans()),
    st.tuples(st.just("run"), st.integers(1, 120), st.just(False), st.just(False)),
    st.tuples(st.just("settings"), st.sampled_from(WANTED)),
    st.tuples(st.just("ca"), st.sampled_from(MODES)),
    st.tuples(st.just("time"), st.sampled_from([60, 700, 3_600, DAY, 30 * DAY, 75 * DAY, 100 * DAY])),
    st.tuples(st.just("hook"), st.booleans()),
    st.tuples(st.just("name"), st.sampled_from(["tc", "tc-2"])),
    st.tuples(st.just("rollover")),
)


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords() -> Iterator[None]:
    """Most of a run would be the derivation of keys from passwords."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypto.Password.__init__, "__defaults__", (1000,))
        yield


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(step, min_size=1, max_size=14))
def test_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    place = Path(tempfile.mkdtemp(prefix="igelcert-life-"))
    try:
        world = World(place)
        for what, *how in steps:
            _happens(world, what, how)
        world.heal()
    finally:
        shutil.rmtree(place)


def _happens(world: World, what: str, how: list[Any]) -> None:
    if what == "run":
        cut, force, paced = how
        outlived = world.ca.outlived()
        code = world.run(cut=cut, force=force, paced=paced)
        if (
            not outlived
            and cut is None
            and not paced
            and world.ca.mode == "issues"
            and world.hook_works
            and not force
        ):
            assert code in {EX_OK, EX_TEMPFAIL}  # the latter while a server's Retry-After lasts
    elif what == "settings":
        world.wanted = how[0]
    elif what == "ca":
        world.ca.mode = how[0]
    elif what == "time":
        world.now += how[0]
    elif what == "hook":
        world.hook_works = how[0]
    elif what == "name":
        world.hostname = how[0]
    elif what == "rollover":
        world.ca.root = min(world.ca.root + 1, 2)


# ---- not by chance ----------------------------------------------------------------------------------


def _nothing(_world: World) -> None:
    pass


def _wants(*wanted: tuple[str, str]) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.wanted = wanted

    return change


def _mode(mode: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.ca.mode = mode

    return change


def _another_root(world: World) -> None:
    world.ca.root += 1
    world.now += 30 * DAY


def _another_root_while_a_hook_fails(world: World) -> None:
    world.hook_works = False
    world.run(force=True)
    _another_root(world)


def _waits_for_another(world: World) -> None:
    world.wanted, world.ca.mode = (("lan", "B"),), "waits"


# what is before, what changes, whether the run is forced, what changes after the cut
STORIES: dict[str, tuple[bool, Callable[[World], None], bool, Callable[[World], None]]] = {
    "the first": (False, _nothing, False, _nothing),
    "the first, and its answer is lost": (False, _mode("loses"), False, _nothing),
    "the first, then it is dropped": (False, _nothing, False, _wants()),
    "renewed": (True, _nothing, True, _nothing),
    "renewed, and the answer is lost": (True, _mode("loses"), True, _nothing),
    "changed": (True, _wants(("lan", "B")), False, _nothing),
    "changed, then changed back": (True, _waits_for_another, False, _wants(("lan", "A"))),
    "dropped": (True, _wants(("vpn", "C")), False, _nothing),
    "dropped, then wanted again": (True, _wants(), False, _wants(("lan", "A"))),
    "the CA has another root": (True, _another_root, False, _nothing),
    "the CA has another root, and hooks are behind": (
        True,
        _another_root_while_a_hook_fails,
        False,
        _nothing,
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_every_cut(story: str, tmp_path: Path) -> None:
    """At each number, until a run goes through."""
    enrolled, change, forced, then = STORIES[story]
    for number in range(1, 300):
        place = tmp_path / str(number)
        place.mkdir()
        world = World(place)
        if enrolled:
            world.heal()
        change(world)
        ended = world.run(cut=number, force=forced) is not None
        then(world)
        world.heal()
        newest = {cert.subject: cert for cert in world.ca.issued.values()}
        for name, org in world.wanted:
            live = world.live(name)
            assert live is not None and newest[live.subject] == live, (
                f"{name} ({org}): a newer one is not taken"
            )
        shutil.rmtree(place)
        if ended:
            assert number > 10
            return
    raise AssertionError("no run ever ends")
