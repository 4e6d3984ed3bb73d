"""est-ca behind nginx, the EST CA that was not written here, does what the proxy's tests rely on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.est_clients import Refused, Target, check, curl_enroll
from tests.support.estca import EstCa, est_ca

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EstCa]:
    with est_ca(tmp_path_factory.mktemp("est-ca")) as started:
        yield started


def target(ca: EstCa, label: str | None) -> Target:
    return Target(
        "localhost", ca.port, trust=ca.front_ca, anchors=ca.ca, label=label, cert=ca.cert, key=ca.key,
        issued_subject=(("CN", ca.user),), issued_sans=(),
    )  # fmt: skip


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("key_type", ["ec_prime256v1", "ec_secp384r1", "ecdsa_ed25519", "rsa_2048"])
def test_enroll(ca: EstCa, key_type: str, labelled: bool, tmp_path: Path) -> None:
    asked = target(ca, ca.label if labelled else None)
    check(asked, curl_enroll(asked, key_type, tmp_path))


def test_key_type_it_does_not_know(ca: EstCa, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^400 .*CSR"):
        curl_enroll(target(ca, None), "ec_brainpoolP256r1", tmp_path)


def test_reenroll(ca: EstCa, tmp_path: Path) -> None:
    asked = dataclasses.replace(target(ca, None), issued_subject=(("CN", ca.client_cn),))
    check(asked, curl_enroll(asked, "ec_prime256v1", tmp_path, renew=True))


def test_unknown_label(ca: EstCa, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^404"):
        curl_enroll(target(ca, "other"), "ec_prime256v1", tmp_path)


def test_without_client_certificate(ca: EstCa, tmp_path: Path) -> None:
    """Credentials of the client's own do not get past nginx."""
    nobody = dataclasses.replace(target(ca, None), cert=None, key=None)
    with pytest.raises(Refused, match=r"^401"):
        curl_enroll(nobody, "ec_prime256v1", tmp_path)
    password = tmp_path / "password"
    password.write_text("guessed")
    with pytest.raises(Refused, match=r"^401"):
        curl_enroll(
            dataclasses.replace(nobody, user=ca.user, password_file=password), "ec_prime256v1", tmp_path
        )
