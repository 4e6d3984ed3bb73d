"""Years of operation: the master key and the management CA are changed while devices enroll, and none is refused."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from igelcert.device.agent import Agent
from igelcert.device.config import load
from igelcert.device.log import Log
from igelcert.errors import CheckError, TransportError
from igelcert.proxy import devices, profiles, rekeying
from igelcert.proxy.context import Context
from igelcert.proxy.secrets import Sealer
from tests.load.ca import SlowCa, slow_ca
from tests.support.chain import Device, Proxy, command, ok, proxy, run
from tests.support.postgres import Cluster
from tests.support.proxies import request, together, use
from tests.support.until import until
from tests.support.work import work

CERT = {"friendly_name": "lan", "key": {"type": "ec_prime256v1", "crypt_password": "Schlüssel 7"}}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowCa]:
    with slow_ca(tmp_path_factory.mktemp("ca") / "ca", cap=16) as made:
        yield made


def office(gate: Proxy, ca: SlowCa, place: Path, *names: str) -> list[Device]:
    """Devices of those names, which have their certificates; the CA, and the profile of who only works, too."""
    use(gate, ca)
    context, made = Context.open(gate.data), []
    profiles.store(context, "lan", json.dumps({"certs": [CERT]}).encode())
    profiles.assign(context, "lan", directory="/Office")
    for name in names:
        device = Device(place / name, name.upper(), f"tc-{name}")
        (device.root / "etc/igelcert").mkdir(parents=True)
        config = f'unit_id = "{device.unit_id}"\nhostname = "{device.hostname}"\n'
        (device.root / "etc/igelcert/device.toml").write_text(config)
        token = place / f"{name}.token"
        token.write_text(devices.add(context, device.unit_id, "/Office").token)
        device.register(gate, token)
        device.sync()
        made.append(device)
    context.db.close()
    return made


def opened(data: Path, sealer: Sealer) -> list[bool]:
    """Of each sealed value of a proxy: does it open?"""
    context, found = Context.open(data), []
    with context.db.read() as connection:
        for sealed in rekeying.SEALED:
            for row in connection.execute(sealed.rows()):
                try:
                    sealer.unseal(sealed.value(row), sealed.place(row))
                    found.append(True)
                except CheckError:
                    found.append(False)
    context.db.close()
    return found


# ---- the master key -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_master_key_is_changed_while_devices_enroll(ca: SlowCa, tmp_path: Path) -> None:
    with proxy(tmp_path / "data") as gate:
        (device,) = office(gate, ca, tmp_path, "a1")
        shutil.copy(gate.data / "master.key", tmp_path / "old.key")
        with work([gate], tmp_path) as going:
            written = threading.Thread(target=_keep_writing, args=(gate.data, going.stopped))
            written.start()
            gate.cli("rekey")
            going.go_on()
        written.join(20)
        time.sleep(
            1.1
        )  # a proxy looks once a second whether its own certificate's file is to be written anew
        assert "new settings" not in device.sync(), "tags of settings are those of before"
    assert len((gate.data / "master.key").read_text().splitlines()) == 1
    assert (gate.data / "master.key").stat().st_mode & 0o777 == 0o600
    fits, old = (
        opened(gate.data, Sealer.open(path)) for path in (gate.data / "master.key", tmp_path / "old.key")
    )
    assert len(fits) >= 4 and all(fits) and not any(old)
    server = (gate.data / "server.pem").read_bytes()
    with proxy(gate.data, port=gate.port):  # what is to be read at a start opens with the new key
        assert "new settings" not in device.sync()
        assert x509.load_pem_x509_certificate(server) == x509.load_pem_x509_certificate(
            (gate.data / "server.pem").read_bytes()
        )


def _keep_writing(data: Path, stopped: threading.Event) -> None:
    """Secrets are written all the while, by another process than the one that changes the key."""
    context, number = Context.open(data), 0
    while not stopped.is_set():
        number += 1
        profiles.store(context, f"p{number % 3}", json.dumps({"certs": [CERT]}).encode())
    context.db.close()


@pytest.mark.slow
@pytest.mark.peers
def test_master_key_and_management_ca_of_two_proxies(postgres: Cluster, ca: SlowCa, tmp_path: Path) -> None:
    """Nothing is sealed under the new key before all that serve have it; what was forgotten is named."""
    with together(postgres, tmp_path / "two", 2) as (one, two):
        use(one, ca)
        with work([one, two], tmp_path) as going:
            assert "--add" in one.cli("rekey")
            code, said = one.refused("rekey")
            assert code == 1 and "is missing at proxies that serve" in said
            assert two.refused("rekey")[0] == 1
            copied = tmp_path / "copied.key"
            shutil.copy(one.data / "master.key", copied)
            two.cli("rekey", "--add", copied)
            until(lambda: "Missing at" not in one.cli("rekey", "--show"))
            going.go_on()
            one.cli("rekey")
            going.go_on()
            assert "1 old key(s)" in two.cli("rekey", "--drop")
            going.go_on()
            one.cli("management-ca", "roll")
            before = [server_certificate(gate) for gate in (one, two)]
            two.cli("management-ca", "switch", "--now")
            for gate, old in zip((one, two), before, strict=True):
                until(lambda gate=gate, old=old: server_certificate(gate) != old)  # type: ignore[misc]
            going.go_on()
        assert (one.data / "master.key").read_bytes() == (two.data / "master.key").read_bytes()
        assert all(opened(two.data, Sealer.open(two.data / "master.key")))


# ---- the management CA --------------------------------------------------------------------------


def issuers(device: Device) -> str:
    """SHA-256 of the CA in the proxy's bundle that issued the management certificate."""
    cert = x509.load_pem_x509_certificate((device.agent / "cert.pem").read_bytes())
    for each in trusted(device.agent / "trust-store/cacerts.pem"):
        try:
            cert.verify_directly_issued_by(each)
            return each.public_bytes(Encoding.DER).hex()
        except Exception:  # noqa: S112 - another of the same name
            continue
    raise AssertionError("it trusts no CA of its own certificate")


