"""What a CA may answer, rightly or badly, through the proxy (test_device_bad_input.py: straight to the device).

A certificate that is in place survives everything that is not a good new one.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.support.badca import BadCa, bad_ca, keystore
from tests.support.chain import Device, Proxy, proxy, run
from tests.support.tree import check_certificate, new_csr, snapshot

PASSWORD = "correct horse"
GOOD = ("good", "chunked", "pem", "pem_cms", "binary", "ber", "with_chain", "changed")

# mode: (status for the device, what the sentence says)
BAD = {
    "html": (502, "the body is HTML"),
    "empty": (502, "the body is empty"),
    "foreign": (502, "no certificate in the answer belongs to our key"),
    "expired": (502, "expired"),
    "future": (502, "is not valid for another"),
    "other_ca": (502, "no chain leads from the certificate"),
    "pending": (202, "an officer must approve this"),
    "pending_date": (202, "it will decide later"),
    "refused": (403, "Not allowed & never will be"),
    "forbidden": (403, "the RA has no such right"),
    "broken": (503, "out of order"),
    "busy": (503, "busy"),
    "redirect": (502, "302"),
    "huge": (502, "more than 1 MiB"),
    "stalled": (503, "did not answer within 6 seconds"),
    "cut": (503, "broke off"),
    "noise": (503, "broke off"),
}


def cert(**more: Any) -> dict[str, Any]:
    return {"friendly_name": "lan", "key": {"type": "ec_prime256v1", "crypt_password": PASSWORD}, **more}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadCa]:
    with bad_ca(tmp_path_factory.mktemp("badca")) as made:
        yield made


@pytest.fixture(scope="module")
def gate(ca: BadCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("gate") / "data", "upstream_timeout = 6") as made:
        store = keystore(ca.directory / "ra.p12", (ca.key, ca.cert))
        made.use_est(ca.port, store, store.with_suffix(".password"))
        made.profile("lan", cert(), directory="/")
        yield made


@pytest.fixture(scope="module")
def device(gate: Proxy, ca: BadCa, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """A device with a certificate."""
    ca.mode = "good"
    made = gate.device(tmp_path_factory.mktemp("device") / "root", "SEVENTEEN", "tc-17")
    made.sync()
    return made


def issued(home: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((home / "cert.pem").read_bytes())


@pytest.mark.parametrize("mode", GOOD)
def test_every_form_of_a_good_answer(gate: Proxy, ca: BadCa, device: Device, mode: str) -> None:
    ca.mode = mode
    done = run("igel-certs", "renew", "--force", "--root", device.root, "--verbose")
    assert done.returncode == 0, done.stderr
    assert issued(device.certs / "lan").serial_number == ca.serials[-1]
    check_certificate(device.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)
    newest = gate.enrollments()[0]
    assert (newest["state"], newest["unit_id"], newest["friendly_name"]) == ("issued", "SEVENTEEN", "lan")
    assert int(newest["serial"], 16) == ca.serials[-1]
    if mode == "changed":
        assert "the CA changed the subject from CN=tc-17 to CN=given by the CA" in newest["warnings"]
        assert "given by the CA" in done.stderr
    else:
        assert newest["warnings"] == []


@pytest.mark.parametrize("mode", BAD)
def test_a_bad_answer_loses_nothing(gate: Proxy, ca: BadCa, device: Device, mode: str) -> None:
    status, sentence = BAD[mode]
    tree = (device.certs / "lan", device.certs / "lan/cacerts", device.root / "etc/ssl")
    before = snapshot(*tree)
    forget_request(device)
    ca.mode = mode
    done = run("igel-certs", "renew", "--force", "--root", device.root, "--verbose")
    assert done.returncode == (75 if status in {202, 503, 502} else 1), done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert snapshot(*tree) == before
    states = {202: ("pending",), 403: ("refused",)}.get(status, ("refused", "failed"))
    assert any(row["state"] in states and sentence in row["reason"] for row in gate.enrollments()[:4])
    # over HTTP: one plain sentence, and when to come back
    code, headers, body = ask(gate, device)
    assert (code, headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert sentence in body.decode() and re.fullmatch(r"[^\n<>]+\n", body.decode())
    assert (code in {202, 503}) == ("retry-after" in headers)
    if mode == "pending":
        assert headers["retry-after"] == "7"
    if mode == "busy":
        assert headers["retry-after"] == "11"


def forget_request(device: Device) -> None:
    """Each case asks with a request of its own, whichever ran before it in this process."""
    shutil.rmtree(device.certs / ".store/lan/pending", ignore_errors=True)


def ask(gate: Proxy, device: Device) -> tuple[int, dict[str, str], bytes]:
    request = new_csr(device.root.parent / "once.csr", "/CN=tc-17", "DNS:tc-17")
    return gate.ask("POST", "/.well-known/est/lan/simpleenroll", request, client=device)


def test_a_pending_request_is_asked_again_with_its_key(gate: Proxy, ca: BadCa, device: Device) -> None:
    """202 for ever costs a request now and then; once the CA decides, the same request gets the certificate."""
    forget_request(device)
    ca.mode = "pending"
    asked = time.monotonic()
    assert run("igel-certs", "renew", "--force", "--root", device.root).returncode == 75
    count = len(ca.requests)
    assert (
        run(
            "igel-certs", "apply", "--settings", device.agent / "settings.json", "--root", device.root
        ).returncode
        == 75
    )
    if time.monotonic() - asked < 7:
        assert len(ca.requests) == count, "the CA said when to come back"
    old = issued(device.certs / "lan").serial_number
    ca.mode = "good"
    done = run("igel-certs", "renew", "--force", "--root", device.root, "--verbose")
    # the proxy honours the CA's Retry-After as well
    assert done.returncode in {0, 75}
    for _ in range(12):
        if done.returncode == 0:
            break
        time.sleep(1)
        done = run("igel-certs", "renew", "--force", "--root", device.root, "--verbose")
    assert done.returncode == 0, done.stderr
    assert issued(device.certs / "lan").serial_number != old


@pytest.mark.parametrize("mode", ["other", "html", "404"])
def test_ca_certificates_that_do_not_fit(ca: BadCa, tmp_path: Path, mode: str) -> None:
    ca.mode, ca.cacerts = "good", mode
    try:
        with proxy(tmp_path / "data") as gate:
            store = keystore(tmp_path / "ra.p12", (ca.key, ca.cert))
            gate.use_est(ca.port, store, store.with_suffix(".password"))
            gate.profile("lan", cert(), directory="/")
            device = gate.device(tmp_path / "root", "A1", "tc-a1")
            before = len(ca.serials)
            device.sync(75)
            assert not (device.certs / "lan").exists()
            assert mode == "other" or len(ca.serials) == before, (
                "nothing is asked for that could not be checked"
            )
            assert gate.enrollments()[0]["state"] == "failed"
    finally:
        ca.cacerts = "good"
