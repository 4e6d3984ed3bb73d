"""RSA private keys, good and damaged (rsa/*.json), as OpenSSL would write them into a file."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest

from igelcert import _der as der
from igelcert.crypto import Key
from igelcert.errors import CryptoError
from tests.support.vectors import ROOT, load


def read(values: dict[str, Any]) -> Key:
    """Through a traditional PEM file (RFC 8017 A.1.2): the only way that a key comes in."""
    order = ("n", "e", "d", "p", "q", "dmp1", "dmq1", "iqmp")
    numbers = [der.integer(int(values[name], 16)) for name in order]
    text = base64.encodebytes(der.sequence(der.integer(0), *numbers)).decode()
    fd = os.memfd_create("key")
    try:
        os.write(fd, f"-----BEGIN RSA PRIVATE KEY-----\n{text}-----END RSA PRIVATE KEY-----\n".encode())
        os.lseek(fd, 0, os.SEEK_SET)
        return Key.read(fd)
    finally:
        os.close(fd)


def entries() -> list[str]:
    return (
        [each["why"] for each in load("rsa/key-consistency.json")] if ROOT.is_dir() else ["(no vectors here)"]
    )


@pytest.mark.parametrize("why", entries())
def test_consistency(why: str) -> None:
    values = next(each for each in load("rsa/key-consistency.json") if each["why"] == why)
    if values["ok"]:
        read(values).check()
    else:
        with pytest.raises(CryptoError):
            read(values).check()


@pytest.mark.parametrize("name", ["a1.3", "a1.6"])
def test_keys_of_nist_pass(name: str) -> None:
    checked = 0
    for group in load(f"rsa/acvp-keygen-fips186-5-{name}.json")["testGroups"]:
        for test in group["tests"]:
            read(test).check()
            checked += 1
    assert checked == 3