def trusted(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes())


@contextmanager
def resident(device: Device, log: Path) -> Iterator[None]:
    with log.open("wb") as sink:
        process = subprocess.Popen([command("rmagent"), "run", "--root", str(device.root)], stderr=sink)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.mark.slow
def test_the_management_ca_is_changed_while_devices_enroll(ca: SlowCa, tmp_path: Path) -> None:
    """One device is there, and follows by itself; one is off during all of it, and comes back."""
    with proxy(tmp_path / "data") as gate:
        here, away = office(gate, ca, tmp_path, "here", "away")
        old = trusted(gate.data / "trust.pem")
        first = issuers(here)
        with resident(here, tmp_path / "here.log"):
            with work([gate], tmp_path) as going:
                gate.cli("management-ca", "roll")
                until(lambda: len(trusted(here.agent / "trust-store/cacerts.pem")) == 2)
                assert len(trusted(gate.data / "trust.pem")) == 2
                assert issuers(here) == first
                until(lambda: len(_server_chain(gate)) == 2)
                going.go_on()
                until(lambda: "HERE" not in gate.refused("management-ca", "switch")[1])
                code, said = gate.refused("management-ca", "switch")
                assert code == 1 and "AWAY" in said and "--now" in said
                gate.cli("management-ca", "switch", "--now")
                until(lambda: issuers(here) != first)
                going.go_on()
            new = {der for der in trusted(gate.data / "trust.pem") if der not in old}
            assert len(new) == 1
            # it knows of nothing but the old CA, and its certificate is from that one
            assert trusted(away.agent / "trust-store/cacerts.pem") == old and issuers(away) == first
            assert "AWAY" in gate.refused("management-ca", "retire")[1]
            away.sync()
            assert issuers(away) == issuers(here) != first
            context = Context.open(gate.data)
            devices.remove(
                context,
                *[each.unit_id for each in devices.listing(context) if each.unit_id.startswith("WORK")],
            )
            context.db.close()
            until(lambda: _state(gate)["waits_for"]["count"] == 0)
            gate.cli("management-ca", "retire")
            until(lambda: set(trusted(here.agent / "trust-store/cacerts.pem")) == new)
        away.sync()
        assert (
            set(trusted(away.agent / "trust-store/cacerts.pem"))
            == set(trusted(gate.data / "trust.pem"))
            == new
        )
        assert [each["state"] for each in _state(gate)["cas"]] == ["retired", "issuing"]
        # the certificates are those of before: nobody had to enroll for it
        rows = [
            row
            for name in ("HERE", "AWAY")
            for row in json.loads(gate.cli("enrollments", "--search", name, "--json"))
        ]
        assert len(rows) == 2


