"""The agent: what comes from the proxy counts only when it is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from igelcert.codec.http import Request, Response
from igelcert.device import files
from igelcert.device.agent import Agent
from igelcert.device.config import load
from igelcert.device.log import Log
from igelcert.device.store import Busy
from igelcert.errors import Error, RemoteProtocolError, SettingsError
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


def identity(agent: Agent) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
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
    key, cert = identity(agent)
    home = Path(agent.dir)
    (home / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (home / "cert.new").write_bytes(cert)
    agent.identity.link().close()
    assert (home / "cert.pem").read_bytes() == cert and not (home / "cert.new").exists()


def test_a_pair_that_nothing_mends_is_said(agent: Agent) -> None:
    key, _ = identity(agent)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (Path(agent.dir) / "key.pem").write_bytes(pem)
    with pytest.raises(SettingsError, match="cannot be used"):
        agent.identity.link()
    with agent.identity.alone(), pytest.raises(SettingsError, match="cannot be used"):
        agent.identity.link()


def test_one_at_a_time_at_the_identity(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    identity(agent)
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
    identity(agent)
    left = [Path(agent.dir) / name for name in ("key.pem.new999999", "settings.json.new999999")]
    left.append(Path(agent.dir) / "trust-store/cacerts.pem.new999999")
    for path in left:
        path.write_text("secret")
    with agent.identity.alone():
        assert not any(path.exists() for path in left)
