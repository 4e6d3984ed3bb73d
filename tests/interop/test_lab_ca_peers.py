"""Independent EST clients enroll at the lab CA; OpenSSL judges what they got."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chain import lab_ca
from tests.support.est_clients import CLIENTS, Client, Refused, Target, check, openssl

pytestmark = pytest.mark.peers

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Lab:
    """ra: asks as the RA, with its certificate. basic: with a password. nobody: without either."""

    ra: Target
    basic: Target
    nobody: Target


@contextlib.contextmanager
def running(base: Path, *options: str) -> Iterator[Lab]:
    base.mkdir(parents=True, exist_ok=True)
    password = base / "password"
    password.write_text("correct horse\n")
    basic = ("--est-user", "device", "--est-password-file", password)
    with lab_ca(base / "ca", *basic, *options) as ca:
        cert, key, root = base / "ra.pem", base / "ra.key", ca.dir / "root.pem"
        keystore = ("-in", ca.dir / "ra.p12", "-passin", f"file:{ca.dir / 'ra.p12.password'}")
        openssl("pkcs12", *keystore, "-clcerts", "-nokeys", "-out", cert)
        openssl("pkcs12", *keystore, "-nocerts", "-noenc", "-out", key)
        nobody = Target("localhost", ca.port, trust=root, anchors=root)
        yield Lab(
            ra=dataclasses.replace(nobody, cert=cert, key=key),
            basic=dataclasses.replace(nobody, user="device", password_file=password),
            nobody=nobody,
        )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("lab")) as started:
        yield started


@pytest.mark.parametrize(
    ("client", "key_type"),
    [
        pytest.param(client, kind, id=f"{client.name}-{kind}")
        for client in CLIENTS
        for kind in client.key_types
    ],
)
def test_enroll(lab: Lab, client: Client, key_type: str, tmp_path: Path) -> None:
    check(lab.ra, client.enroll(lab.ra, key_type, tmp_path))


@pytest.mark.parametrize(
    ("client", "label"),
    [
        pytest.param(client, label, id=f"{client.name}-{label}")
        for client in CLIENTS
        for label in ("WLAN-1", "Büro WLAN: 1/2")
        if client.can_label(label)
    ],
)
def test_label(lab: Lab, client: Client, label: str, tmp_path: Path) -> None:
    target = dataclasses.replace(lab.ra, label=label)
    check(target, client.enroll(target, "ec_prime256v1", tmp_path))


@each_client
def test_password(lab: Lab, client: Client, tmp_path: Path) -> None:
    check(lab.basic, client.enroll(lab.basic, "ec_prime256v1", tmp_path))


@each_client
def test_wrong_password(lab: Lab, client: Client, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong horse\n")
    with pytest.raises(Refused, match="401"):
        client.enroll(dataclasses.replace(lab.basic, password_file=wrong), "ec_prime256v1", tmp_path)


@each_client
def test_nobody(lab: Lab, client: Client, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="401"):
        client.enroll(lab.nobody, "ec_prime256v1", tmp_path)


@each_client
def test_foreign_server_is_refused(lab: Lab, client: Client, tmp_path: Path) -> None:
    """The clients do verify the server: what they accept elsewhere says something."""
    other = tmp_path / "other.pem"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc",
            "-keyout", tmp_path / "other.key", "-subj", "/CN=Other", "-out", other)  # fmt: skip
    with pytest.raises(AssertionError, match=r"(?i)certificate|trust"):
        client.enroll(dataclasses.replace(lab.ra, trust=other), "ec_prime256v1", tmp_path)


@each_client
def test_device_renews_itself(lab: Lab, client: Client, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for place in (first, second, third):
        place.mkdir()
    got = client.enroll(lab.basic, "ec_prime256v1", first)
    device = dataclasses.replace(lab.nobody, cert=got.cert, key=got.key)
    check(device, client.enroll(device, "ec_secp384r1", second, renew=True))

    other = dataclasses.replace(device, subject=(("CN", "somebody-else"),))
    with pytest.raises(Refused, match="403"):
        client.enroll(other, "ec_secp384r1", third, renew=True)


@each_client
def test_pending(tmp_path: Path, client: Client) -> None:
    """202 with Retry-After: the clients that can wait come back; curl shows it."""
    place = tmp_path / "device"
    place.mkdir()
    with running(tmp_path / "lab", "--pending", "1s") as lab:
        if client.name == "curl":
            with pytest.raises(Refused, match=r"^202"):
                client.enroll(lab.ra, "ec_prime256v1", place)
        else:
            check(lab.ra, client.enroll(lab.ra, "ec_prime256v1", place))
