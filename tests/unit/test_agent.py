"""The agent: what comes from the proxy counts only when it is valid."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from igelcert import crypto
from igelcert.codec.http import Request, Response
from igelcert.codec.pem import decode_pem
from igelcert.device import agenda, commands, facts, files, keys
from igelcert.device.agent import Agent
from igelcert.device.config import load
from igelcert.device.log import Log
from igelcert.device.store import Busy
from igelcert.errors import Error, RemoteProtocolError, SettingsError, TransportError
from igelcert.record import replace
from igelcert.settings import Settings
from tests.support.badca import make_ca, sign


class Wire:
    """A link whose answer is given."""

    def __init__(self, answer: Response) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    def send(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answer


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    (tmp_path / "etc/igelcert").mkdir(parents=True)
    (tmp_path / "etc/igelcert/device.toml").write_text('unit_id = "U1"\nhostname = "tc"\n')
    made = Agent(load(str(tmp_path), None), Log("rmagent", screen=False))
    Path(made.dir).mkdir(parents=True)
    return made


def test_good_settings_are_stored_with_their_tag(agent: Agent) -> None:
    wire = Wire(Response(200, (("ETag", '"one"'),), b'{"certs": [{"friendly_name": "lan"}]}'))
    agent._fetch(wire)  # type: ignore[arg-type]
    stored = Path(agent.dir) / "settings.json"
    assert stored.read_bytes() == wire.answer.body
    assert stored.stat().st_mode & 0o777 == 0o600
    agent._fetch(wire)  # type: ignore[arg-type]
    assert wire.asked[1].header("If-None-Match") == '"one"'


@pytest.mark.parametrize(
    "answer",
    [
        Response(200, (), b'{"certs": [{"frendly_name": "lan"}]}'),
        Response(200, (), b"<html>please log in</html>"),
        Response(200, (), b"[]"),
        Response(200, (), b""),
        Response(200, (), b"\xff\xfe"),
        Response(403, (), b'{"error": "this device is not known"}'),
        Response(500, (), b"oops"),
        Response(302, (), b""),
    ],
)
def test_bad_settings_leave_the_stored_ones(agent: Agent, answer: Response) -> None:
    stored = Path(agent.dir) / "settings.json"
    stored.write_bytes(b'{"certs": []}')
    with pytest.raises(Error) as caught:
        agent._fetch(Wire(answer))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert stored.read_bytes() == b'{"certs": []}'
    if answer.status == 403:
        assert isinstance(caught.value, RemoteProtocolError) and "this device is not known" in str(
            caught.value
        )


@pytest.mark.parametrize(
    "damage", ["cut", "gone", "of another version", "tag with a line end", "tag of noise"]
)
def test_damaged_settings_are_fetched_again(agent: Agent, damage: str) -> None:
    """With the old tag the proxy would answer 304 for ever."""
    good = b'{"certs": [{"friendly_name": "lan"}]}'
    wire = Wire(Response(200, (("ETag", '"one"'),), good))
    agent._fetch(wire)  # type: ignore[arg-type]
    stored, tag = Path(agent.dir) / "settings.json", Path(agent.dir) / "settings.etag"
    if damage == "gone":
        stored.unlink()
    elif damage.startswith("tag"):
        tag.write_bytes(b'"one"\r\nX: y' if "line" in damage else b"\xff\xfe")
    else:
        stored.write_bytes(good[:9] if damage == "cut" else b'{"bells": []}')
    agent._fetch(wire)  # type: ignore[arg-type]
    assert not wire.asked[-1].header("If-None-Match")
    assert stored.read_bytes() == good and tag.read_bytes() == b'"one"'


@pytest.mark.parametrize(
    ("text", "name"),
    [("tc-1\n", "tc-1"), ("localhost\n", ""), ("LOCALHOST", ""), ("localhost.localdomain", "")],
)
def test_a_device_that_nobody_named_has_no_name(agent: Agent, tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "etc/hostname").write_text(text)
    assert facts.hostname(replace(agent.config, hostname="")) == name


def test_settings_that_go_back_after_a_cut(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag of older settings must not stand beside newer ones: the proxy would say that nothing changed."""
    old = Wire(Response(200, (("ETag", '"one"'),), b'{"certs": [{"friendly_name": "lan"}]}'))
    new = Wire(Response(200, (("ETag", '"two"'),), b'{"certs": [{"friendly_name": "vpn"}]}'))
    agent._fetch(old)  # type: ignore[arg-type]
    replace = files.replace

    def cut(path: str, *rest: object) -> None:
        if path.endswith("settings.etag"):
            raise KeyboardInterrupt
        replace(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        agent._fetch(new)  # type: ignore[arg-type]
    monkeypatch.setattr(files, "replace", replace)
    agent._fetch(old)  # type: ignore[arg-type]
    assert old.asked[-1].header("If-None-Match") == ""
    assert b"lan" in (Path(agent.dir) / "settings.json").read_bytes()


# ---- the management identity ----------------------------------------------------------------------


class Cut(BaseException):
    """The power fails."""


def identity(agent: Agent) -> tuple[bytes, bytes]:
    """Public keys of key.pem and cert.pem."""
    home = Path(agent.dir)
    key = serialization.load_pem_private_key((home / "key.pem").read_bytes(), None).public_key()
    cert = x509.load_pem_x509_certificate((home / "cert.pem").read_bytes()).public_key()
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_bytes(*form), cert.public_bytes(*form)


class Issuer(Wire):
    """The proxy's answer to a registration or renewal."""

    def __init__(self, days: int) -> None:
        self.days = days
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self._issue(self.key.public_key(), "management CA", ca=True)
        super().__init__(Response(204, (), b""))

    def _issue(self, public: Any, name: str, *, ca: bool = False) -> str:
        now = datetime.datetime.now(datetime.UTC)
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "management CA")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=300))
            .not_valid_after(now + datetime.timedelta(days=3650 if ca else self.days))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return cert.public_bytes(serialization.Encoding.PEM).decode()

    def send(self, request: Request) -> Response:
        super().send(request)
        csr = x509.load_der_x509_csr(base64.b64decode(json.loads(request.body)["csr"]))
        answer = {"certificate": self._issue(csr.public_key(), "U1"), "ca": self.pem}
        return Response(200, (), json.dumps(answer).encode())


