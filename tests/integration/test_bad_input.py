"""What administrators, devices and strangers get wrong: a plain sentence, the right status, nothing lost."""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from tests.support.badca import bad_ca, keystore, make_ca
from tests.support.chain import Device, LabCa, Proxy, command, ok, proxy, run
from tests.support.proxies import all_processes
from tests.support.tree import new_csr, openssl, snapshot

EST = "/.well-known/est/lan/simpleenroll"


def cert(**more: Any) -> dict[str, Any]:
    return {"friendly_name": "lan", "key": {"type": "ec_prime256v1", "crypt_password": "secret-17"}, **more}


def plain(body: bytes) -> str:
    """The sentence of a refusal: one line of text, or the error of a JSON object."""
    text = json.loads(body)["error"] if body.startswith(b"{") else body.decode()
    assert re.fullmatch(r"[^\n<>]{5,1000}\n?", text), text
    assert "Traceback" not in text
    return str(text)


# ---- requests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gate(lab: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("gate") / "data") as made:
        made.use(lab)
        made.profile("lan", cert(subject={"org": "Example"}), directory="/Office")
        yield made


@pytest.fixture(scope="module")
def device(gate: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Device:
    made = gate.device(tmp_path_factory.mktemp("device") / "root", "GOOD1", "tc-good", directory="/Office")
    made.sync()
    return made


def broken_signature(path: Path) -> bytes:
    data = bytearray(new_csr(path, "/O=Example/CN=tc-good", "DNS:tc-good"))
    data[-3] ^= 0x40
    return bytes(data)


def _certificate(path: Path) -> bytes:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    openssl("req", "-x509", *curve, "-nodes", "-keyout", path.with_suffix(".k"), "-subj", "/CN=tc-good",
            "-outform", "DER", "-out", path)  # fmt: skip
    return path.read_bytes()


REQUESTS: dict[str, tuple[Callable[[Path], bytes], int, str]] = {
    "broken signature": (broken_signature, 400, "signature"),
    "foreign subject": (lambda p: new_csr(p, "/O=Example/CN=tc-boss", "DNS:tc-good"), 403, "CN is 'tc-boss'"),
    "foreign organisation": (lambda p: new_csr(p, "/O=Other/CN=tc-good", "DNS:tc-good"), 403, "O is 'Other'"),
    "one more OU": (lambda p: new_csr(p, "/O=Example/OU=Admins/CN=tc-good", "DNS:tc-good"), 403, "OU is 'Admins'"),
    "extra SAN": (lambda p: new_csr(p, "/O=Example/CN=tc-good", "DNS:tc-good,DNS:vpn.example"), 403, "vpn.example"),
    "UPN": (
        lambda p: new_csr(
            p, "/O=Example/CN=tc-good", "DNS:tc-good,otherName:1.3.6.1.4.1.311.20.2.3;UTF8:boss@example"
        ),
        403,
        "other name",
    ),
    "missing SAN": (lambda p: new_csr(p, "/O=Example/CN=tc-good"), 403, "is missing"),
    "another key type": (
        lambda p: new_csr(p, "/O=Example/CN=tc-good", "DNS:tc-good", "-newkey", "rsa:2048"),
        403,
        "the key type is rsa_2048, the profile gives ec_prime256v1",
    ),
    "another curve": (
        lambda p: new_csr(p, "/O=Example/CN=tc-good", "DNS:tc-good", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"),
        403,
        "the key type is ec_secp384r1",
    ),
    "CA wish": (
        lambda p: new_csr(p, "/O=Example/CN=tc-good", "DNS:tc-good", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                          "-addext", "basicConstraints=critical,CA:TRUE"),
        403,
        "certification authority",
    ),
    "noise of 1 MB": (lambda _p: secrets.token_bytes(1 << 20), 413, "larger than 64 KiB"),
    "noise": (lambda _p: secrets.token_bytes(2000), 400, ""),
    "nothing": (lambda _p: b"", 400, "empty"),
    "a certificate": (_certificate, 400, "PKCS#10"),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
@pytest.mark.parametrize("label", ["lan/", ""])
def test_a_request_outside_the_profile(
    gate: Proxy, lab: LabCa, device: Device, tmp_path: Path, case: str, label: str
) -> None:
    make, status, sentence = REQUESTS[case]
    before = len(lab.issued())
    body = make(tmp_path / "bad.csr")
    path = f"/.well-known/est/{label}simpleenroll"
    if len(body) < 50_000:
        body = base64.encodebytes(body)
    code, _, answer = gate.ask(
        "POST", path, body, client=device, headers={"Content-Type": "application/pkcs10"}
    )
    assert code == status
    assert sentence in plain(answer)
    assert len(lab.issued()) == before
    if code == 403:
        newest = gate.enrollments()[0]
        assert (newest["state"], newest["serial"]) == ("refused", None) and sentence in newest["reason"]


def test_the_good_request_passes(gate: Proxy, device: Device, tmp_path: Path) -> None:
    """Or the cases above would prove nothing."""
    request = new_csr(tmp_path / "good.csr", "/O=Example/CN=tc-good", "DNS:tc-good")
    for path in (EST, "/.well-known/est/simpleenroll"):
        assert gate.ask("POST", path, request, client=device)[0] == 200


def test_who_may_ask(gate: Proxy, lab: LabCa, device: Device, tmp_path: Path) -> None:
    before = len(lab.issued())
    request = new_csr(tmp_path / "x.csr", "/O=Example/CN=tc-good", "DNS:tc-good")

    def refused(status: int, sentence: str, client: Any) -> None:
        code, _, body = gate.ask("POST", EST, request, client=client)
        assert (code, sentence in plain(body)) == (status, True), body

    refused(401, "management certificate", None)
    unassigned = gate.device(tmp_path / "unassigned", "LONELY", "tc-lonely", directory="/Elsewhere")
    refused(403, "no certificate profile is assigned", unassigned)
    code, _, body = gate.ask("POST", "/.well-known/est/other/simpleenroll", request, client=device)
    assert code == 403 and "no certificate profile named 'other'" in plain(body)
    removed = gate.device(tmp_path / "removed", "GONE", "tc-gone", directory="/Office")
    gate.cli("device", "remove", "--unit-id", "GONE")
    refused(403, "not known", removed)
    assert gate.ask("GET", "/rmagent/settings", client=removed)[0] == 403
    # a certificate of this CA for somebody whom the proxy never knew
    stranger = gate.device(tmp_path / "stranger", "STRANGER", "tc-stranger", directory="/Office")
    gate.cli("device", "remove", "--unit-id", "STRANGER")
    gate.cli("device", "add", "--unit-id", "STRANGER", "--directory", "/Office")
    refused(403, "not known", stranger)
    assert len(lab.issued()) == before
    assert "Traceback" not in gate.log()


# ---- registration ---------------------------------------------------------------------------------


def test_registration_tokens(gate: Proxy, tmp_path: Path) -> None:
    first = gate.device(tmp_path / "one", "TOKEN1", "tc-token1")
    token = tmp_path / "TOKEN1.token"
    # its token was used: another device does not get in with it, nor does the same device again
    gate.cli("device", "add", "--unit-id", "TOKEN2")
    for unit, sentence in (("TOKEN2", "for another device"), ("TOKEN1", "used already")):
        root = tmp_path / f"again-{unit}"
        (root / "etc/igelcert").mkdir(parents=True)
        (root / "etc/igelcert/device.toml").write_text(f'unit_id = "{unit}"\n')
        done = _register(gate, root, token)
        assert done.returncode == 1 and sentence in done.stderr
        assert not (root / "wfs/igel-rmagent/cert.pem").exists()
    assert gate.ask("GET", "/rmagent/settings", client=first)[0] == 200
    token.write_text("made up\n")
    done = _register(gate, tmp_path / "again-TOKEN2", token)
    assert done.returncode == 1 and "not known" in done.stderr and "made up" not in done.stderr
    assert token.read_text().strip() not in gate.log()


def _register(gate: Proxy, root: Path, token: Path) -> subprocess.CompletedProcess[str]:
    return run("rmagent", "register", "--root", root, "--server", gate.url, "--token-file", token,
               "--ca-file", gate.data / "trust.pem", "--verbose")  # fmt: skip


def test_an_expired_token(gate: Proxy, tmp_path: Path) -> None:
    import sqlite3

    added = json.loads(gate.cli("device", "add", "--unit-id", "LATE", "--json"))
    with sqlite3.connect(gate.data / "proxy.db") as db:
        db.execute("UPDATE tokens SET expires = ? WHERE unit_id = 'LATE'", (int(time.time()) - 1,))
    token = tmp_path / "token"
    token.write_text(added["token"])
    root = tmp_path / "root"
    (root / "etc/igelcert").mkdir(parents=True)
    (root / "etc/igelcert/device.toml").write_text('unit_id = "LATE"\n')
    done = _register(gate, root, token)
    assert done.returncode == 1 and "expired" in done.stderr
    token.write_text(json.loads(gate.cli("device", "token", "--unit-id", "LATE", "--json"))["token"])
    assert _register(gate, root, token).returncode == 0


def test_a_lost_answer_does_not_cost_the_token(gate: Proxy, tmp_path: Path) -> None:
    device = gate.device(tmp_path / "root", "LOST", "tc-lost")
    (device.agent / "cert.pem").unlink()
    done = _register(gate, device.root, tmp_path / "LOST.token")  # the same key, a moment later
    assert done.returncode == 0, done.stderr
    assert gate.ask("GET", "/rmagent/settings", client=device)[0] == 200


def test_a_server_that_is_not_ours(gate: Proxy, tmp_path: Path) -> None:
    other = openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null",
                    "-subj", "/CN=igelcert management CA")  # fmt: skip
    (tmp_path / "other.pem").write_text(other)
    token = tmp_path / "token"
    token.write_text(json.loads(gate.cli("device", "add", "--unit-id", "WARY", "--json"))["token"])
    root = tmp_path / "root"
    (root / "etc/igelcert").mkdir(parents=True)
    (root / "etc/igelcert/device.toml").write_text('unit_id = "WARY"\n')
    common = ["rmagent", "register", "--root", root, "--server", gate.url, "--token-file", token]
    done = run(*common, "--ca-file", tmp_path / "other.pem")
    assert done.returncode == 75 and "not trusted" in done.stderr
    done = run(*common, "--ca-fingerprint", "00" * 32)
    assert done.returncode == 1 and "fingerprint" in done.stderr
    digest = (
        openssl("x509", "-in", gate.data / "trust.pem", "-noout", "-fingerprint", "-sha256")
        .partition("=")[2]
        .strip()
    )
    assert run(*common, "--ca-fingerprint", digest).returncode == 0


# ---- the CA's configuration -----------------------------------------------------------------------


def test_keystores_of_every_kind_of_key(lab: LabCa, tmp_path: Path) -> None:
    """Each really authenticates to a server that demands it."""
    authority = make_ca("Client CA")
    keys = [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP521R1()),
            ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()]  # fmt: skip
    with bad_ca(tmp_path / "ca", clients=authority[1]) as ca, proxy(tmp_path / "data") as gate:
        for number, key in enumerate(keys):
            store = keystore(tmp_path / f"{number}.p12", authority, key=key, extra=[ca.cert])
            gate.use_est(ca.port, store, store.with_suffix(".password"))
            assert "FAILED" not in gate.cli("ca", "test")
        shown = gate.cli("ca", "show")
        assert "CN=RA" in shown and "secret" not in shown
        before = shown
        # a keystore that cannot be used leaves what is there
        cases = _bad_keystores(tmp_path, authority, ca.cert)
        for path, password, sentence in cases:
            args = ["ca", "set-est", "--name", "x", "--host", "localhost", "--port", str(ca.port)]
            code, text = gate.refused(*args, "--keystore", path, "--keystore-password-file", password)
            assert code == 78 and sentence in text, (path, text)
            assert "secret" not in text
            assert gate.cli("ca", "show") == before
        for option, value, sentence in (
            ("--label", "has space", "is not a CA label"),
            ("--label", "ümlaut", "is not a CA label"),
            ("--label", "simpleenroll", "EST operation"),
            ("--port", "0", "not a port"),
            ("--host", "https://ca.example/est", "is a URL"),
            ("--host", "no host", "not a host name"),
        ):
            base = {"--name": "x", "--host": "localhost", "--port": "443", option: value}
            flat = [part for pair in base.items() for part in pair]
            code, text = gate.refused("ca", "set-est", *flat, "--keystore", store,
                                      "--keystore-password-file", store.with_suffix(".password"))  # fmt: skip
            assert code == 78 and sentence in text
            assert gate.cli("ca", "show") == before


def _bad_keystores(tmp: Path, authority: Any, extra: Any) -> list[tuple[Path, Path, str]]:
    import datetime

    good = keystore(tmp / "good.p12", authority, extra=[extra])
    wrong = tmp / "wrong.password"
    wrong.write_text("wrong\n")
    cases = [(good, wrong, "the password does not open it")]
    password = good.with_suffix(".password")
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    cases.append((keystore(tmp / "expired.p12", authority, end=past), password, "has expired"))
    cases.append(
        (keystore(tmp / "alone.p12", authority, chain=False), password, "nothing to trust the server by")
    )
    nokey = tmp / "nokey.p12"
    (tmp / "c.pem").write_text(openssl("pkcs12", "-in", good, "-passin", "pass:secret", "-nokeys"))
    openssl("pkcs12", "-export", "-nokeys", "-in", tmp / "c.pem", "-passout", "pass:secret", "-out", nokey)
    cases.append((nokey, password, "key"))
    pem = tmp / "x.pem"
    pem.write_text(openssl("pkcs12", "-in", good, "-passin", "pass:secret", "-nodes"))
    cases.append((pem, password, "is PEM, not PKCS#12"))
    for name, data, sentence in (
        ("jks", b"\xfe\xed\xfe\xed" + bytes(40), "Java keystore"),
        ("empty", b"", "is empty"),
        ("noise", secrets.token_bytes(3000), "cannot be used"),
        ("cut", good.read_bytes()[:700], "cannot be used"),
    ):
        (tmp / name).write_bytes(data)
        cases.append((tmp / name, password, sentence))
    return cases


def test_ca_test_says_which_link_fails(lab: LabCa, tmp_path: Path) -> None:
    import socket

    authority = make_ca("Client CA")
    stranger = make_ca("Stranger")
    with (
        bad_ca(tmp_path / "ca", clients=authority[1]) as ca,
        proxy(tmp_path / "data", "upstream_timeout = 6") as gate,
    ):
        good = keystore(tmp_path / "good.p12", authority, extra=[ca.cert])
        distrusting = keystore(tmp_path / "distrusting.p12", authority)
        unknown = keystore(tmp_path / "unknown.p12", stranger, extra=[ca.cert])
        password = good.with_suffix(".password")

        def failing(name: str, sentence: str, store: Path, host: str, port: int) -> None:
            gate.cli("ca", "set-est", "--name", "t", "--host", host, "--port", str(port), "--keystore", store,
                     "--keystore-password-file", password)  # fmt: skip
            for _ in range(5):
                done = run("ca-proxy", "ca", "test", "--json", env={"CA_PROXY_DATA": str(gate.data)})
                steps = json.loads(done.stdout)["steps"]
                # a CA that is slow to refuse a certificate is one that breaks off while it is asked
                if not (store == unknown and "broke off" in steps[-1]["text"]):
                    break
            passes = name in {"name", "TCP"}  # tried again later, it may work
            assert done.returncode == (75 if passes else 1), steps
            assert steps[-1]["step"] == name and not steps[-1]["ok"], steps
            assert sentence in steps[-1]["text"] and steps[-1]["hint"]
            assert all(step["ok"] for step in steps[:-1])

        failing("name", "does not resolve", good, "no-such-host.invalid", ca.port)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        failing("TCP", "refused", good, "localhost", port)
        failing("TLS trust", "is not trusted", distrusting, "localhost", ca.port)
        failing("TLS trust", "mismatch", good, "127.0.0.1", ca.port)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            failing("TLS trust", "says nothing", good, "localhost", silent.getsockname()[1])
        failing("client certificate", "refused our client certificate", unknown, "localhost", ca.port)
        ca.mode = "forbidden"
        failing("client certificate", "the RA has no such right", good, "localhost", ca.port)
        ca.mode, ca.cacerts = "good", "404"
        failing("label", "no such alias", good, "localhost", ca.port)
        ca.cacerts = "html"
        failing("CA answer", "HTML", good, "localhost", ca.port)


# ---- files that cannot be written -----------------------------------------------------------------


def test_a_full_disk_on_the_device(gate: Proxy, device: Device) -> None:
    """No file may grow beyond a few bytes: writing fails as on a full disk, the old certificate stays."""
    before = snapshot(device.certs / "lan", device.certs / "lan/cacerts", device.root / "etc/ssl")
    done = run(
        "prlimit",
        "--fsize=100",
        command("igel-certs"),
        "renew",
        "--force",
        "--root",
        device.root,
        "--verbose",
    )
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert snapshot(device.certs / "lan", device.certs / "lan/cacerts", device.root / "etc/ssl") == before
    assert run("igel-certs", "renew", "--force", "--root", device.root).returncode == 0


def test_no_write_permission_on_the_device(device: Device, tmp_path: Path) -> None:
    """As another user than the one to whom the files belong."""
    if subprocess.run(["id", "-u"], capture_output=True, text=True).stdout.strip() != "0":
        pytest.skip("needs root, to become somebody else")
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not there")
    # a root that anybody may look at, yet not write
    root = Path(ok("mktemp", "-d", "/tmp/igelcert-perm.XXXXXX").strip())  # noqa: S108
    try:
        (root / "wfs").mkdir()
        (root / "etc/igelcert").mkdir(parents=True)
        (root / "etc/igelcert/device.toml").write_text('unit_id = "NOWRITE"\nhostname = "tc-nowrite"\n')
        root.chmod(0o755)
        settings = root / "settings.json"
        settings.write_text(json.dumps({"certs": [cert()]}))
        before = snapshot(root)
        code = (
            "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
            "from igelcert.device.cli import main; sys.exit(main(sys.argv[2:]))"
        )
        done = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", _python(), "-c", code, _paths(),
                   "apply", "--settings", settings, "--root", root, "--verbose")  # fmt: skip
        if (
            "No module named" in done.stderr
            or "ermission denied: '/root" in done.stderr
            or done.returncode in {126, 127}
        ):
            pytest.skip("the program itself is not readable for others here")
        assert done.returncode == 1 and "ermission" in done.stderr and "Traceback" not in done.stderr, (
            done.stderr
        )
        assert snapshot(root) == before
    finally:
        shutil.rmtree(root)


