"""The management CA is changed: its states, who is waited for, and what OpenSSL says of the chains."""

from __future__ import annotations

import base64
import hashlib
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from igelcert import crypto
from igelcert.codec.pem import decode_pem
from igelcert.errors import ConflictError, UnavailableError
from igelcert.proxy import devices, registration, rollover, servertls
from igelcert.proxy.cli import main
from igelcert.proxy.context import Context
from igelcert.proxy.schema import management_cas, management_certificates

KEY = ec.generate_private_key(ec.SECP256R1())


def csr(unit: str) -> str:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, unit)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(KEY, hashes.SHA256())
    return base64.b64encode(made.public_bytes(Encoding.DER)).decode()


def register(context: Context, unit: str) -> bytes:
    """Its management certificate, DER."""
    token = devices.add(context, unit).token
    answer = registration.register(context, {"token": token, "unit_id": unit, "csr": csr(unit)})
    return x509.load_pem_x509_certificate(answer["certificate"].encode()).public_bytes(Encoding.DER)


def renew(context: Context, unit: str) -> bytes:
    device = devices.get(context, unit)
    assert device is not None
    answer = registration.renew_identity(context, device, {"csr": csr(unit)})
    return x509.load_pem_x509_certificate(answer["certificate"].encode()).public_bytes(Encoding.DER)


def report(context: Context, unit: str, certificate: bytes) -> None:
    """As a device does that follows."""
    device = devices.get(context, unit)
    assert device is not None
    registration.report(context, device, {"trust": rollover.standing(context).trust}, certificate)


@pytest.mark.parametrize("trusted", ["old", "new", "both"])
def test_a_device_registers_with_whatever_it_trusts(context: Context, trusted: str) -> None:
    """Device programs of before check their certificate by what they were given to trust, and not by the answer."""
    old = rollover.standing(context).roots
    rollover.roll(context)
    for step in (None, rollover.switch):
        if step is not None:
            step(context, now_=True)
        roots = rollover.standing(context).roots
        anchors = {"old": old, "new": [roots[-1]], "both": roots}[trusted]
        if step is None and trusted == "new":
            continue
        unit = f"A{context.management_ca.number}{len(roots)}{step is None}"
        token = devices.add(context, unit).token
        answer = registration.register(context, {"token": token, "unit_id": unit, "csr": csr(unit)})
        leaf = decode_pem(answer["certificate"].encode())[0]
        crypto.verify_chain(leaf, decode_pem(answer["ca"].encode()), anchors, int(time.time()), partial=True)


def test_a_registration_that_comes_again_issues_nothing(context: Context) -> None:
    """The device had no use for the answer, or never got it."""
    token = devices.add(context, "A1").token
    body = {"token": token, "unit_id": "A1", "csr": csr("A1")}
    first = registration.register(context, body)
    assert registration.register(context, body) == first
    with context.db.read() as connection:
        assert len(connection.execute(management_certificates.select()).all()) == 1
    assert states(context) == [("issuing", 1)]
    rollover.roll(context)
    rollover.switch(context, now_=True)
    again = registration.register(context, body)
    assert again["certificate"] != first["certificate"]
    assert states(context) == [("leaving", 0), ("issuing", 1)], "it is from the CA that issues now"
    assert rollover.lagging(context).count == 0


def states(context: Context) -> list[tuple[str, int]]:
    return [(ca.state, ca.devices) for ca in rollover.cas(context)]


def test_one_step_after_the_other(context: Context) -> None:
    for wrong in (rollover.switch, rollover.retire):
        with pytest.raises(ConflictError, match="no"):
            wrong(context, now_=True)
    certificates = {unit: register(context, unit) for unit in ("A1", "A2")}
    devices.add(context, "NEVER")  # has never registered: nobody waits for it
    assert states(context) == [("issuing", 2)] and rollover.lagging(context).count == 0
    rollover.roll(context)
    for wrong in (rollover.roll, rollover.retire):
        with pytest.raises(ConflictError):
            wrong(context)
    assert states(context) == [("issuing", 2), ("coming", 0)]
    report(context, "A1", certificates["A1"])
    assert rollover.lagging(context) == rollover.Lagging(1, ("A2",))
    with pytest.raises(ConflictError, match="A2"):
        rollover.switch(context)
    report(context, "A2", certificates["A2"])
    rollover.switch(context)
    with pytest.raises(ConflictError):
        rollover.roll(context)
    assert states(context) == [("leaving", 2), ("issuing", 0)] and rollover.lagging(context).count == 2
    fresh = renew(context, "A1")
    assert rollover.lagging(context).count == 2, "it has not been heard of with the new one"
    report(context, "A1", fresh)
    with pytest.raises(ConflictError, match="A2"):
        rollover.retire(context)
    with context.db.begin() as connection:  # nobody waits for one that needs a token anyway
        connection.exec_driver_sql("UPDATE management_certificates SET not_after = 1 WHERE unit_id = 'A2'")
    rollover.retire(context)
    assert states(context) == [("retired", 1), ("issuing", 1)]
    with context.db.read() as connection:
        gone = connection.execute(management_cas.select().where(management_cas.c.state == "retired")).one()
    assert gone.sealed == b"", "its key is no more"
    assert (context.data / "trust.pem").read_text() == rollover.standing(context).pem
    register(context, "A3")
    assert states(context) == [("retired", 1), ("issuing", 2)]