@pytest.mark.parametrize("given", ["file", "fingerprint"])
def test_who_trusts_the_old_ca_registers_until_it_is_retired(ca: SlowCa, tmp_path: Path, given: str) -> None:
    """An image carries the old file, or its fingerprint."""
    with proxy(tmp_path / "data") as gate:
        use(gate, ca)
        (old,) = trusted(gate.data / "trust.pem")
        (tmp_path / "old.pem").write_bytes(old.public_bytes(Encoding.PEM))
        digest = hashlib.sha256(old.public_bytes(Encoding.DER)).hexdigest()
        option = ("--ca-file", tmp_path / "old.pem") if given == "file" else ("--ca-fingerprint", digest)

        def registered(unit: str) -> Device:
            made = gate.device(tmp_path / unit, unit, f"tc-{unit}", register=False)
            where = ("--root", made.root, "--server", gate.url, "--token-file", tmp_path / f"{unit}.token")
            ok("rmagent", "register", *where, *option)
            return made

        assert "old one, or its fingerprint" in gate.cli("management-ca", "roll")
        made = [registered("A1")]
        shown = server_certificate(gate)
        gate.cli("management-ca", "switch", "--now")
        until(lambda: server_certificate(gate) != shown)
        made.append(registered("A2"))
        assert issuers(made[0]) != issuers(made[1])
        for step in ("", "retire"):
            if step:
                until(lambda: _state(gate)["waits_for"]["count"] == 0)
                gate.cli("management-ca", step)
            for device in made:
                device.sync()
                device.sync()  # the answer to a renewal brings the way between the CAs, and the next run ends that
                own = set(trusted(device.agent / "trust-store/cacerts.pem"))
                assert own == set(trusted(gate.data / "trust.pem"))
        assert issuers(made[0]) == issuers(made[1])


def _state(gate: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gate.cli("management-ca", "show", "--json"))
    return found


def server_certificate(gate: Proxy) -> str:
    return ssl.get_server_certificate(("localhost", gate.port))


@pytest.mark.slow
def test_the_server_certificate_is_renewed_while_devices_enroll(ca: SlowCa, tmp_path: Path) -> None:
    """Who waits on an open connection is answered on it; who comes meets the new one, and knows it."""
    with proxy(tmp_path / "data") as gate:
        (device,) = office(gate, ca, tmp_path, "a1")
    short_lived(gate.data, seconds=24)
    old = x509.load_pem_x509_certificate((gate.data / "server.pem").read_bytes())
    with proxy(gate.data, port=gate.port) as gate:
        tag = gate.ask("GET", "/rmagent/settings", client=device)[1]["etag"]
        with ThreadPoolExecutor(1) as pool, work([gate], tmp_path) as going:
            headers = {"If-None-Match": tag, "Prefer": "wait=120"}
            waits = pool.submit(
                gate.ask, "GET", "/rmagent/settings", client=device, headers=headers, timeout=150
            )
            until(lambda: "igelcert_waiting_devices 1.0" in gate.admin("/metrics")[1])
            assert x509.load_pem_x509_certificate(server_certificate(gate).encode()) == old
            until(lambda: x509.load_pem_x509_certificate(server_certificate(gate).encode()) != old)
            going.go_on()
            assert not waits.done()
            gate.profile("more", {**CERT, "friendly_name": "more"}, directory="/Office")
            assert waits.result()[0] == 200
        device.sync()


