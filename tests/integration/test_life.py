"""A day of a device's life in minutes: the lab CA's service and the device's flow on one clock that is set by hand.

The CA's certificates live for an hour. The device runs when its own agenda says so, as the resident agent does;
meanwhile a reader looks at the paths all the time.
"""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, pkcs12

from igelcert.codec import est
from igelcert.codec.http import Request, Response
from igelcert.device import straight
from igelcert.device.config import Config
from igelcert.device.exits import EX_FAILED, EX_OK, EX_TEMPFAIL
from igelcert.device.flow import Run
from igelcert.device.log import Log
from igelcert.device.schedule import ADDRESS_SETTLE
from igelcert.errors import TransportError
from igelcert.labca import authority as lab
from igelcert.labca.est import EstService, Options
from igelcert.model import DeviceFacts
from igelcert.settings import Settings, parse_document
from tests.support.servers import PASSWORD
from tests.support.tree import openssl

START = 1_800_000_000
HOUR = 3_600
VALIDITY = HOUR - lab.BACKDATE  # so that a whole life is an hour


@dataclass
class World:
    """One clock, one CA, what is broken just now."""

    directory: Path
    now: int = START
    ca_away: bool = False
    proxy_away: bool = False
    refusing: bool = False
    asked: list[int] = field(default_factory=list)
    old_authority: lab.Authority | None = None

    def __post_init__(self) -> None:
        self.authority = lab.Authority(self.directory / "ca")
        self.service = EstService(self.authority, Options(validity=VALIDITY))
        password = (self.directory / "ca/ra.p12.password").read_text().strip().encode()
        store = (self.directory / "ca/ra.p12").read_bytes()
        _, cert, _ = pkcs12.load_key_and_certificates(store, password)
        assert cert is not None
        self.ra = cert.public_bytes(Encoding.DER)

    def send(self, request: Request) -> Response:
        """What the proxy would answer."""
        if self.proxy_away:
            raise TransportError("nothing listens on proxy.example:8443", link="tcp")
        if "enroll" in request.path:
            self.asked.append(self.now)
            if self.ca_away:
                return Response(503, (("Retry-After", "60"),), b"the CA cannot be asked now")
            if self.refusing:
                return Response(403, (), b"not in this profile")
        return self.service.answer(request, self.ra)

    def issued(self) -> list[x509.Certificate]:
        found = []
        for place in {self.authority.directory, self.directory / "ca"}:
            found += [
                x509.load_pem_x509_certificate(path.read_bytes()) for path in (place / "issued").iterdir()
            ]
        return found

    def roll_over(self, *, both: bool) -> None:
        """A new root and issuing CA; with both, the old ones are still given out beside them."""
        if self.old_authority is None:
            self.old_authority, self.authority = self.authority, lab.Authority(self.directory / "ca2")
        old = self.old_authority.chain if both else ()

        class Rolling(lab.Authority):
            @property
            def chain(self) -> Any:
                return (*super().chain, *old)

        self.service = EstService(Rolling(self.directory / "ca2"), Options(validity=VALIDITY))


class Wire:
    """A link that leads into the service."""

    def __init__(self, world: World) -> None:
        self.send = world.send

    def close(self) -> None:
        pass