def test_power_fails_while_the_identity_is_renewed(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step: the next run has a key and a certificate that fit, without a new token."""
    steps = 0
    while True:
        for path in Path(agent.dir).rglob("*"):
            if path.is_file():
                path.unlink()
        (Path(agent.dir) / "trust-store").mkdir(exist_ok=True)
        old = Issuer(days=10)
        agent.identity._csr()
        key = serialization.load_pem_private_key((Path(agent.dir) / "key.pem").read_bytes(), None)
        (Path(agent.dir) / "cert.pem").write_text(old._issue(key.public_key(), "U1"))
        (Path(agent.dir) / "trust-store/cacerts.pem").write_text(old.pem)
        before = identity(agent)
        old.days = 365
        left = steps
        with monkeypatch.context() as patch:
            for name in ("rename", "fsync_dir"):
                real = getattr(files, name)

                def step(*args: str, real: Any = real) -> None:
                    nonlocal left
                    if left == 0:
                        raise Cut
                    left -= 1
                    real(*args)

                patch.setattr(files, name, step)
            try:
                assert agent.identity.renew(old)  # type: ignore[arg-type]
                whole = True
            except Cut:
                whole = False
        (Path(agent.dir) / "server.json").write_text('{"server": "https://localhost:1"}')
        agent.identity.link().close()  # what a cut left is finished before it is used
        key_now, cert_now = identity(agent)
        assert key_now == cert_now, f"cut at step {steps}"
        if whole:
            assert key_now != before[0] and steps > 6
            return
        steps += 1


def test_a_refusal_does_not_stop_what_is_due(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that this version does not understand, or a device that was removed: the stored settings count."""
    (Path(agent.dir) / "settings.json").write_text('{"certs": []}')
    applied: list[Settings] = []

    class Applied:
        def apply(self, settings: Settings, reread: object) -> int:
            applied.append(settings)
            return 0

        def next_step(self, settings: Settings) -> None:
            return None

    def refuse() -> None:
        raise RemoteProtocolError("the proxy refused the report (403): this device is not known")

    monkeypatch.setattr(agent.identity, "check_registered", lambda: None)
    monkeypatch.setattr(agent.identity, "link", refuse)
    monkeypatch.setattr(agent, "run", Applied)
    assert agent.sync() == 1 and applied == [Settings()]
    (Path(agent.dir) / "settings.json").unlink()
    assert agent.sync() == 1
    assert len(applied) == 1, "nothing is known, which is not the same as nothing is wanted"


def test_a_change_of_the_proxys_ca_that_cannot_be_followed_is_told_of_again(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the resident agent, with the tag of the new settings, would come to it with its next renewal."""
    fails = [TransportError("the proxy's certificate is not trusted", link="tls-trust")]

    def take_trust(_link: object, _wanted: str) -> bool:
        if fails:
            raise fails[0]
        return False

    monkeypatch.setattr(agent.identity, "take_trust", take_trust)
    answer = Response(200, (("ETag", '"one.trust"'), ("Management-Trust", "00")), b'{"certs": []}')
    stored, tag = Path(agent.dir) / "settings.json", Path(agent.dir) / "settings.etag"
    wire = Wire(answer)
    agent._fetch(wire)  # type: ignore[arg-type]
    assert stored.read_bytes() == answer.body, "the settings themselves count"
    assert not tag.exists() and agenda.tags(agent.dir) == ""
    agent._fetch(wire)  # type: ignore[arg-type]
    assert wire.asked[1].header("If-None-Match") == "" and not tag.exists()
    # the tag is there, and the trust is another: of an agent that has noted it all the same
    tag.write_text('"one.trust"')
    agent._fetch(Wire(Response(304, answer.headers, b"")))  # type: ignore[arg-type]
    assert not tag.exists()
    fails.clear()
    agent._fetch(wire)  # type: ignore[arg-type]
    assert tag.read_text() == '"one.trust"'


def test_doctor_does_not_call_an_expired_certificate_well(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(agent.dir) / "settings.json").write_text('{"certs": [{"friendly_name": "lan"}]}')
    for days, text in ((-1, "lan: the certificate has expired"), (1, "")):
        issuer = Issuer(days)
        cert = crypto.parse_certificate(decode_pem(issuer._issue(issuer.key.public_key(), "tc").encode())[0])
        monkeypatch.setattr(keys, "live", lambda *_, cert=cert: keys.Live(cert, ""))
        with pytest.raises(Error, match=text) if text else contextlib.nullcontext():
            assert "1 certificate(s)" in commands._keys(agent)


def renewal_pair(agent: Agent) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A registered device; a key and a certificate (PEM) of its own for a renewal."""
    authority, ca = make_ca("Management CA")
    pem = Encoding.PEM
    home = Path(agent.dir)
    (home / "trust-store").mkdir()
    (home / "trust-store/cacerts.pem").write_bytes(ca.public_bytes(pem))
    (home / "server.json").write_text('{"server": "https://localhost:1"}')
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "U1")])
    certs = [sign(name, key.public_key(), ca.subject, authority).public_bytes(pem) for key in keys]
    (home / "key.pem").write_bytes(keys[0].private_bytes(pem, PrivateFormat.PKCS8, NoEncryption()))
    (home / "cert.pem").write_bytes(certs[0])
    return keys[1], certs[1]