def _python() -> str:
    return command("python")


def _paths() -> str:
    import sys

    return ":".join(sys.path)


def test_a_full_disk_at_the_proxy(gate: Proxy, lab: LabCa, tmp_path: Path) -> None:
    device = gate.device(tmp_path / "root", "FULL", "tc-full", directory="/Office")
    workers = [str(pid) for pid in all_processes(gate)[1:]]
    before = len(lab.issued())
    wal = (gate.data / "proxy.db-wal").stat().st_size
    try:
        for worker in workers:
            ok("prlimit", "--pid", worker, f"--fsize={wal // 2 or 1}:unlimited")
        request = new_csr(tmp_path / "f.csr", "/O=Example/CN=tc-full", "DNS:tc-full")
        code, _, body = gate.ask("POST", EST, request, client=device)
        assert code == 503 and "database" in plain(body)
        assert len(lab.issued()) == before, "nothing is asked for that could not be recorded"
    finally:
        for worker in workers:
            ok("prlimit", "--pid", worker, "--fsize=unlimited:unlimited")
    assert gate.ask("POST", EST, request, client=device)[0] == 200


# ---- settings -------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, str]] = {
    "unknown key": (json.dumps({"certs": [cert(frendly="x")]}), "certs[0].frendly: is not a known setting"),
    "bad key type": (json.dumps({"certs": [cert(key={"type": "rsa_1024"})]}), "certs[0].key.type: rsa_1024 is not possible"),
    "parent": (json.dumps({"certs": [cert(friendly_name="../../etc")]}), "certs[0].friendly_name: begins with a dot"),
    "slash": (json.dumps({"certs": [cert(friendly_name="a/../b")]}), "certs[0].friendly_name: holds a slash"),
    "control": (json.dumps({"certs": [cert(friendly_name="a\u0007b")]}), "control character U+0007"),
    "300 bytes": (json.dumps({"certs": [cert(friendly_name="ä" * 150)]}), "certs[0].friendly_name"),
    "bad IP": (json.dumps({"certs": [cert(subjaltname={"ip": ["192.0.2.300"]})]}), "certs[0].subjaltname.ip[0]"),
    "not JSON": ("{certs: 1", "line 1 column 2"),
    "a list": ("[]", "is not an object"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(gate: Proxy, device: Device, tmp_path: Path, case: str) -> None:
    text, sentence = SETTINGS[case]
    path = tmp_path / "settings.json"
    path.write_text(text)
    before = snapshot(device.root)
    done = run("igel-certs", "apply", "--settings", path, "--root", device.root, "--verbose")
    assert done.returncode == 78 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "secret-17" not in done.stderr
    assert snapshot(device.root) == before
    # the proxy does not even take them
    listed = gate.cli("profile", "list", "--json")
    code, stderr = gate.refused("profile", "set", "lan", "--settings", path)
    assert code == 78 and sentence in stderr and "secret-17" not in stderr
    assert gate.cli("profile", "list", "--json") == listed


def test_a_duplicate_friendly_name(gate: Proxy, device: Device, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"certs": [cert(subject={"org": "Example"}), cert(key={"type": "rsa_2048"})]}))
    before = snapshot(device.certs / "lan", device.certs / "lan/cacerts")
    done = run("igel-certs", "apply", "--settings", path, "--root", device.root, "--verbose")
    assert done.returncode == 0 and "certs[1].friendly_name: 'lan' is taken" in done.stderr
    assert snapshot(device.certs / "lan", device.certs / "lan/cacerts") == before