def test_now_leaves_devices_behind(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    def said(step: str, *more: str) -> str:
        assert main(["management-ca", step, *more, "--data", str(context.data)]) == 0
        return capsys.readouterr().out

    register(context, "A1")
    assert "1 device (A1) has yet to hear of it" in said("roll")
    said("switch", "--now")
    assert "1 device goes by it still, and cannot come any more" in said("retire", "--now")
    assert states(context) == [("retired", 1), ("issuing", 0)]


def test_a_change_without_devices(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    for step, sentence in (
        ("roll", "no device has to hear of it"),
        ("switch", "issues"),
        ("retire", "counts no more\n"),
    ):
        assert main(["management-ca", step, "--data", str(context.data)]) == 0
        assert sentence in capsys.readouterr().out


def test_tags_change_when_a_device_has_to_do_something(context: Context) -> None:
    seen = [rollover.standing(context).tagged('"tag"')]
    for step in (rollover.roll, rollover.switch, rollover.retire):
        step(context)
        seen.append(rollover.standing(context).tagged('"tag"'))
    assert seen[0] == '"tag"' and len(set(seen)) == 4


def test_openssl_follows_the_way_from_one_to_the_next(context: Context, tmp_path: Path) -> None:
    """Through two changes: whoever trusts the CA before knows what the new one issues, as long as that is not retired."""
    roots = [rollover.standing(context).root]
    for _ in range(2):
        rollover.roll(context)
        rollover.switch(context)
        standing = rollover.standing(context)
        roots.append(standing.root)
        leaf = context.management_ca.issue_server(KEY.public_key(), ("proxy.example",))
        assert standing.cross and standing.behind != standing.root.public_bytes(Encoding.PEM).decode()
        assert verified(tmp_path, leaf, roots[-2], standing.behind)
        assert verified(tmp_path, leaf, roots[-1], standing.behind)
        assert not verified(tmp_path, leaf, roots[-2], "")
        rollover.retire(context)
        assert (
            hashlib.sha256(b"".join(rollover.standing(context).roots)).hexdigest()
            == rollover.standing(context).trust
        )
        assert verified(tmp_path, leaf, roots[-1], rollover.standing(context).behind)
        assert not verified(tmp_path, leaf, roots[-2], rollover.standing(context).behind)


def verified(place: Path, leaf: str, root: x509.Certificate, behind: str) -> bool:
    (place / "leaf.pem").write_text(leaf)
    (place / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (place / "behind.pem").write_text(behind or leaf)
    args = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "proxy.example"]
    args += [
        "-CAfile",
        str(place / "root.pem"),
        "-untrusted",
        str(place / "behind.pem"),
        str(place / "leaf.pem"),
    ]
    return subprocess.run(args, capture_output=True, timeout=30).returncode == 0


def test_who_is_told_of_other_cas_meets_processes_that_go_by_them(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again at once, to any of them; who comes at the same moment waits."""
    monkeypatch.setattr(servertls, "LOOK_SECONDS", 1000.0)
    monkeypatch.setattr(servertls, "CHANGED_SECONDS", 60.0)
    other = Context.open(context.data)
    other.counted = context.counted  # of one proxy
    tls = servertls.ServerTls(other)
    rollover.standing(context)
    before = tls.current()
    tls.current()
    for step in (rollover.roll, lambda changed: rollover.switch(changed, now_=True)):
        by_command = Context.open(context.data)
        step(by_command)
        by_command.db.close()
        assert tls.current() is before, "it has no cause to look"
        rollover.standing(context)  # what the answer names, in which a device hears of it
        with ThreadPoolExecutor(8) as pool:
            start = threading.Barrier(8)
            found = {id(each.result()) for each in [pool.submit(_together, start, tls) for _ in range(8)]}
        assert found == {id(tls.current())} and tls.current() is not before
        before = tls.current()
    other.db.close()


def _together(start: threading.Barrier, tls: servertls.ServerTls) -> ssl.SSLContext:
    start.wait()
    return tls.current()


def test_a_database_that_is_away_holds_up_no_handshake_for_long(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servertls, "CHANGED_SECONDS", 1.0)
    tls = servertls.ServerTls(context)
    before, entered, end = tls.current(), threading.Event(), threading.Event()

    def away(_context: Context) -> int:
        entered.set()
        end.wait(20)
        raise UnavailableError("the database is away")

    monkeypatch.setattr(servertls.cacerts, "trust_version", away)
    context.count_trust_change()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(tls.current)
        assert entered.wait(20)
        start = time.monotonic()
        assert tls.current() is before and time.monotonic() - start < 15
        end.set()
        assert first.result() is before
    monkeypatch.setattr(servertls, "CHANGED_SECONDS", 60.0)
    start = time.monotonic()
    assert tls.current() is before and time.monotonic() - start < 30, (
        "it was looked at: nobody waits any more"
    )