def test_a_renewal_cut_between_its_renames_is_ended_by_whoever_needs_it(agent: Agent) -> None:
    key, cert = renewal_pair(agent)
    home = Path(agent.dir)
    (home / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (home / "cert.new").write_bytes(cert)
    agent.identity.link().close()
    assert (home / "cert.pem").read_bytes() == cert and not (home / "cert.new").exists()


def test_a_pair_that_nothing_mends_is_said(agent: Agent) -> None:
    key, _ = renewal_pair(agent)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (Path(agent.dir) / "key.pem").write_bytes(pem)
    with pytest.raises(SettingsError, match="cannot be used"):
        agent.identity.link()
    with agent.identity.alone(), pytest.raises(SettingsError, match="cannot be used"):
        agent.identity.link()


def test_one_at_a_time_at_the_identity(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    renewal_pair(agent)
    monkeypatch.setattr("igelcert.device.identity.LOCK_SECONDS", 0.2)
    second = Agent(agent.config, agent.log)
    with (
        agent.identity.alone(),
        pytest.raises(Busy, match="another rmagent is at work"),
        second.identity.alone(),
    ):
        pass
    with second.identity.alone():
        pass


def test_what_a_cut_run_left_beside_the_identity_goes(agent: Agent) -> None:
    renewal_pair(agent)
    left = [Path(agent.dir) / name for name in ("key.pem.new999999", "settings.json.new999999")]
    left.append(Path(agent.dir) / "trust-store/cacerts.pem.new999999")
    for path in left:
        path.write_text("secret")
    with agent.identity.alone():
        assert not any(path.exists() for path in left)
