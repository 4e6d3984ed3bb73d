"""Bad settings, a hostile CA, a full disk: one plain sentence, the right exit code, and nothing lost.

The device goes straight to the CA: what arrives is what the CA sent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from igelcert.device import agent, cli, transport
from tests.support.hostile_ca import HostileCa, hostile_ca
from tests.support.servers import PASSWORD, Host, device, straight
from tests.support.tree import check_certificate, snapshot

EX_OK, EX_FAILED, EX_USAGE, EX_TEMPFAIL, EX_CONFIG = 0, 1, 64, 75, 78


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileCa]:
    with hostile_ca(tmp_path_factory.mktemp("hostile"), ask=True) as made:
        yield made


@pytest.fixture(scope="module")
def enrolled(ca: HostileCa, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A device with the certificate "lan", from the same CA in a good hour; to be copied."""
    ca.reset()
    made = device(tmp_path_factory.mktemp("enrolled") / "root", "tc-17", "SEVENTEEN")
    made.trust(ca.trust_pem)
    made.wants(straight("lan", ca.port))
    made.do()
    check_certificate(made.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)
    return made


@pytest.fixture
def host(ca: HostileCa, enrolled: Host, tmp_path: Path) -> Host:
    """That device once more, and the CA at peace."""
    made = enrolled.copy(tmp_path / "root")
    ca.reset()
    return made


def sentence(stderr: str, program: str = "igel-certs") -> str:
    """The one error line of a failed command; a hint may follow, nothing else."""
    lines = stderr.splitlines()
    assert lines and lines[0].startswith(f"{program}: error: "), stderr
    assert all(line.startswith(f"{program}: hint: ") for line in lines[1:]) and len(lines) <= 2, stderr
    text = lines[0].removeprefix(f"{program}: error: ")
    assert text.isprintable() and 10 < len(text) < 400 and not text.endswith("."), text
    assert not re.search(r"Errno|Exception|Error\(|object at 0x|_ssl\.c|\bNone\b|[=:(] ?b'|<[a-z/]", text), (
        text
    )
    return text


def renew(host: Host, code: int) -> str:
    return sentence(host.do("renew", "lan", "--force", code=code))


def leaf(host: Host) -> x509.Certificate:
    return x509.load_pem_x509_certificate((host.home() / "cert.pem").read_bytes())


# ---- settings -------------------------------------------------------------------------------------

LAN: dict[str, Any] = {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}}


def one(**changes: Any) -> str:
    return json.dumps({"certs": [{**LAN, **changes}]})