def test_two_devices_do_not_share_a_host_name(gate: Proxy, device: Device, tmp_path: Path) -> None:
    other = gate.device(tmp_path / "root", "COPY", "tc-good", directory="/Office")
    text = other.sync(1)
    assert "the host name tc-good belongs to device GOOD1" in text
    assert not (other.certs / "lan").exists()
    listed = {each["unit_id"]: each["hostname"] for each in json.loads(gate.cli("device", "list", "--json"))}
    assert (listed["GOOD1"], listed["COPY"]) == ("tc-good", "")


NAMES_OF_OTHERS = {
    "*.example": 400, "*.com": 400, "*": 400, "tc-good.": 400, "TC-Good": 409, "\uff54c-good": 400,
    "tc\u00ad-good": 400, "tc-good ": 400, "\u212a": 400, "copy-1": 409, "localhost": 400, "x.localhost": 400,
    "127.0.0.1": 400, "10.1": 400,
}  # fmt: skip


def test_no_name_that_speaks_for_others(gate: Proxy, device: Device, tmp_path: Path) -> None:
    """A wildcard, another spelling of a name that is taken, another device's unit ID, an address."""
    gate.cli("device", "add", "--unit-id", "COPY-1")
    asking = gate.device(tmp_path / "root", "NAMED", "tc-named")
    for name, status in {**NAMES_OF_OTHERS, "tc-free": 204}.items():
        body = json.dumps({"hostname": name, "ips": []}).encode()
        code, _, answer = gate.ask("POST", "/rmagent/report", body, client=asking)
        assert code == status, (name, answer)
        listed = [each["hostname"] for each in json.loads(gate.cli("device", "list", "--json"))]
        assert (name in listed) is (status == 204), name
        if status == 400:
            assert gate.refused("device", "add", "--unit-id", "ANY", "--hostname", name)[0] == 78


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1"])  # noqa: S104
def test_no_address_that_is_everybodys(gate: Proxy, device: Device, address: str) -> None:
    body = json.dumps({"hostname": "tc-good", "ips": [address]}).encode()
    code, _, answer = gate.ask("POST", "/rmagent/report", body, client=device)
    assert code == 400 and b"no address of one device" in answer


