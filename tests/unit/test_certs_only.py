"""Certificates out of an answer: the short way reads what libcrypto reads, and takes nothing else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization

from igelcert import _der as der
from igelcert import crypto
from igelcert.codec import cms
from tests.support.badca import make_ca

CERTS = [make_ca(f"CA {number}")[1].public_bytes(serialization.Encoding.DER) for number in range(3)]


@pytest.mark.parametrize("count", range(4))
def test_the_short_way_is_the_long_way(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    message = cms.certs_only(CERTS[:count])
    long = crypto.cms_certificates(message)
    monkeypatch.setattr(crypto, "cms_certificates", None)
    assert cms.read_certs_only(message) == long and sorted(long) == sorted(CERTS[:count])


def test_what_is_more_than_certificates_goes_the_long_way() -> None:
    plain = cms.certs_only(CERTS[:1])
    signed = plain.replace(
        b"\x31\x00\x30", b"\x31\x02\x05\x00\x30", 1
    )  # a digest is named; lengths no longer fit
    for message in (signed, plain + b"\0", plain[:-1], b"", b"\x30\x80" + plain[4:] + b"\0\0"):
        with pytest.raises(der.DerError):
            cms._plain(message)
