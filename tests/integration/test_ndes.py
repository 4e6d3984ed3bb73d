"""One-time challenges of NDES: fetched by the proxy, given to devices, never more than NDES keeps."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import spnego

from igelcert.codec.ndes import admin_page
from igelcert.errors import RemoteProtocolError, TransportError
from igelcert.proxy.upstream.config import CaConfig, ScepSettings
from igelcert.proxy.upstream.ndes import fetch_challenge
from tests.support.chain import Device, LabCa, Proxy, lab_ca, ok, proxy
from tests.support.tree import check_certificate
from tests.support.until import until

USER, SECRET = r"LAB\enroller", "n0t for logs"
SETTINGS = "/rmagent/settings"


def cert(name: str = "lan") -> dict[str, Any]:
    return {
        "friendly_name": name,
        "subject": {"org": "Example", "country": "DE"},
        "key": {"type": "ec_prime256v1", "crypt_password": "correct horse"},
    }


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    place = tmp_path_factory.mktemp("ndes")
    (place / "secret").write_text(SECRET + "\n")
    with lab_ca(
        place / "ca", "--scep", "127.0.0.1:0", "--scep-mode", "ndes", "--ndes-user", USER,
        "--ndes-password-file", place / "secret",
    ) as found:  # fmt: skip
        yield found


@pytest.fixture
def gate(tmp_path: Path, ca: LabCa) -> Iterator[Proxy]:
    with proxy(tmp_path / "proxy") as found:
        configure(found, ca, tmp_path, SECRET)
        found.profile("ndes", cert(), directory="/")
        yield found


def configure(gate: Proxy, ca: LabCa, where: Path, password: str) -> None:
    (where / "ndes.password").write_text(password + "\n")
    gate.use_scep(
        ca.scep, "--fingerprint", ca.root_fingerprint(), "--ndes-url", ca.scep.replace("mscep/mscep.dll", "mscep_admin/"),
        "--ndes-user", USER, "--ndes-password-file", where / "ndes.password",
    )  # fmt: skip


def challenge_of(gate: Proxy, device: Device) -> str:
    status, _, body = gate.ask("GET", SETTINGS, client=device)
    assert status == 200
    return str(json.loads(body)["certs"][0]["enrollment"]["crypt_challenge_password"])


def test_the_challenge_comes_with_the_settings(gate: Proxy, ca: LabCa, tmp_path: Path) -> None:
    device = gate.device(tmp_path / "root", "NDES1", "tc-ndes1")
    first = challenge_of(gate, device)
    assert len(first) == 16
    assert challenge_of(gate, device) == first, "one that was not used is given again"
    before = len(ca.issued())
    log = device.sync()
    check_certificate(device.root, "lan", "ec_prime256v1", "correct horse")
    assert len(ca.issued()) == before + 1
    assert challenge_of(gate, device) == "", "nothing is due: none is fetched"
    shown = ok("igel-certs", "status", "--root", device.root, "--json")
    for text in (log, shown, gate.log(), ca.log(), gate.cli("ca", "show"), gate.cli("enrollments", "--json")):
        assert first not in text and SECRET not in text
    # forced anew: the old challenge is told to be used up, the next settings have one, and then it works
    refused = ok_or(75, "igel-certs", "renew", "--force", "--root", device.root)
    assert "challenge" in refused and len(ca.issued()) == before + 1
    # the renewal that was begun is still to be ended, and the proxy has said when
    assert "waiting" in device.sync(code=75)
    ok("igel-certs", "renew", "--force", "--root", device.root)
    assert len(ca.issued()) == before + 2


def ok_or(code: int, *args: str | Path) -> str:
    from tests.support.chain import run

    done = run(*args)
    assert done.returncode == code, done.stderr
    return done.stderr


def test_never_more_than_ndes_keeps(gate: Proxy, ca: LabCa, tmp_path: Path) -> None:
    devices = [gate.device(tmp_path / f"d{n}", f"HERD{n}", f"tc-herd{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda each: challenge_of(gate, each), devices))
    out = [each for each in given if each]
    assert len(out) == 5 == len(set(out))
    assert "cache of NDES is full" not in gate.log(), "NDES was never asked for a sixth"
    # who has none is told to come back, and gets one when others have used theirs
    late = [device for device, challenge in zip(devices, given, strict=True) if not challenge]
    assert "challenge" in late[0].sync(code=75)
    for device, challenge in zip(devices, given, strict=True):
        if challenge:
            device.sync()
    late[0].sync(code=75)  # told to wait a minute; the new challenge is there
    ok("igel-certs", "renew", "--force", "--root", late[0].root)
    for device in late[1:]:
        device.sync()
    for device in devices:
        assert (device.certs / "lan/cert.pem").exists()


def test_who_waits_without_a_challenge_does_not_wait_long(gate: Proxy, ca: LabCa, tmp_path: Path) -> None:
    """No change tells when NDES has a challenge again: the device looks again in a minute. A new account is a change."""
    configure(gate, ca, tmp_path, "wrong")
    device = gate.device(tmp_path / "root", "PATIENT", "tc-patient")
    changes = (
        (lambda: configure(gate, ca, tmp_path, SECRET), "wait=60"),
        (lambda: gate.profile("ndes", cert("vpn")), "wait=300"),
    )
    for act, applied in changes:
        until(lambda: "igelcert_waiting_devices 0.0" in gate.admin("/metrics")[1])
        headers = {"If-None-Match": gate.ask("GET", SETTINGS, client=device)[1]["etag"], "Prefer": "wait=300"}
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gate.ask, "GET", SETTINGS, client=device, headers=headers)
            while "igelcert_waiting_devices 1.0" not in gate.admin("/metrics")[1]:
                assert not waiting.done()
            act()
            status, answer, body = waiting.result(40)
        assert (status, answer["preference-applied"]) == (200, applied)
        assert json.loads(body)["certs"][0]["enrollment"]["crypt_challenge_password"]
    device.sync()  # uses what NDES has out for it


def test_a_wrong_account_is_said(gate: Proxy, ca: LabCa, tmp_path: Path) -> None:
    configure(gate, ca, tmp_path, "wrong")
    device = gate.device(tmp_path / "root", "NDESWRONG", "tc-wrong")
    assert "challenge" in device.sync(code=75)
    assert "NDES does not let" in gate.log() and "wrong" not in gate.log().replace("tc-wrong", "").replace(
        "NDESWRONG", ""
    )


# ---- NTLM ---------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A page behind NTLM, which pyspnego accepts here; IIS does the same per connection."""
    users = tmp_path / "users"
    users.write_text(f"LAB:enroller:{SECRET}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(users))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10
        server_side: Any = None

        def do_GET(self) -> None:
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            if scheme != "NTLM":
                return self._say(401, b"", "NTLM")
            if self.server_side is None:
                self.server_side = spnego.server(protocol="ntlm")
            try:
                answer = self.server_side.step(base64.b64decode(token))
            except spnego.exceptions.SpnegoError:
                self.server_side = None
                return self._say(401, b"", "NTLM")
            if not self.server_side.complete:
                return self._say(401, b"", f"NTLM {base64.b64encode(answer or b'').decode()}")
            return self._say(200, admin_page("00", "ABCDEF0123456789"))

        def _say(self, status: int, body: bytes, ask: str = "") -> None:
            self.send_response(status)
            if ask:
                self.send_header("WWW-Authenticate", ask)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/certsrv/mscep_admin/"
    server.shutdown()
    thread.join()
    server.server_close()


def config(url: str, password: str) -> CaConfig:
    settings = ScepSettings("n", "http://127.0.0.1:1/scep", ndes_url=url, ndes_user=USER)
    return CaConfig(1, 0, settings, b"", password)


def test_ntlm(page: str) -> None:
    assert fetch_challenge(config(page, SECRET), 10) == "ABCDEF0123456789"


def test_ntlm_with_a_wrong_password(page: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"does not let LAB.enroller see") as caught:
        fetch_challenge(config(page, "guessed"), 10)
    assert "guessed" not in str(caught.value) + repr(caught.value.__context__)


def test_a_page_that_is_not_there() -> None:
    with pytest.raises(TransportError, match="cannot be reached"):
        fetch_challenge(config(f"http://127.0.0.1:9/{os.getpid()}", SECRET), 2)