def short_lived(data: Path, seconds: int) -> None:
    """A server certificate that is due when two thirds of so many seconds are over."""
    context = Context.open(data)
    issuer, key = context.management_ca, ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime.now(datetime.UTC)
    old = x509.load_pem_x509_certificate((data / "server.pem").read_bytes())
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, key.public_key(), 4711, begin, begin + datetime.timedelta(seconds=seconds)
    )
    for extension in old.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(issuer._key, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = BestAvailableEncryption(context.sealer.derive("server key")[0])
    (data / "server.pem").write_bytes(made + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    context.db.close()


@pytest.mark.slow
def test_cas_that_do_not_know_the_proxy_are_not_taken_over(
    ca: SlowCa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that trusted what it is told, unseen, would lose the proxy by one wrong answer."""
    with proxy(tmp_path / "data") as gate:
        (device,) = office(gate, ca, tmp_path, "a1")
        agent = Agent(load(str(device.root)), Log("test", screen=False))
        before = (device.agent / "trust-store/cacerts.pem").read_bytes()
        other = (ca.dir / "ca.pem").read_bytes()
        asked = agent.identity._cacerts
        wanted = hashlib.sha256(x509.load_pem_x509_certificate(other).public_bytes(Encoding.DER)).hexdigest()
        with agent.identity.alone(), agent.identity.link() as link:
            monkeypatch.setattr(
                agent.identity, "_cacerts", lambda each: other if each is link else asked(each)
            )
            with pytest.raises(TransportError, match="not trusted"):
                agent.identity.take_trust(link, wanted)
            assert not agent.identity.take_trust(link, agent.identity.trust)
        assert (device.agent / "trust-store/cacerts.pem").read_bytes() == before
        device.sync()


def _server_chain(gate: Proxy) -> list[str]:
    done = run(
        "openssl", "s_client", "-connect", f"localhost:{gate.port}", "-showcerts", "-CAfile", gate.data / "trust.pem",
        input="",
    )  # fmt: skip
    assert "Verify return code: 0" in done.stdout, done.stdout
    return done.stdout.split("-----BEGIN CERTIFICATE-----")[1:]


# ---- backups ------------------------------------------------------------------------------------


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("Zwölf Boxkämpfer jagen\n")
    return path


@pytest.mark.slow
def test_a_backup_made_under_load_is_restored_on_a_new_machine(
    ca: SlowCa, passphrase: Path, tmp_path: Path
) -> None:
    saved, new = tmp_path / "proxy.backup", tmp_path / "new/data"
    with proxy(tmp_path / "data") as gate:
        (device,) = office(gate, ca, tmp_path, "a1")
        with work([gate], tmp_path) as going:
            gate.cli("backup", saved, "--passphrase-file", passphrase)
            going.go_on()
        members = going.members
    assert saved.stat().st_mode & 0o777 == 0o600
    text = saved.read_bytes()
    key = (gate.data / "master.key").read_bytes().strip()
    assert key not in text and base64.b64decode(key) not in text and "Schlüssel 7".encode() not in text
    shutil.rmtree(gate.data)  # the machine is gone
    ok("ca-proxy", "restore", saved, "--data", new, "--passphrase-file", passphrase)
    before = (device.agent / "cert.pem").read_bytes()
    with proxy(new, port=gate.port) as again:
        assert "new settings" not in device.sync()
        shutil.rmtree(device.certs)
        device.sync()
        assert (device.certs / "lan/cert.pem").exists() and (device.agent / "cert.pem").read_bytes() == before
        for member in members:
            assert request(again, member, member.csr())[0] == 200
        assert [row["action"] for row in json.loads(again.cli("audit", "--json", "--search", "restore"))] == [
            "restore"
        ]


@pytest.mark.slow
@pytest.mark.peers
def test_a_proxy_on_postgresql_is_restored(
    postgres: Cluster, ca: SlowCa, passphrase: Path, tmp_path: Path
) -> None:
    """As docs/operations.md says: the database by pg_dump while the proxy serves, and the rest by us."""
    dump, saved, new = tmp_path / "proxy.dump", tmp_path / "proxy.backup", tmp_path / "new/data"
    with together(postgres, tmp_path / "one", 1) as (gate,):
        use(gate, ca)
        url = (gate.data / "database.url").read_text().strip()
        with work([gate], tmp_path) as going:
            assert "pg_dump" in gate.cli("backup", saved, "--passphrase-file", passphrase)
            ok(postgres.bin / "pg_dump", "--format=custom", f"--file={dump}", url)
        other = postgres.url(postgres.create())
        args = ("ca-proxy", "restore", saved, "--data", new, "--passphrase-file", passphrase)
        assert "the database is empty" in run(*args, "--database", other).stderr and not new.exists()
        ok(postgres.bin / "pg_restore", "--no-owner", "--exit-on-error", f"--dbname={other}", dump)
        assert "--database" in run(*args).stderr and not new.exists()
        ok(*args, "--database", other)
    with proxy(new) as again:
        for member in going.members:
            assert request(again, member, member.csr())[0] == 200
        with psycopg.connect(other) as connection, pytest.raises(psycopg.Error, match="append-only"):
            connection.execute("DELETE FROM audit")