@pytest.mark.parametrize("bad", ["\ud800", "a\0b"], ids=["lone surrogate", "NUL"])
def test_what_is_no_text(gate: Proxy, device: Device, bad: str) -> None:
    """JSON can escape what neither UTF-8 nor PostgreSQL have."""
    strange = {"token": bad, "unit_id": bad, "csr": bad}
    bodies: list[tuple[str, dict[str, Any], Device | None]] = [("register", strange, None)]
    bodies += [
        ("report", more, device)
        for more in (
            {"trust": bad},
            {"hostname": bad},
            {"ips": [bad]},
            {"certs": [{"friendly_name": bad, "error": bad}]},
            {bad: [{"x": 1}]},
        )
    ]
    for path, body, client in bodies:
        code, _, answer = gate.ask("POST", f"/rmagent/{path}", json.dumps(body).encode(), client=client)
        assert code == 400 and "NUL or with half a character" in plain(answer), (body, answer)
    raw = b'{"trust": "\xed\xa0\x80"}'
    assert gate.ask("POST", "/rmagent/report", raw, client=device)[0] == 400
    assert "Traceback" not in gate.log()


def test_who_is_not_known_any_more_is_named(gate: Proxy, tmp_path: Path) -> None:
    """As after a restore: the certificate is the proxy's own, so its log can say whose. The device hears why, too."""
    device = gate.device(tmp_path / "gone", "GONE-1", "tc-gone")
    gate.cli("device", "remove", "--unit-id", "GONE-1")
    device.sync(code=1)
    assert re.search(r"WARNING 127\.0\.0\.1 GONE-1: this device is not known to the proxy", gate.log())
    done = run("igel-certs", "doctor", "--root", device.root)
    assert "answers 403: this device is not known to the proxy" in done.stdout
    assert "rmagent register with a new token" in done.stdout


def test_one_device_cannot_speak_for_another(gate: Proxy, device: Device, tmp_path: Path) -> None:
    """Nor can it have what it reports decide over more than itself."""
    body = {"unit_id": "OTHER", "hostname": "tc-good", "ips": []}
    request = new_csr(tmp_path / "m.csr", "/CN=OTHER")
    renewal = {**body, "csr": base64.b64encode(request).decode()}
    assert gate.ask("POST", "/rmagent/register", json.dumps(renewal).encode(), client=device)[0] == 403
    del renewal["unit_id"]
    assert gate.ask("POST", "/rmagent/register", json.dumps(renewal).encode(), client=device)[0] == 400
    for bad in (
        {"hostname": "a b"},
        {"hostname": "x" * 300},
        {"hostname": 5},
        {"ips": "x"},
        {"ips": ["1.2.3"]},
        {"certs": 1},
    ):
        code, _, answer = gate.ask("POST", "/rmagent/report", json.dumps(bad).encode(), client=device)
        assert code == 400 and plain(answer)
