"""What an enrollment asks of PostgreSQL, by PostgreSQL's own log: each statement is a round trip."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest
from psycopg import sql

from tests.load import fleet
from tests.load.ca import slow_ca
from tests.load.crew import play
from tests.support.postgres import Cluster
from tests.support.proxies import together, use

pytestmark = pytest.mark.peers

ROUNDS = 10
# docs/operations.md lists them
EXPECTED = {
    "SELECT devices": 1,  # who asks
    "SELECT assignments": 1,
    "SELECT renewals": 1,
    "SELECT ca_config": 1,
    "INSERT enrollments": 1,
    "UPDATE slots": 2,  # a place at the CA is taken, and given back by another thread
    "BEGIN": 1,
    "UPDATE enrollments": 1,
    "SELECT renewal_slots": 1,  # with it: that the device is known still, and whether its renewal was asked for
    "INSERT certificates": 1,
    "INSERT audit": 1,
    "COMMIT": 1,
}
# of one that is renewed before its window has begun, which is given back
WITH_WINDOWS = {**EXPECTED, "INSERT renewal_slots": 1, "UPDATE renewal_slots": 1}
# signs of life and the like come every few seconds
_ASIDE = {"INSERT proxies", "DELETE proxies"}
_LINE = re.compile(r"LOG:  (?:execute [^:]*|statement): (\w+)(.*)")


def test_round_trips_of_an_enrollment(postgres: Cluster, tmp_path: Path) -> None:
    """On a connection that is kept, where nothing is asked for the first time; without and with the CA's rate."""
    with slow_ca(tmp_path / "ca", delay=0.0) as ca, together(postgres, tmp_path, 1) as (gate,):
        use(gate, ca)
        devices = fleet.make(gate.data, tmp_path / "fleet", 1)
        play(devices, gate, "kept", count=1, rounds=12, parallel=1)
        (name,) = re.findall(r"/(test_\d+)", (gate.data / "database.url").read_text())
        postgres.sql(sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(sql.Identifier(name)))
        # new connections see it
        end = sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}")
        postgres.sql(end.format(sql.Literal(name)))

        def asked() -> dict[str, int]:
            play(devices, gate, "kept", count=1, rounds=4, parallel=1)
            log = postgres.directory / "log"
            before = len(log.read_text())
            done = play(devices, gate, "kept", count=1, rounds=ROUNDS, parallel=1)
            assert len(done.status(200)) == ROUNDS, (done.errors, done.rows[-3:], gate.log()[-3000:])
            found = _statements(log.read_text()[before:])
            for each in ("BEGIN", "COMMIT"):  # of the signs of life, which are many on a slow machine
                found[each] -= found["INSERT proxies"]
            whole = {what: round(count / ROUNDS) for what, count in found.items() if what not in _ASIDE}
            return {what: count for what, count in whole.items() if count}

        assert asked() == EXPECTED
        use(gate, ca, rate=6_000)
        assert asked() == WITH_WINDOWS


def _statements(log: str) -> collections.Counter[str]:
    """How often each verb and the table that it is about."""
    found: collections.Counter[str] = collections.Counter()
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if (seen := _LINE.search(line)) is None:
            continue
        verb, rest = seen[1], seen[2]
        if verb in {"BEGIN", "COMMIT", "ROLLBACK"}:
            found[verb] += 1
            continue
        if verb == "SELECT":  # SQLAlchemy breaks the line before FROM
            rest = next(part for part in [rest, *lines[number + 1 :]] if "FROM " in part).partition("FROM ")[
                2
            ]
        table = rest.removeprefix(" INTO").removeprefix(" FROM").split()[0]
        found[f"{verb} {table}"] += 1
    return found