BAD_SETTINGS = {
    "no JSON": ('{"certs": [', "line 1 column 12: not JSON"),
    "empty": ("", "line 1 column 1: not JSON"),
    "not UTF-8": (b'{"certs": "\xff\xfe"}', "not UTF-8"),
    "NUL": (b"\0" * 100, "not JSON"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "huge": (b" " * ((1 << 20) + 1), "is larger than 1 MiB"),
    "huge number": ('{"certs": ' + "1" * 5000 + "}", "too many digits"),
    "a list": ("[]", "settings: is not an object"),
    "key twice": ('{"certs": [], "certs": []}', "certs: is given twice"),
    "unknown key": ('{"cert": []}', "cert: is not a known setting"),
    "unknown key below": (one(key={"typ": "rsa_2048"}), "certs[0].key.typ: is not a known setting"),
    "control in a key": (json.dumps({"\x1b[2J\n": 1}), "is not a known setting"),
    "key type": (one(key={"type": "rsa_1024"}), "certs[0].key.type: rsa_1024 is not possible"),
    "key type number": (one(key={"type": 4096}), "certs[0].key.type"),
    "parent": (one(friendly_name="../lan"), "certs[0].friendly_name: begins with a dot"),
    "dot dot": (one(friendly_name=".."), "certs[0].friendly_name: begins with a dot"),
    "hidden store": (one(friendly_name=".store"), "certs[0].friendly_name: begins with a dot"),
    "slash": (one(friendly_name="a/../../b"), "certs[0].friendly_name: holds a slash"),
    "absolute": (one(friendly_name="/etc/passwd"), "certs[0].friendly_name: holds a slash"),
    "backslash": (one(friendly_name="a\\b"), "certs[0].friendly_name: holds a slash"),
    "newline": (one(friendly_name="a\nb"), "certs[0].friendly_name: holds the control character U+000A"),
    "escape": (one(friendly_name="a\x1b[1mb"), "certs[0].friendly_name: holds the control character U+001B"),
    "bidi": (one(friendly_name="a\u202eb"), "certs[0].friendly_name: holds the control character U+202E"),
    "surrogate": (one(friendly_name="a\ud800"), "certs[0].friendly_name: holds the control character U+D800"),
    "nul name": (one(friendly_name="a\0"), "certs[0].friendly_name: holds the control character U+0000"),
    "300 bytes": (one(friendly_name="n" * 300), "certs[0].friendly_name: is 300 characters long"),
    "300 bytes of UTF-8": (one(friendly_name="\u20ac" * 100), "certs[0].friendly_name: is 300 bytes long"),
    "no name": (one(friendly_name=""), "certs[0].friendly_name: is empty"),
    "blank name": (one(friendly_name=" lan"), "certs[0].friendly_name: begins or ends with a blank"),
    "bad IP": (one(subjaltname={"ip": ["192.0.2.300"]}), "certs[0].subjaltname.ip[0]: '192.0.2.300' is not an IP"),
    "IP with zone": (one(subjaltname={"ip": ["fe80::1%eth0"]}), "is not an IP address"),
    "bad host": (one(subjaltname={"hostname": ["a..b"]}), "certs[0].subjaltname.hostname[0]: 'a..b' is not a host"),
    "host with newline": (one(subjaltname={"hostname": ["a\nb"]}), "is not a host name"),
    "bad mail": (one(subjaltname={"email": ["nobody"]}), "certs[0].subjaltname.email[0]: 'nobody' is not an e-mail"),
    "bad URI": (one(subjaltname={"uri": ["a b"]}), "certs[0].subjaltname.uri[0]: 'a b' is not an absolute URI"),
    "control in subject": (one(subject={"org": "a\rb"}), "certs[0].subject.org: holds the control character U+000D"),
    "long subject": (one(subject={"ou": "x" * 65}), "certs[0].subject.ou: is 65 characters long"),
    "country": (one(subject={"country": "D3"}), "certs[0].subject.country: 'D3' is not a two-letter country"),
    "percent": (one(enrollment={"renewal_period": 0}), "certs[0].enrollment.renewal_period: is 0"),
    "flag": (one(enrollment={"auto_renewal": "yes"}), "certs[0].enrollment.auto_renewal: is neither true nor false"),
    "proto": (one(enrollment={"proto": "acme"}), "certs[0].enrollment.proto: acme is not possible"),
    "no server": (one(enrollment={"proto": "est"}), "certs[0].enrollment.est.server: is missing"),
    "plain HTTP": (
        one(enrollment={"proto": "est", "est": {"server": "http://localhost"}}),
        "certs[0].enrollment.est.server: is not a URL",
    ),
    "password in URL": (
        one(enrollment={"proto": "est", "est": {"server": "https://u:p4ss@localhost"}}),
        "certs[0].enrollment.est.server: is not a URL",
    ),
    "label": (
        one(enrollment={"proto": "est", "est": {"server": "https://localhost", "label": "a/b"}}),
        "certs[0].enrollment.est.label: 'a/b' is not a CA label",
    ),
    "control in password": (
        one(key={"crypt_password": "p4ss\n"}),
        "certs[0].key.crypt_password: holds a control character",
    ),
    "too many": (json.dumps({"certs": [LAN] * 101}), "certs: has 101 entries"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_change_nothing(host: Host, ca: HostileCa, case: str) -> None:
    document, expected = BAD_SETTINGS[case]
    host.settings.write_bytes(document.encode("utf-8") if isinstance(document, str) else document)
    before, live = snapshot(host.root), host.live()
    said = sentence(host.do(code=EX_CONFIG))
    assert expected in said and "p4ss" not in said
    assert snapshot(host.root) == before and host.live() == live
    assert ca.connections == 0


def test_a_good_entry_does_not_run_beside_a_bad_one(host: Host, ca: HostileCa) -> None:
    """All or nothing: the document as a whole is refused before anything is done."""
    host.settings.write_text(
        json.dumps({"certs": [straight("new", ca.port), {**LAN, "friendly_name": "a/b"}]})
    )
    before = snapshot(host.root)
    assert sentence(host.do(code=EX_CONFIG)).startswith("certs[1].friendly_name")
    assert snapshot(host.root) == before and ca.connections == 0


def test_a_duplicate_friendly_name(host: Host, ca: HostileCa) -> None:
    """A warning, and the first one stands."""
    first, second = straight("lan", ca.port), straight("lan", ca.port, "ec_secp384r1")
    host.wants(first, second, straight("vpn", ca.port))
    live = host.live()
    said = host.do("apply", "--verbose")
    assert "warning: certs[1].friendly_name: 'lan' is taken by an earlier certificate" in said
    assert {key: value for key, value in host.live().items() if "vpn" not in key} == live
    check_certificate(host.root, "vpn", "ec_prime256v1", PASSWORD, authorities=1)


def test_settings_that_are_not_there(host: Host) -> None:
    before = snapshot(host.root)
    host.settings.unlink()
    del before[str(host.settings)]
    assert str(host.settings) in sentence(host.do(code=EX_FAILED))
    left = snapshot(host.root)
    assert {key: left[key] for key in before} == before


@pytest.mark.parametrize("kind", ["directory", "device"])
def test_settings_that_are_no_file(host: Host, kind: str) -> None:
    host.settings.unlink()
    if kind == "directory":
        host.settings.mkdir()
    else:
        host.settings.symlink_to("/dev/zero")
    live = host.live()
    assert str(host.settings) in sentence(host.do(code=EX_FAILED))
    assert host.live() == live


@pytest.mark.parametrize(
    "words",
    [["applyy"], ["apply", "--settigns", "x"], ["renew", "--force=1"], [], ["status", "--what"], ["keygen"]],
    ids=" ".join,
)
def test_usage(host: Host, words: list[str]) -> None:
    before = snapshot(host.root)
    done = subprocess.run([host.command()[0], *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == EX_USAGE and done.stdout == ""
    usage, said = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    assert usage.startswith("usage: igel-certs") and "error: " in said
    assert snapshot(host.root) == before


BAD_TOML = {
    "unknown key": ('unit_id = "A"\nserver_url = "https://x"\n', r"device\.toml:2: server_url: is not a known key"),
    "not TOML": ('unit_id = "A\n', r"device\.toml: not TOML: .*line 1"),
    "choice": ('key_generator = "fast"\n', r"device\.toml:1: key_generator: 'fast' is not possible"),
    "number": ("hook_timeout = 0\n", r"device\.toml:1: hook_timeout: "),
    "flag": ("hook_timeout = true\n", r"device\.toml:1: hook_timeout: "),
    "relative": ('wfs = "wfs"\n', r"device\.toml:1: wfs: is not an absolute path"),
    "unit ID": ('unit_id = "a/b"\n', r"device\.toml:1: unit_id: is not a unit ID"),
    "owner": ('unit_id = "A"\nowner = "nobody here"\n', r"device\.toml: unknown owner or group"),
    "server": ('server = "http://x"\n', r"device\.toml:1: server: does not begin with https://"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TOML)
def test_a_bad_configuration(host: Host, ca: HostileCa, case: str) -> None:
    text, expected = BAD_TOML[case]
    (host.root / "etc/igelcert/device.toml").write_text(text)
    before = snapshot(host.root)
    assert re.search(expected, sentence(host.do(code=EX_CONFIG)))
    assert snapshot(host.root) == before and ca.connections == 0


# ---- what the CA answers --------------------------------------------------------------------------

GOOD_MODES = ("good", "pem", "pem_cms", "binary", "ber", "lines", "with_chain", "renewed_twice", "changed")
GOOD_WIRES = ("chunked", "until_close", "bytewise")

# mode: exit code, and what the sentence says
BAD_MODES = {
    "html": (EX_FAILED, "the answer cannot be used: the body is HTML"),
    "empty": (EX_FAILED, "the answer cannot be used: the body is empty"),
    "garbage": (EX_FAILED, "the answer cannot be used: the body is neither base64 nor DER"),
    "torn_cms": (EX_FAILED, "the answer cannot be used: "),
    "no_certificate": (EX_FAILED, "the answer carries no certificate"),
    "foreign": (EX_FAILED, "no certificate in the answer belongs to our key"),
    "expired": (EX_FAILED, r"the certificate in the answer expired 3[56]\d\d seconds ago"),
    "future": (EX_FAILED, r"the certificate in the answer is not valid for another 8\d{4} seconds"),
    "other_ca": (EX_FAILED, r"no chain leads from the certificate \(CN ?= ?Another CA\) to a trusted CA"),
    "ca_certificate": (EX_FAILED, "the certificate in the answer is a CA certificate"),
    "refused": (EX_FAILED, r"the server refused \(400\): Not allowed & never will be"),
    "unauthorized": (EX_FAILED, r"the server refused \(401\): who are you\?"),
    "forbidden": (EX_FAILED, r"the server refused \(403\): the RA has no such right"),
    "controls": (EX_FAILED, r"the server refused \(400\): .*igel-certs: all is well"),
    "broken": (EX_TEMPFAIL, r"the server cannot answer now \(500\): out of order"),
    "html_error": (EX_TEMPFAIL, r"the server cannot answer now \(502\): Bad gateway nobody home"),
    "busy": (EX_TEMPFAIL, r"the server cannot answer now \(503\): busy"),
    "redirect_text": (EX_FAILED, r"the server refused \(302\): over there"),
    "redirect": (EX_FAILED, r"the server refused \(302\): "),
    "huge": (EX_TEMPFAIL, "sent more than 1 MiB"),
}
BAD_WIRES = {
    "torn": "closed the connection in the middle of its answer",
    "torn_chunk": "closed the connection in the middle of its answer",
    "no_last_chunk": "closed the connection in the middle of its answer",
    "closed": "closed the connection without an answer",
    "reset": "closed the connection",
    "noise": "does not answer with HTTP",
    "endless_head": "does not answer with HTTP",
    "endless_body": "sent more than 1 MiB",
    "plain_http": "does not speak TLS",
}


@pytest.mark.parametrize("mode", GOOD_MODES)
def test_every_form_of_a_good_answer(host: Host, ca: HostileCa, mode: str) -> None:
    ca.mode = mode
    host.do("renew", "--force")
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)
    issued = ca.serials[-2:] if mode == "renewed_twice" else ca.serials[-1:]
    assert leaf(host).serial_number == issued[-1 if mode != "renewed_twice" else 1]


@pytest.mark.parametrize("wire", GOOD_WIRES)
def test_every_way_of_a_good_answer(host: Host, ca: HostileCa, wire: str) -> None:
    ca.wire = wire
    host.do("renew", "--force")
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)
    assert leaf(host).serial_number == ca.serials[-1]
    assert ca.connections == (2 if wire == "until_close" else 1), "one connection serves both requests"


@pytest.mark.parametrize("mode", BAD_MODES)
def test_a_bad_answer_loses_nothing(host: Host, ca: HostileCa, mode: str) -> None:
    code, expected = BAD_MODES[mode]
    ca.mode = mode
    live = host.live()
    said = renew(host, code)
    assert said.startswith("lan: ") and re.search(expected, said), said
    assert host.live() == live and host.litter() == []
    row = host.status()[0]
    assert row["state"] == "valid" and row["error"] == said.removeprefix("lan: ")
    # and it heals
    ca.mode = "good"
    host.do("renew", "--force")
    assert leaf(host).serial_number == ca.serials[-1]
    assert host.status()[0]["error"] == "" and host.litter() == []


@pytest.mark.parametrize("wire", BAD_WIRES)
def test_a_bad_connection_loses_nothing(host: Host, ca: HostileCa, wire: str) -> None:
    ca.wire = wire
    live = host.live()
    said = renew(host, EX_TEMPFAIL)
    assert said.startswith(f"lan: localhost:{ca.port} ") and BAD_WIRES[wire] in said, said
    assert host.live() == live and host.litter() == []
    assert len(ca.bodies) <= 1, "a request that may have been granted is not sent twice in a run"


def test_nobody_listens(host: Host, ca: HostileCa) -> None:
    live = host.live()
    host.wants(straight("lan", 1))
    assert renew(host, EX_TEMPFAIL) == "lan: nothing listens on localhost:1"
    host.wants(straight("lan", ca.port, server="https://host.invalid"))
    assert renew(host, EX_TEMPFAIL) == "lan: the name host.invalid does not resolve"
    host.wants(straight("lan", ca.port, server=f"https://127.0.0.1:{ca.port}"))
    assert "is not trusted" in renew(host, EX_TEMPFAIL), "the name must be in the certificate"
    assert host.live() == live and ca.bodies == []


@pytest.mark.parametrize(("cacerts", "expected"), [
    ("other", "no chain leads"), ("html", "the body is HTML"), ("404", "answered 404: no such alias"),
    ("empty", "the body is empty"),
])  # fmt: skip
def test_bad_ca_certificates(host: Host, ca: HostileCa, cacerts: str, expected: str) -> None:
    """The certificate is good, the CA certificates with it are not: nothing is written."""
    ca.cacerts = cacerts
    live = host.live()
    assert expected in renew(host, EX_FAILED)
    assert host.live() == live and host.litter() == []


def test_a_bad_first_answer_leaves_no_certificate(ca: HostileCa, tmp_path: Path) -> None:
    host = device(tmp_path / "root", "tc-18", "EIGHTEEN")
    host.trust(ca.trust_pem)
    host.wants(straight("lan", ca.port))
    ca.reset("foreign")
    sentence(host.do(code=EX_FAILED))
    assert not os.path.lexists(host.home()) and not host.store.exists()
    assert [row["state"] for row in host.status()] == ["missing"]


def test_the_old_serial_or_the_old_certificate_again(host: Host, ca: HostileCa) -> None:
    """NDES and others hand out the old certificate when they should renew it."""
    ca.mode = "same_serial"
    host.do("renew", "--force")
    live = host.live()
    assert "old certificate instead of a new one" in renew(host, EX_FAILED)
    assert host.live() == live


def test_one_bad_certificate_does_not_stop_the_others(host: Host, ca: HostileCa) -> None:
    host.wants(straight("aaa", 1), straight("lan", ca.port), straight("zzz", ca.port))
    live = host.live()
    assert sentence(host.do(code=EX_TEMPFAIL)).startswith("aaa: nothing listens")
    assert {key: value for key, value in host.live().items() if "zzz" not in key} == live
    check_certificate(host.root, "zzz", "ec_prime256v1", PASSWORD, authorities=1)
    assert [(row["friendly_name"], row["state"]) for row in host.status()] == [
        ("aaa", "missing"), ("lan", "valid"), ("zzz", "valid"),
    ]  # fmt: skip


# ---- waiting --------------------------------------------------------------------------------------

PENDING = {
    "pending": 70,
    "pending_seconds": 3600,
    "pending_soon": 1000,
    "pending_garbage": 60,
    "pending_nothing": 60,
    "pending_for_ever": 86_400,
}


@pytest.mark.parametrize("mode", PENDING)
def test_202_for_ever(host: Host, ca: HostileCa, mode: str) -> None:
    """The same request with the same key, no sooner than the CA said; the old certificate serves meanwhile."""
    ca.mode = mode
    live = host.live()
    asked = time.time()
    host.do("renew", "--force", code=EX_TEMPFAIL)
    row = host.status()[0]
    assert row["state"] == "valid" and "the CA has not decided yet" in row["pending"]
    note = json.loads((host.certs / ".store/lan/state.json").read_text())
    assert asked - 1 <= note["retry_at"] - PENDING[mode] <= time.time() + 1
    for _ in range(2):
        host.do(code=EX_TEMPFAIL)
    assert len(ca.bodies) == 1, "the CA is left alone until then"
    for _ in range(2):
        host.do("renew", "--force", code=EX_TEMPFAIL)
    assert len(ca.bodies) == 3 and len(set(ca.bodies)) == 1, "the request and its key stay"
    assert host.live() == live and host.litter() == []
    pending = host.certs / ".store/lan/pending"
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in pending.iterdir()} == {
        "pkey.pem": 0o600, "csr.der": 0o600, "pending.json": 0o600,
    }  # fmt: skip
    # once it decides, that very request is the one that counts
    ca.mode = "good"
    host.do("renew", "--force")
    assert len(set(ca.bodies)) == 1 and not pending.exists()
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)


def test_503_says_when_to_come_back(host: Host, ca: HostileCa) -> None:
    ca.mode, asked = "busy", time.time()
    host.do("renew", "--force", code=EX_TEMPFAIL)
    note = json.loads((host.certs / ".store/lan/state.json").read_text())
    assert asked - 1 <= note["retry_at"] - 11 <= time.time() + 1


def test_changed_settings_drop_a_request_under_way(host: Host, ca: HostileCa) -> None:
    ca.mode = "pending_seconds"
    host.do("renew", "--force", code=EX_TEMPFAIL)
    ca.mode = "good"
    host.wants(straight("lan", ca.port, subject={"org": "Another"}))
    host.do()
    assert len(set(ca.bodies)) == 2
    assert "O=Another" in leaf(host).subject.rfc4514_string()


# ---- time -----------------------------------------------------------------------------------------


def inside(host: Host, capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The same command in this process, where clock and patience can be set."""
    assert cli.main(host.command("renew", "--force")[1:]) == code
    return sentence(capsys.readouterr().err)


@pytest.mark.parametrize("wire", ["silent", "silent_in_the_body", "no_handshake"])
def test_a_silent_server(
    host: Host, ca: HostileCa, wire: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(transport.Link.__init__.__kwdefaults__, "timeout", 0.5)
    ca.wire = wire
    live, began = host.live(), time.monotonic()
    assert inside(host, capsys, EX_TEMPFAIL) == f"lan: localhost:{ca.port} does not answer in time"
    assert time.monotonic() - began < 15
    assert host.live() == live and host.litter() == []


@pytest.mark.parametrize("wire", ["drip", "drip_body", "drip_until_close"])
def test_a_server_that_drips(
    host: Host, ca: HostileCa, wire: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte a second never lets a read time out; the whole exchange has an end."""
    monkeypatch.setattr(transport, "DEADLINE", 2.0)
    ca.wire = wire
    live, began = host.live(), time.monotonic()
    assert inside(host, capsys, EX_TEMPFAIL) == f"lan: localhost:{ca.port} does not answer in time"
    assert 1.5 < time.monotonic() - began < 15
    assert host.live() == live and host.litter() == []


@pytest.mark.parametrize("now", [0, 1_500_000_000, -1])
def test_a_clock_that_is_not_set(
    host: Host, ca: HostileCa, now: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1970 and its like: no key is made, nobody is asked, and the run is worth another try."""
    monkeypatch.setattr(agent, "_now", lambda: now)
    live = host.live()
    assert inside(host, capsys, EX_TEMPFAIL) == "the clock is not set; waiting for the right time"
    assert host.live() == live and ca.connections == 0
    assert not (host.certs / ".store/lan/pending").exists()


def test_a_clock_far_ahead(
    host: Host, ca: HostileCa, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything looks expired; what the CA gives does as well, and what is in place stays."""
    monkeypatch.setattr(agent, "_now", lambda: 7_258_118_400)  # 2200
    live = host.live()
    assert "expired" in inside(host, capsys, EX_FAILED)
    assert host.live() == live


# ---- disk and permissions -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 64, 200, 400, 600, 800, 1000, 1300, 2000])
def test_a_file_size_limit_at_every_file(host: Host, ca: HostileCa, limit: int) -> None:
    """Writing fails at this file or that: the old set stays whole, or the new one is."""
    live, serial = host.live(), leaf(host).serial_number
    command = ["prlimit", f"--fsize={limit}", *host.command("renew", "--force")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in {EX_OK, EX_FAILED}, done.stderr
    if done.returncode == EX_OK:
        assert limit >= 1000 and leaf(host).serial_number != serial
        check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)
    elif leaf(host).serial_number == serial:
        first = done.stderr.splitlines()[0]
        assert "the file would be too large" in first, done.stderr
        assert host.live() == live
    host.do("renew", "--force")
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)
    assert host.litter() == []


def namespace(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A shell script that may mount: in a mount namespace of its own, which ends with it."""
    able = subprocess.run(["unshare", "-r", "-m", "true"], capture_output=True)
    if able.returncode != 0:
        pytest.skip("mount namespaces cannot be made here")
    command = ["unshare", "-r", "-m", "sh", "-euc", script, "sh", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


FULL = """
wfs=$1 out=$2 free=$3; shift 3
mkdir "$out.saved" && cp -a "$wfs/." "$out.saved/"
mount -t tmpfs -o size=512k tmpfs "$wfs"
cp -a "$out.saved/." "$wfs/"
dd if=/dev/zero of="$wfs/filler" bs=4096 2>/dev/null || true
truncate -s "-${free}k" "$wfs/filler"
code=0; "$@" || code=$?
rm "$wfs/filler"
mkdir "$out" && cp -a "$wfs/." "$out/"
exit $code
"""


@pytest.mark.parametrize("free", [0, 4, 8, 16, 24])
def test_a_full_disk(host: Host, ca: HostileCa, tmp_path: Path, free: int) -> None:
    """A small tmpfs with so many KiB left, at every stage from the request's key to the last CA file."""
    serial, before = leaf(host).serial_number, snapshot(host.home().resolve())
    out = tmp_path / "after"
    done = namespace(FULL, str(host.root / "wfs"), str(out), str(free), *host.command("renew", "--force"))
    assert done.returncode == EX_FAILED, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert "the disk is full" in lines[0] and "Traceback" not in done.stderr, done.stderr
    # what the full disk held, in the place of the old
    shutil.rmtree(host.root / "wfs")
    shutil.move(out, host.root / "wfs")
    assert leaf(host).serial_number == serial and snapshot(host.home().resolve()) == before
    host.do("renew", "--force")
    assert leaf(host).serial_number != serial and host.litter() == []


@pytest.mark.parametrize("free", [0, 4, 8, 16])
def test_a_full_disk_at_the_first_enrollment(ca: HostileCa, tmp_path: Path, free: int) -> None:
    """Nobody is asked before the request is on the disk, and one that was asked is asked again."""
    ca.reset()
    fresh = device(tmp_path / "root", "tc-17", "SEVENTEEN")
    fresh.trust(ca.trust_pem)
    fresh.wants(straight("lan", ca.port))
    out = tmp_path / "after"
    done = namespace(FULL, str(fresh.root / "wfs"), str(out), str(free), *fresh.command())
    assert done.returncode == EX_FAILED and "Traceback" not in done.stderr, done.stderr
    assert "the disk is full" in done.stderr.splitlines()[0], done.stderr
    shutil.rmtree(fresh.root / "wfs")
    shutil.move(out, fresh.root / "wfs")
    kept = (fresh.certs / ".store/lan/pending").exists()
    assert len(ca.bodies) == kept and not fresh.home().exists()
    fresh.do()
    assert len(set(ca.bodies)) == 1 and fresh.litter() == []
    check_certificate(fresh.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)


READ_ONLY = """
place=$1; shift
mount --bind "$place" "$place" && mount -o remount,bind,ro "$place"
exec "$@"
"""


def test_a_read_only_file_system(host: Host, ca: HostileCa) -> None:
    before, live = snapshot(host.root), host.live()
    done = namespace(READ_ONLY, str(host.root / "wfs"), *host.command("renew", "--force"))
    assert done.returncode == EX_FAILED, done.stderr
    assert "the file system is read-only" in sentence(done.stderr)
    assert snapshot(host.root) == before and host.live() == live and ca.connections == 0
    status = namespace(READ_ONLY, str(host.root / "wfs"), *host.command("status"))
    assert status.returncode == EX_OK and "lan: valid" in status.stdout


def test_a_ca_store_that_cannot_be_written(host: Host, ca: HostileCa) -> None:
    """The certificate is renewed all the same; the store is what failed, and says so."""
    serial, store = leaf(host).serial_number, snapshot(host.root / "etc/ssl")
    shutil.copy(host.store / "Test CA.pem", host.root / "kept.pem")
    (host.store / "Test CA.pem").unlink()
    done = namespace(READ_ONLY, str(host.root / "etc"), *host.command("renew", "--force"))
    assert done.returncode == EX_FAILED
    assert "the file system is read-only" in sentence(done.stderr)
    assert leaf(host).serial_number != serial
    host.do()
    assert {Path(key).name for key in snapshot(host.root / "etc/ssl")} == {Path(key).name for key in store}


@pytest.fixture
def stranger(ca: HostileCa, enrolled: Host) -> Iterator[Host]:
    """The device in a place that any user can reach: pytest's own directory is closed to others."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not here")
    ca.reset()
    place = Path(tempfile.mkdtemp(prefix="igelcert-"))
    try:
        place.chmod(0o755)
        yield enrolled.copy(place / "root")
    finally:
        shutil.rmtree(place)


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--", *command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, cwd="/")
    if "igel-certs" not in done.stderr + done.stdout and done.returncode in {126, 127, 1}:
        pytest.skip(f"another user cannot run the command here: {done.stderr.strip()[:200]}")
    return done


@pytest.mark.parametrize("command", ["apply", "renew", "install-cas"])
def test_no_permission(stranger: Host, ca: HostileCa, command: str) -> None:
    """Somebody who is not root: keys and tree are closed to them."""
    before, live = snapshot(stranger.root), stranger.live()
    done = as_nobody(*stranger.command(command))
    assert done.returncode == EX_FAILED, done.stderr
    assert "no permission" in sentence(done.stderr)
    assert snapshot(stranger.root) == before and stranger.live() == live and ca.connections == 0


def test_no_permission_to_write(stranger: Host, ca: HostileCa) -> None:
    """One's own tree with a directory in it that became somebody else's."""
    for path in [stranger.root, *stranger.root.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    home = stranger.certs / ".store/lan"
    os.chown(home, 0, 0)
    home.chmod(0o555)
    before = snapshot(home)
    done = as_nobody(*stranger.command("renew", "--force"))
    assert done.returncode == EX_FAILED and "no permission" in done.stderr.splitlines()[0], done.stderr
    assert "Traceback" not in done.stderr and snapshot(home) == before
    # a wrong mode of one's own is put right
    os.chown(home, 65534, 65534)
    home.chmod(0o500)
    done = as_nobody(*stranger.command("renew", "--force"))
    assert done.returncode == EX_OK, done.stderr


def test_a_foreign_directory_in_the_way(host: Host, ca: HostileCa) -> None:
    """Somebody's own directory under the friendly name is not touched."""
    place = host.certs / "vpn"
    place.mkdir()
    (place / "precious").write_text("x")
    host.wants(straight("lan", ca.port), straight("vpn", ca.port))
    live = host.live()
    assert "is there and is not ours" in sentence(host.do(code=EX_FAILED))
    assert host.live() == live and os.listdir(place) == ["precious"]
    assert ca.bodies == [], "no certificate is asked for that has no place"


def test_a_file_in_the_place_of_the_store(host: Host, ca: HostileCa) -> None:
    shutil.rmtree(host.root / "etc/ssl")
    (host.root / "etc/ssl").write_text("x")
    assert "something else stands there" in sentence(host.do(code=EX_FAILED))
    assert (host.root / "etc/ssl").read_text() == "x"


def test_another_run_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    from igelcert.device import flow

    monkeypatch.setattr(flow, "LOCK_SECONDS", 0.3)
    live = host.live()
    with (host.certs / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another igel-certs is at work" in inside(host, capsys, EX_FAILED)
    assert host.live() == live


def test_the_pem_of_the_peer_is_kept_as_it_is(host: Host, ca: HostileCa) -> None:
    """The certificate in the tree is the CA's, byte for byte."""
    host.do("renew", "--force")
    assert (host.home() / "cacerts.pem").read_bytes() == ca.cert.public_bytes(Encoding.PEM)
