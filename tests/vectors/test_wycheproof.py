"""Wycheproof: signatures that must and must not verify (wycheproof/*_test.json)."""

from __future__ import annotations

import pytest

from igelcert import _der as der
from igelcert import crypto
from igelcert.errors import CryptoError
from tests.support.vectors import load

ALGORITHMS = {
    "ecdsa_secp256r1_sha256": "1.2.840.10045.4.3.2",
    "ecdsa_secp256k1_sha256": "1.2.840.10045.4.3.2",
    "ecdsa_brainpoolP256r1_sha256": "1.2.840.10045.4.3.2",
    "ecdsa_secp384r1_sha384": "1.2.840.10045.4.3.3",
    "ecdsa_secp521r1_sha512": "1.2.840.10045.4.3.4",
    "ed25519": "1.3.101.112",
    "ed448": "1.3.101.113",
    "rsa_signature_2048_sha256": "1.2.840.113549.1.1.11",
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_signatures(name: str) -> None:
    document = load(f"wycheproof/{name}_test.json")
    null = (der.null(),) if name.startswith("rsa") else ()
    algorithm = der.sequence(der.oid(ALGORITHMS[name]), *null)
    wrong, seen = [], 0
    for group in document["testGroups"]:
        spki = bytes.fromhex(group["publicKeyDer"])
        for test in group["tests"]:
            seen += 1
            try:
                crypto.verify(spki, algorithm, bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]))
                found = "valid"
            except CryptoError:
                found = "invalid"
            if test["result"] != "acceptable" and found != test["result"]:
                wrong.append((test["tcId"], test["result"], test["comment"]))
    assert wrong == []
    assert seen == document["numberOfTests"]
