"""Vectors of the RSA key generator: NIST's seeds, Miller-Rabin's edge cases, damaged keys, an average key's candidates."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.probe import Probe, number
from tests.support.vectors import load, vector

ORDER = ("n", "e", "d", "p", "q", "dmp1", "dmq1", "iqmp")


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe()


def nist(name: str) -> list[dict[str, Any]]:
    """The tests of a file."""
    groups = load(f"rsa/acvp-keygen-fips186-5-{name}.json")["testGroups"]
    return [test for group in groups for test in group["tests"]]


def test_nist_seeds(probe: Probe) -> None:
    """acvp-keygen-fips186-5-a1.6.json: from xP, xP1, xP2 and e comes p exactly, q likewise, then the key."""
    tests = nist("a1.6")
    assert len(tests) == 3
    for test in tests:
        found = probe.ask(
            *(f"derive 4096 {test['e']} {test[f'x{x}']} {test[f'x{x}1']} {test[f'x{x}2']}" for x in "PQ")
        )
        assert found == [test["p"], test["q"]]
        # the core has the larger prime first; NIST's q may be the larger one
        swapped = int(test["p"], 16) < int(test["q"], 16)
        first, second = ("q", "p") if swapped else ("p", "q")
        ok, n, d, dp, dq, qi = probe.ask(f"fill {test['e']} {test[first]} {test[second]}")[0].split()
        assert ok == "1" and int(n, 16) == int(test["n"], 16) and int(d, 16) == int(test["d"], 16)
        wanted = ("dmq1", "dmp1") if swapped else ("dmp1", "dmq1")
        assert [int(dp, 16), int(dq, 16)] == [int(test[name], 16) for name in wanted]
        if not swapped:
            assert int(qi, 16) == int(test["iqmp"], 16)


def test_nist_keys_are_consistent(probe: Probe) -> None:
    """acvp-keygen-fips186-5-a1.3.json and -a1.6.json: whole keys with a large random e."""
    tests = [*nist("a1.3"), *nist("a1.6")]
    assert len(tests) == 6
    found = probe.ask(*("consistent " + " ".join(test[name] for name in ORDER) for test in tests))
    assert found == ["1"] * 6


def test_consistency(probe: Probe) -> None:
    """key-consistency.json: the test that a new key goes through takes the good and refuses the damaged."""
    tests = load("rsa/key-consistency.json")
    found = probe.ask(*("consistent " + " ".join(test[name] for name in ORDER) for test in tests))
    wrong = [
        test["why"]
        for test, answer in zip(tests, found, strict=True)
        if answer != ("1" if test["ok"] else "0")
    ]
    assert wrong == [] and {test["ok"] for test in tests} == {True, False}


def test_wycheproof_primality(probe: Probe) -> None:
    """primality_test.json: values are two's complement; "acceptable" are negatives of primes."""
    tests = [
        test for group in load("wycheproof/primality_test.json")["testGroups"] for test in group["tests"]
    ]
    assert len(tests) == 317
    values = [int.from_bytes(bytes.fromhex(test["value"]), "big", signed=True) for test in tests]
    found = probe.ask(*(f"prime {number(value)}" for value in values))
    wrong = [
        (test["tcId"], test["comment"])
        for test, value, answer in zip(tests, values, found, strict=True)
        if answer != ("1" if test["result"] == "valid" else "0")
        and not (test["result"] == "acceptable" and value < 0)
    ]
    assert wrong == []


def test_own_primality(probe: Probe) -> None:
    """primality-own.json"""
    tests = load("rsa/primality-own.json")
    found = probe.ask(*(f"prime {test['n']}" for test in tests))
    wrong = [
        test["n"]
        for test, answer in zip(tests, found, strict=True)
        if answer != ("1" if test["prime"] else "0")
    ]
    assert wrong == []


def test_witnesses(probe: Probe) -> None:
    """miller-rabin-witness.txt: BoringSSL's cases of one round with a given base."""
    text = vector("rsa/miller-rabin-witness.txt").decode()
    cases = re.findall(r"^Result = (\w+)\nW = (\w+)\nB = (\w+)$", text, re.MULTILINE)
    assert len(cases) == text.count("\nResult = ") and {case[0] for case in cases} == {
        "Composite",
        "PossiblyPrime",
    }
    found = probe.ask(*(f"base {w} {b}" for _, w, b in cases))
    assert found == ["1" if result == "PossiblyPrime" else "0" for result, _, _ in cases]


def test_candidates_of_an_average_key(probe: Probe) -> None:
    """cctv-keygen-candidates-2048.txt: all composite but the last and one before it."""
    candidates = vector("rsa/cctv-keygen-candidates-2048.txt").decode().split()
    found = probe.ask(*(f"prime {candidate}" for candidate in candidates))
    assert found.count("1") == 2 and found[-1] == "1"
