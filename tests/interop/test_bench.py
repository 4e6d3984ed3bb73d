"""scripts/bench stays alive: each comparison of keys, each load test once, small. No time is judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.keys import as_json, measure, table
from tests.load import scenarios
from tests.load.shared import shared
from tests.support.peers import peer

KINDS = ("rsa_2048", "ec_prime256v1", "ecdsa_ed25519")


@pytest.mark.peers
def test_keys_once() -> None:
    for name in ("keygen-go", "keygen-awslc", "keygen-ec"):
        peer(name)
    rows = measure(quick=True, kinds=KINDS)
    peers = {row.peer for row in rows if row.kind == "rsa_2048"}
    assert peers == {"openssl genpkey", "cryptography", "keygen-go", "keygen-awslc"}
    assert [row.kind for row in rows if row.peer == "libcrypto from C"] == list(KINDS[1:])
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)
    assert len(json.loads(as_json(rows))["keys"]) == len(rows) == len(table(rows).splitlines()) - 4


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("name", [*scenarios.SCENARIOS, "shared"])
def test_load_once(name: str, tmp_path: Path) -> None:
    if name == "overhead":
        peer("nginx")
    rows = {**scenarios.SCENARIOS, "shared": shared}[name](tmp_path, scenarios.QUICK)
    assert (
        len(json.loads(scenarios.as_json(rows))["load"])
        == len(rows)
        == len(scenarios.table(rows).splitlines()) - 2
    )
    # what is no time holds in small, too
    judged = [row for row in rows if row.what.startswith(("devices", "most requests", "questions earlier"))]
    assert all(row.met for row in judged), judged
    if name == "storm":
        assert (
            len(judged) == 3
            and next(row for row in rows if row.what.startswith("requests to the CA")).ours > 0
        )
