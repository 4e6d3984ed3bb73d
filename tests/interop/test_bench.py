"""scripts/bench stays alive: each comparison of keys once. No figure is judged here."""

from __future__ import annotations

import json

import pytest

from tests.bench.keys import as_json, measure, table
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
