"""Path validation: NIST PKITS and server chains as an EST client meets them (path/*.json)."""

from __future__ import annotations

import base64
import calendar
import time
from typing import Any

import pytest

from igelcert import crypto
from igelcert.errors import CryptoError
from tests.support.vectors import ROOT, load


def names(file: str, key: str) -> list[str]:
    if not ROOT.is_dir():
        return ["(no vectors here)"]
    return [each[key] for each in load(file)["cases"]]


def case(file: str, key: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in load(file)["cases"] if each[key] == name)
    return found


def seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def valid(*args: Any, **more: Any) -> bool:
    start = time.process_time()
    try:
        chain = crypto.verify_chain(*args, **more)
    except CryptoError as err:
        assert err.code in {"CHAIN", "PARSE", "LIMIT"} and err.reasons
        return False
    finally:
        assert time.process_time() - start < 2
    assert chain[0] == args[0]
    return True


@pytest.mark.parametrize("name", names("path/pkits.json", "case"))
def test_pkits(name: str) -> None:
    about = case("path/pkits.json", "case", name)
    at = seconds(load("path/pkits.json")["at"])
    certs = load("path/pkits-certs.json")
    anchor, *between = [base64.b64decode(certs[each]) for each in about["chain"]]
    assert valid(between[-1], between[:-1], [anchor], at) == about["valid"], about["title"]


@pytest.mark.parametrize("name", names("path/tls-server-chains.json", "id"))
def test_server_chain(name: str) -> None:
    about = case("path/tls-server-chains.json", "id", name)
    leaf, *_ = [base64.b64decode(about["leaf"])]
    pool = [base64.b64decode(each) for each in about["untrusted"]]
    anchors = [base64.b64decode(each) for each in about["trusted"]]
    found = valid(leaf, pool, anchors, seconds(about["time"]), purpose="server", host=about["host"])
    if about["valid"] is not None:
        assert found == about["valid"], about["why"]
    # with partial chains allowed nothing becomes valid but what was pinned
    partial = valid(
        leaf, pool, anchors, seconds(about["time"]), purpose="server", host=about["host"], partial=True
    )
    if name == "pinned-leaf-not-root":
        assert partial and not found
    elif about["valid"] is False:
        assert not partial
