"""Keystores of OpenSSL, keytool, pyca and of this set: keystores/*.p12."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from igelcert import crypto
from igelcert.errors import CryptoError, SettingsError
from igelcert.proxy.keystore import open_keystore
from tests.support.vectors import ROOT, cases, index, load, vector

AT = 1_796_000_000
# What our sentence must name, where the keystore must or may be refused.
REFUSED = {
    "no-key.p12": "private key",
    "two-keys.p12": "key",
    "wrong-password.p12": "password does not open",
    "key-password-differs.p12": "key has",
    "key-cert-mismatch.p12": "belong",
    "mac-broken.p12": "",
    "truncated.p12": "",
    "is-a-pem.p12": "PEM",
    "is-a-jks.p12": "JKS",
    "iter-huge.p12": "iterations",
    "pyca-cert-aes256cbc-no-key.p12": "key",
    "pyca-java-truststore.p12": "key",
    "pyca-no-cert-key-aes256cbc.p12": "certificate",
}
# Not fit to be the proxy's keystore for a reason of their own.
NOT_FOR_US = {"expired.p12": "has expired", "no-chain.p12": "nothing to trust the server by"}


def entry(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in load("keystores/keystores.json") if each["file"] == name)
    return found


@pytest.mark.parametrize("name", cases("keystores", r".*\.p12"))
def test_keystore(name: str) -> None:
    data = vector(f"keystores/{name}")
    about = entry(name)
    password = about["password"] or ""
    start = time.process_time()
    outcome = index()["keystores"][name]
    if about["expect"].startswith("opens") and "refuse as RA keystore" not in outcome:
        _opens(name, data, password, about)
    elif name in REFUSED or "refuse as RA keystore" in outcome:
        with pytest.raises(SettingsError) as caught:
            open_keystore(data, password, AT)
        assert REFUSED.get(name, "key") in str(caught.value)
        assert "\n" not in str(caught.value) and (not password or password not in str(caught.value))
    else:
        assert name in {"nomac.p12", "trailing-bytes.p12"}
        assert open_keystore(data, password, AT).warnings, "opened, and it says what is odd"
    assert time.process_time() - start < 5


def _opens(name: str, data: bytes, password: str, about: dict[str, Any]) -> None:
    store = crypto.read_pfx(data, password.encode())
    assert store.key is not None and store.cert is not None
    store.key.check()
    cert = crypto.parse_certificate(store.cert)
    assert cert.spki == store.key.spki()
    # the same as `cryptography` finds, where it can read it
    try:
        _, theirs, others = pkcs12.load_key_and_certificates(data, password.encode())
    except ValueError:
        pass
    else:
        assert theirs is not None and theirs.public_bytes(Encoding.DER) == store.cert
        mine = {bytes(each) for each in (*store.chain, *store.trusted)}
        assert {each.public_bytes(Encoding.DER) for each in others} <= mine
    if found := re.search(r"chain of (\d)", about["holds"]):
        assert len(store.chain) == int(found[1])
    web = x509.load_pem_x509_certificate(vector("keystores/est-server-web.crt.pem")).public_bytes(
        Encoding.DER
    )
    if "est.example.test" in about["expect"] or "trusted entry" in about["expect"]:
        assert store.trusted == [web]
    elif name.startswith(("openssl3-", "keytool-")):
        assert web not in store.trusted and web not in store.chain
    for wrong in ("", "Changeit", password + " "):
        if wrong != password:
            try:
                crypto.read_pfx(data, wrong.encode())
            except CryptoError as err:
                assert err.code in {"PASSWORD", "INTEGRITY", "PARSE", "KEYPASSWORD"}
            else:
                # nothing encrypted and no MAC, or one that an empty password opens as well
                assert name in {"plain.p12", "nomac.p12", "pyca-cert-none-key-none.p12"} or "no-pwd" in name
    if name in NOT_FOR_US:
        with pytest.raises(SettingsError, match=NOT_FOR_US[name]):
            open_keystore(data, password, AT)
    elif name == "not-yet-valid.p12":
        assert any("not valid yet" in warning for warning in open_keystore(data, password, AT).warnings)


def test_every_keystore_is_tried() -> None:
    vector("keystores/keystores.json")
    files = {path.name for path in (ROOT / "keystores").glob("*.p12")}
    assert (
        files
        == {each["file"] for each in load("keystores/keystores.json")}
        == set(cases("keystores", r".*\.p12"))
    )