class Life:
    """The device, its settings, and a reader that never sees a mixture."""

    def __init__(self, root: Path, world: World) -> None:
        self.root, self.world = root, world
        (root / "wfs").mkdir(parents=True)
        self.hooks = root / "etc/igelcert/hooks.d"
        self.hooks.mkdir(parents=True)
        self.heard = root / "heard"
        self.facts = DeviceFacts("tc-life", "LIFE", ("192.0.2.1",))
        self.settings = Settings()
        self.log = Log("igel-certs", screen=False)

    def wants(self, *certs: dict[str, Any]) -> None:
        self.settings = parse_document({"certs": list(certs), "show_user_notifications": False})

    def hook(self, text: str) -> None:
        path = self.hooks / "10-note"
        path.write_text(
            f'#!/bin/sh\necho "$1 $IGELCERT_FRIENDLY_NAME $IGELCERT_REASON" >> {self.heard}\n{text}\n'
        )
        path.chmod(0o755)

    def events(self) -> list[str]:
        lines = self.heard.read_text().splitlines() if self.heard.exists() else []
        return [" ".join(line.split()[:2]) for line in lines]

    def run(self) -> Run:
        world = self.world
        return Run(
            Config(root=str(self.root)),
            self.facts,
            self.log,
            lambda: world.now,
            lambda cert, _current: straight.EstWay(Wire(world), cert.friendly_name),  # type: ignore[arg-type]
            paced=True,
        )

    def apply(self) -> int:
        return self.run().apply(self.settings)

    def until(self, end: int, done: Callable[[], bool] = lambda: False) -> int:
        """Lives by its agenda until `end`, or until `done`; how many runs it took."""
        runs = 0
        while self.world.now < end and not done():
            step = self.run().next_step(self.settings)
            self.world.now = min(end, max(self.world.now + 1, step if step is not None else end))
            self.apply()
            runs += 1
            after = self.run().next_step(self.settings)
            assert after is None or after > self.world.now, "it spins"
        return runs

    def home(self, name: str = "lan") -> Path:
        return self.root / "wfs/igel-certs" / name

    def cert(self, name: str = "lan") -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.home(name) / "cert.pem").read_bytes())

    def state(self, name: str = "lan") -> dict[str, Any]:
        found: dict[str, Any] = self.run().tree.state(name)
        return found


def generation(home: Path) -> int:
    """Its number."""
    return int(os.readlink(home).rpartition("-")[2])


class Reader(threading.Thread):
    """Reads key, certificate and CAs through one handle of the directory, over and over."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home, self.pairs, self.wrong, self.rounds = home, set[tuple[bytes, ...]](), "", 0
        self.over = threading.Event()

    def run(self) -> None:
        names = ("pkey.pem", "cert.pem", "cacerts.pem", "cert.pfx")
        while not self.over.is_set() and not self.wrong:
            try:
                self._look(names)
            except Exception as err:
                self.wrong = repr(err)
            self.rounds += 1
            self.over.wait(0.002)

    def _look(self, names: tuple[str, ...]) -> None:
        begun = generation(self.home)
        try:
            at = os.open(self.home, os.O_PATH | os.O_DIRECTORY)
            try:
                self.pairs.add(tuple(Path(f"/proc/self/fd/{at}/{name}").read_bytes() for name in names))
            finally:
                os.close(at)
        except OSError:
            # a generation stays until the one after the next: who stands still for two renewals may find it gone
            if generation(self.home) - begun < 2:
                raise

    def finish(self) -> None:
        """Every set that was seen belonged together."""
        self.over.set()
        self.join(30)
        assert not self.wrong and self.rounds > 20
        for key, cert, cas, pfx in self.pairs:
            leaf = x509.load_pem_x509_certificate(cert)
            assert load_pem_private_key(key, PASSWORD.encode()).public_key() == leaf.public_key()
            packed_key, packed, others = pkcs12.load_key_and_certificates(pfx, PASSWORD.encode())
            assert packed == leaf and packed_key is not None
            authorities = x509.load_pem_x509_certificates(cas)
            assert set(others) == set(authorities)
            assert leaf.issuer in {authority.subject for authority in authorities}


def entry(name: str = "lan", kind: str = "ec_prime256v1", percent: int = 60, **more: Any) -> dict[str, Any]:
    return {
        "friendly_name": name,
        "key": {"type": kind, "crypt_password": PASSWORD},
        "enrollment": {"renewal_period": percent},
        **more,
    }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World.__new__(World)
    monkeypatch.setattr(
        lab, "_now", lambda: datetime.datetime.fromtimestamp(getattr(made, "now", START), datetime.UTC)
    )
    made.__init__(tmp_path)  # type: ignore[misc]
    return made


@pytest.fixture
def life(tmp_path: Path, world: World) -> Life:
    made = Life(tmp_path / "root", world)
    made.hook("exit 0")
    made.wants(entry())
    return made


@pytest.fixture
def watched(life: Life) -> Iterator[Life]:
    assert life.apply() == EX_OK
    reader = Reader(life.home())
    reader.start()
    yield life
    reader.finish()


@pytest.mark.slow
def test_a_day(watched: Life, world: World) -> None:
    """Ten renewals, a CA away for half of a life, the proxy away, a hook that fails, another name, a new root,
    another profile; the paths stay whole throughout, and no request costs two certificates."""
    life = watched
    assert life.events() == ["enrolled lan"]

    # ten renewals, each in the first tenth of the time that remains when it is due
    for _ in range(10):
        before = life.cert()
        due = int(before.not_valid_after_utc.timestamp()) - HOUR * 60 // 100
        life.until(due + HOUR, lambda old=before: life.cert() != old)  # type: ignore[misc]
        assert due <= world.now <= due + HOUR * 60 // 1000 + 1
        assert life.cert().public_key() != before.public_key()
    assert life.events() == ["enrolled lan"] + ["renewed lan"] * 10

    # the CA is away for half of the certificate's life, from the very moment of its renewal
    before, world.asked = life.cert(), []
    world.now = int(before.not_valid_after_utc.timestamp()) - HOUR * 60 // 100 + HOUR * 6 // 100
    world.ca_away = True
    life.until(world.now + HOUR // 2)
    assert life.cert() == before, "what is there stays"
    gaps = [b - a for a, b in zip(world.asked, world.asked[1:], strict=False)]
    assert 5 <= len(world.asked) <= 25 and min(gaps) >= 60, "told to stay away for a minute each time"
    assert life.state()["error"].startswith("the server cannot answer now (503)")
    world.ca_away = False
    life.until(int(before.not_valid_after_utc.timestamp()), lambda: life.cert() != before)
    assert life.cert() != before and world.now < before.not_valid_after_utc.timestamp()
    assert "error" not in life.state()
    assert life.events()[-2:] == ["failed lan", "renewed lan"], "failures are told once a day"

    # the proxy is away for a while
    before = life.cert()
    world.proxy_away = True
    world.now = life.state()["renew_at"] + 300
    life.until(world.now + 600)
    assert life.cert() == before and "nothing listens" in life.state()["error"]
    world.proxy_away = False
    life.until(world.now + HOUR // 4, lambda: life.cert() != before)
    assert life.cert() != before

    # a hook that fails twice is run until it succeeds; the certificate stays
    flag = life.root / "twice"
    life.hook(f'[ "$(cat {flag} 2>/dev/null)" = xx ] || {{ printf x >> {flag}; exit 7; }}')
    (life.hooks / "20-good").write_text(f"#!/bin/sh\necho good >> {life.root}/good\n")
    (life.hooks / "20-good").chmod(0o755)
    life.heard.unlink()
    before = life.cert()
    life.until(world.now + HOUR, lambda: life.cert() != before)
    trouble = life.state()["hooks"]
    assert trouble["error"] == "10-note failed with exit status 7" and trouble["failures"] == 1
    after = life.cert()
    life.until(world.now + 600, lambda: "hooks" not in life.state())
    assert "hooks" not in life.state() and life.cert() == after
    assert life.events() == ["renewed lan"] * 3
    assert (life.root / "good").read_text().split() == ["good"], "who has heard is left in peace"

    # another host name
    life.facts = DeviceFacts("tc-renamed", "LIFE", ("192.0.2.1",))
    assert life.apply() == EX_OK
    assert life.cert().subject.rfc4514_string() == "CN=tc-renamed"

    # a new root: first beside the old one, then alone
    serial = life.cert().serial_number
    world.roll_over(both=True)
    life.until(world.now + HOUR // 3)
    assert life.cert().serial_number == serial, "the old certificate is still good"
    assert (life.home() / "cacerts.pem").read_text().count("BEGIN") == 4
    assert len(list((life.root / "etc/ssl/certs").glob("*.pem"))) == 4
    assert life.events()[-1] == "renewed lan"
    world.roll_over(both=False)
    life.until(world.now + HOUR // 3, lambda: life.cert().serial_number != serial)
    assert life.cert().serial_number != serial, "nobody vouches for the old one any more"
    assert len(list((life.root / "etc/ssl/certs").glob("*.pem"))) == 2, "the old CAs went with it"
    openssl(
        "verify", "-attime", str(world.now), "-CApath", life.root / "etc/ssl/certs", life.home() / "cert.pem"
    )

    # another profile
    life.wants(entry(kind="ec_secp384r1", subject={"org": "Example"}))
    assert life.apply() == EX_OK
    assert life.cert().subject.rfc4514_string() == "CN=tc-renamed,O=Example"

    # one certificate for each key, ever
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    keys = [cert.public_key().public_bytes(*form) for cert in world.issued()]
    assert len(keys) == len(set(keys))


def test_what_leaves_the_profile(life: Life, world: World) -> None:
    life.wants(entry(), entry("vpn"))
    assert life.apply() == EX_OK
    life.hook('[ "$1" = removed ] && [ ! -e ' + str(life.root / "flag") + " ] && exit 1; exit 0")
    life.wants(entry("vpn"))
    assert life.apply() == EX_TEMPFAIL, "the hook failed and will be run again"
    assert not os.path.lexists(life.home("lan")) and life.events()[-1] == "removed lan"
    (life.root / "flag").touch()
    runs = life.until(world.now + 120, lambda: life.run().settler.next_removal() is None)
    assert life.events()[-2:] == ["removed lan", "removed lan"] and runs >= 1
    assert life.apply() == EX_OK
    assert life.events().count("removed lan") == 2, "it has heard"
    life.wants()
    assert life.apply() == EX_OK
    assert life.events()[-1] == "removed vpn"
    assert list((life.root / "etc/ssl/certs").iterdir()) == []


def test_an_expired_device_comes_back(life: Life, world: World) -> None:
    assert life.apply() == EX_OK
    before = life.cert()
    world.now += 30 * 24 * HOUR
    assert life.run().next_step(life.settings) is not None
    assert life.apply() == EX_OK
    assert life.cert() != before and life.cert().not_valid_after_utc.timestamp() > world.now
    assert life.events() == ["enrolled lan", "renewed lan"]


def test_an_expired_device_whose_ca_is_away_keeps_trying(life: Life, world: World) -> None:
    assert life.apply() == EX_OK
    world.now += 24 * HOUR
    world.ca_away, world.asked = True, []
    life.until(world.now + 24 * HOUR)
    assert 60 <= len(world.asked) <= 200, "every quarter of an hour, not once a day and not each minute"
    world.ca_away = False
    life.until(world.now + HOUR // 2, lambda: life.cert().not_valid_after_utc.timestamp() > world.now)
    assert life.cert().not_valid_after_utc.timestamp() > world.now


def test_a_refusal_is_told_and_tried_again(life: Life, world: World) -> None:
    world.refusing = True
    assert life.apply() == EX_FAILED
    assert not os.path.lexists(life.home()) and life.events() == ["failed lan"]
    assert life.apply() == EX_TEMPFAIL, "paced: not yet"
    assert len(world.asked) == 1
    life.until(world.now + 24 * HOUR - 1)
    assert life.events() == ["failed lan"]
    world.refusing = False
    life.until(world.now + HOUR, lambda: life.home().exists())
    assert life.home().exists() and life.events()[-1] == "enrolled lan"


def test_in_1970_it_waits(life: Life, world: World) -> None:
    assert life.apply() == EX_OK
    before, asked = life.cert(), len(world.asked)
    right, world.now = world.now, 12_345
    life.wants(entry(), entry("vpn"))
    assert life.apply() == EX_TEMPFAIL
    assert life.cert() == before and len(world.asked) == asked and life.events() == ["enrolled lan"]
    assert "error" not in life.state(), "waiting for the time is no failure"
    world.now = right + 60
    assert life.apply() == EX_OK
    assert life.home("vpn").exists()


def test_a_clock_before_the_management_certificate(life: Life, world: World) -> None:
    run = life.run()
    run.floor = world.now + 2 * HOUR
    assert run.apply(life.settings) == EX_TEMPFAIL and world.asked == []


def test_an_address_that_flaps(life: Life, world: World) -> None:
    """It counts when it has stayed, and then not again for hours; none at all is no new one."""
    life.wants(entry(percent=1, subjaltname={"auto_ip": True, "auto_hostname": False}))
    assert life.apply() == EX_OK
    asked = len(world.asked)
    for minute in range(60):
        life.facts = DeviceFacts("tc-life", "LIFE", (f"192.0.2.{1 + minute % 2}",) if minute % 3 else ())
        world.now += 20
        life.apply()
    assert len(world.asked) == asked
    # a network that is away for long is no other address
    life.facts = DeviceFacts("tc-life", "LIFE", ())
    for _ in range(20):
        world.now += 15
        life.apply()
    assert len(world.asked) == asked
    # a renewal meanwhile takes what is there
    life.facts = DeviceFacts("tc-life", "LIFE", ("192.0.2.7",))
    life.apply()
    life.until(world.now + ADDRESS_SETTLE + 5)
    assert len(world.asked) == asked + 1
    names = life.cert().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    life.facts = DeviceFacts("tc-life", "LIFE", ("192.0.2.8",))
    life.apply()
    life.until(world.now + 600)
    assert len(world.asked) == asked + 1, "not twice within hours"


def test_a_changed_ca_is_not_asked_for_at_every_run(life: Life, world: World) -> None:
    life.wants(entry(percent=1))
    assert life.apply() == EX_OK
    looks: list[int] = []
    send = world.send
    world.send = lambda request: (looks.append(1) if "cacerts" in request.path else None, send(request))[1]  # type: ignore[method-assign]
    for _ in range(30):
        world.now += 20
        assert life.apply() == EX_OK
    assert looks == []
    world.now += HOUR // 4
    assert life.apply() == EX_OK and len(looks) == 1


def test_a_ca_that_no_longer_vouches(life: Life, world: World) -> None:
    """Long before a renewal is due: seen at the next look, and a new certificate at once."""
    life.wants(entry(percent=1))
    assert life.apply() == EX_OK
    before = life.cert()
    world.roll_over(both=False)
    assert life.apply() == EX_OK and life.cert() == before, "not looked at yet"
    life.until(world.now + HOUR // 3, lambda: life.cert() != before)
    assert life.cert() != before and life.state()["reason"] == "the CA changed"


def test_an_intermediate_that_comes_with_the_certificate_alone(life: Life, world: World) -> None:
    """/cacerts gives the root, the answer the rest: that is no changed CA, week for week."""
    issuing, root = world.authority.chain
    answer = world.service.answer

    def chained(request: Request, client: bytes | None) -> Response:
        if "cacerts" in request.path:
            return est.certs_response([root])
        given = answer(request, client)
        return est.certs_response([*est.cacerts_reply(given), issuing], enroll=True)

    world.service.answer = chained  # type: ignore[method-assign]
    life.wants(entry(percent=1))
    assert life.apply() == EX_OK
    before, asked = life.cert(), len(world.asked)
    assert (life.home() / "cacerts.pem").read_text().count("BEGIN") == 2
    for _ in range(3):
        world.now += HOUR // 4 + 1
        assert life.apply() == EX_OK
    assert life.cert() == before and len(world.asked) == asked and life.events() == ["enrolled lan"]


def test_the_state_file_lost(life: Life, world: World) -> None:
    """All of it can be derived: nothing is asked for, hooks hear once more."""
    assert life.apply() == EX_OK
    before, asked = life.cert(), len(world.asked)
    (life.root / "wfs/igel-certs/.store/lan/state.json").write_text("{ damaged")
    assert life.apply() == EX_OK
    assert life.cert() == before and len(world.asked) == asked
    assert json.loads((life.root / "wfs/igel-certs/.store/lan/state.json").read_text())["renew_at"]
