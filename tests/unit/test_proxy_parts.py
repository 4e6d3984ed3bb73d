"""Parts of the proxy by themselves: configuration, secrets, the record of enrollments, CA certificates."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from igelcert.codec import pkcs10
from igelcert.crypto import Key
from igelcert.errors import CheckError, SettingsError, StorageError, TransportError
from igelcert.model import CsrSpec, Subject
from igelcert.proxy import (
    cacerts,
    changes,
    devices,
    enrollment_log,
    enrollments,
    leases,
    merging,
    profiles,
    rollover,
)
from igelcert.proxy.context import Context
from igelcert.proxy.database import Database
from igelcert.proxy.initialise import initialise
from igelcert.proxy.schema import enrollments as enrollment_table
from igelcert.proxy.secrets import Sealer, make_master_key


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("proxy") / "data"
    initialise(place, ["localhost"], "127.0.0.1:0", "127.0.0.1:0")
    return place


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("unknown = 1", "unknown: is not a known key"),
        ("threads = 0", "threads: is not a number from 1 to 512"),
        ("threads = true", "threads"),
        ("waiting = -1", "waiting: is not a number from 0 to 100000"),
        ('trusted_frontends = ["here"]', "neither an address nor a network"),
        ('trusted_frontends = "127.0.0.1"', "is not a list"),
        ("= 3", "not TOML"),
    ],
)
def test_configuration(data: Path, tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "proxy.toml").write_text((data / "proxy.toml").read_text() + line + "\n")
    with pytest.raises(SettingsError, match=sentence):
        Context(tmp_path)


@pytest.mark.parametrize(
    ("lines", "threads"),
    [
        ("", 16),
        ("upstream_parallel = 8", 16),
        ("upstream_parallel = 20", 40),
        ("upstream_parallel = 20\nthreads = 3", 3),
    ],
)
def test_threads_that_a_ca_which_stalls_does_not_hold(tmp_path: Path, lines: str, threads: int) -> None:
    (tmp_path / "proxy.toml").write_text(lines + "\n")
    assert Context(tmp_path).config.threads == threads


@pytest.mark.parametrize(
    ("lines", "processors", "processes"),
    [
        ("", 1, 1),
        ("", 2, 2),
        ("", 64, 4),
        ("processes = 1", 8, 1),
        ("processes = 12\nupstream_parallel = 30", 2, 12),
        ("upstream_parallel = 3", 8, 3),
        ("processes = 5\nupstream_parallel = 1", 8, 1),
    ],
)
def test_each_process_has_its_part_of_the_places_at_the_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, processors: int, processes: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    (tmp_path / "proxy.toml").write_text(lines + "\n")
    config = Context(tmp_path).config
    assert config.in_processes() == processes
    shares = [
        Context(tmp_path, (number, processes)).share(config.upstream_parallel) for number in range(processes)
    ]
    assert sum(shares) == config.upstream_parallel and min(shares) >= 1 and max(shares) - min(shares) <= 1


def test_in_a_view_what_is_the_same_for_all_is_read_once(context: Context) -> None:
    asked: list[str] = []

    @sa.event.listens_for(context.db.engine, "before_cursor_execute")
    def _(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        asked.append(statement)

    directory = devices.Device("V1", "/View/A", "v1", False, (), "registered", 1, 1, 1)
    beside = devices.Device("V2", "/View/A", "v2", False, (), "registered", 1, 1, 1)
    profiles.store(context, "view", json.dumps({"certs": [{"friendly_name": "in view"}]}).encode())
    profiles.assign(context, "view", directory="/View")

    def names(device: devices.Device) -> list[str]:
        return [cert.friendly_name for cert in merging.effective(context, device).certs]

    try:
        with changes.view(context):
            assert names(directory) == ["in view"]
            asked.clear()
            assert names(beside) == ["in view"]
            assert not any("SELECT" in statement for statement in asked), asked
        asked.clear()
        assert names(beside) == ["in view"]
        assert any("SELECT" in statement for statement in asked), "outside all is read anew"
        # what a device has for itself is not seen at others
        profiles.store(context, "own", json.dumps({"certs": [{"friendly_name": "its own"}]}).encode())
        devices.add(context, "V1", "/View/A")
        profiles.assign(context, "own", device="V1")
        with changes.view(context):
            assert names(beside) == ["in view"]
            assert names(directory) == ["its own", "in view"]
            assert names(beside) == ["in view"]
    finally:
        sa.event.remove(context.db.engine, "before_cursor_execute", _)


def test_a_change_during_a_view_is_not_lost(context: Context) -> None:
    """Who waits on does so from before it, whatever was read first."""
    with changes.view(context):
        before = rollover.standing(context)
        rollover.roll(context)
        assert rollover.standing(context) == before, "as old as the view"
        seen = changes.newest(context)
    assert [change.id for change in changes.since(context, seen)], "it is told to who waits"
    assert rollover.standing(context) != before


def test_secrets_stay_where_they_were_sealed(context: Context, tmp_path: Path) -> None:
    sealer = context.sealer
    with context.db.begin() as connection:
        sealed, again = (sealer.seal(connection, b"secret", "profiles/a") for _ in range(2))
    assert b"secret" not in sealed and again != sealed
    assert sealer.unseal(sealed, "profiles/a") == b"secret"
    for place, octets in (
        ("profiles/b", sealed),
        ("profiles/a", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        ("profiles/a", b""),
    ):
        with pytest.raises(CheckError):
            sealer.unseal(octets, place)
    assert "secret" not in repr(sealer)
    make_master_key(tmp_path / "key")
    with pytest.raises(StorageError):
        make_master_key(tmp_path / "key")
    with pytest.raises(CheckError, match="does not open"):
        Sealer.open(tmp_path / "key").unseal(sealed, "profiles/a")


def test_the_schema_is_what_the_migrations_make(empty: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from igelcert.proxy.schema import metadata

    db = empty
    with pytest.raises(StorageError, match="empty"):
        db.check()
    db.migrate()
    db.migrate()
    db.check()
    with db.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def ask(name: str) -> enrollments.Ask:
    key = Key.generate("ec_prime256v1")
    csr = pkcs10.parse(pkcs10.build(CsrSpec("ec_prime256v1", Subject(cn=name)), key))
    return enrollments.Ask("UNIT", "lan", csr, "simpleenroll")


def later(context: Context, seconds: int) -> None:
    """So much time passes for all that is on record: its own clock says what time it is."""
    column = enrollment_table.c
    with context.db.begin() as connection:
        connection.execute(
            enrollment_table.update().values(
                updated=column.updated - seconds, retry_at=column.retry_at - seconds
            )
        )


def claimed(context: Context, it: enrollments.Ask, version: int = 1) -> enrollments.Ticket:
    ticket = enrollments.claim(context, it, version)
    assert isinstance(ticket, enrollments.Ticket)
    return ticket


def test_a_request_is_claimed_once(context: Context) -> None:
    mine = ask("once")
    first = claimed(context, mine)
    row = enrollments.claim(context, mine, 1)
    assert not isinstance(row, enrollments.Ticket) and row.state == "running"
    # it hangs: after the longest time that a request can take somebody else goes on
    longest = context.config.upstream_wait + 6 * context.config.upstream_timeout + enrollments.STALE_MARGIN
    later(context, longest - 8)
    assert not isinstance(enrollments.claim(context, mine, 1), enrollments.Ticket)
    later(context, 10)
    second = claimed(context, mine)
    # what the first brings counts no more, and it sends nothing
    with pytest.raises(enrollments.Lost):
        first.keep("x")
    enrollments.finish(context, first, "failed", "late")
    row = enrollments.claim(context, mine, 1)
    assert row.state == "running" and row.claim == second.token


def test_a_request_of_a_process_that_died_is_taken_up_when_the_ca_has_ended_it(context: Context) -> None:
    if context.db.shared:
        pytest.skip("PostgreSQL has leases: tests/integration/test_proxies.py")
    living = {1}

    def serving(number: int) -> None:
        context.lives = SimpleNamespace(own=number, has=living.__contains__)  # type: ignore[assignment]

    mine = ask("died")
    serving(1)
    claimed(context, mine)
    serving(2)
    living.add(2)
    surely = context.config.upstream_timeout + leases.MARGIN
    later(context, surely + 2)
    row = enrollments.claim(context, mine, 1)
    assert not isinstance(row, enrollments.Ticket) and row.state == "running", (
        "it lives, whatever became of the rest"
    )
    living.discard(1)
    ticket = claimed(context, mine)
    living.discard(2)
    serving(3)
    later(context, surely - 6)
    row = enrollments.claim(context, mine, 1)
    assert not isinstance(row, enrollments.Ticket) and row.claim == ticket.token, (
        "the CA may still work for it"
    )
    later(context, 8)
    assert claimed(context, mine).token != ticket.token


def test_a_pending_request_waits_until_its_time(context: Context) -> None:
    mine = ask("pending")
    enrollments.finish(context, claimed(context, mine), "pending", "later", retry_in=100)
    row = enrollments.claim(context, mine, 1)
    assert not isinstance(row, enrollments.Ticket) and row.state == "pending"
    assert 60 <= row.retry_at - row.clock <= 100
    ticket = claimed(context, mine, 2)  # another CA is another question
    enrollments.finish(context, ticket, "pending", "later", retry_in=100)
    later(context, 101)
    claimed(context, mine, 2)


def test_what_an_upstream_keeps_of_a_request_comes_back(context: Context) -> None:
    mine, other = ask("kept"), ask("other")
    ticket = claimed(context, mine)
    assert ticket.value == ""
    ticket.keep("first")
    enrollments.finish(context, ticket, "failed", "the line went dead")
    again = claimed(context, mine)
    assert again.value == "first"
    # another CA knows nothing of it, and after a refusal the next request is a new one
    enrollments.finish(context, again, "failed", "the line went dead")
    assert claimed(context, mine, 2).value == ""
    ticket = claimed(context, other, 2)
    ticket.keep("second")
    enrollments.finish(context, ticket, "refused", "no")
    assert claimed(context, other, 2).value == ""


def test_refusals_do_not_fill_the_disk(context: Context) -> None:
    for number in range(enrollments.KEPT_REFUSALS + 10):
        enrollments.refuse(context, ask(f"no-{number}"), "refused", "no")
    rows = enrollment_log.search(context, state="refused", limit=0).items
    assert len(rows) == enrollments.KEPT_REFUSALS
    assert rows[0].subject == f"CN=no-{enrollments.KEPT_REFUSALS + 9}"


class Ca:
    """An upstream whose CA certificates are given, or which is away."""

    class config:
        version = 77

    def __init__(self) -> None:
        self.certs: list[bytes] | None = None
        self.asked = 0

    def cacerts(self) -> list[bytes]:
        self.asked += 1
        if self.certs is None:
            raise TransportError("away", link="tcp")
        return self.certs


def test_ca_certificates_outlive_their_ca(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = Ca()
    with pytest.raises(TransportError):
        cacerts.fresh(context, ca)  # type: ignore[arg-type]
    ca.certs = [b"one", b"two"]
    before = cacerts.trust_version(context)
    assert sorted(cacerts.fresh(context, ca)) == [b"one", b"two"]  # type: ignore[arg-type]
    assert cacerts.trust_version(context) == before + 1
    assert sorted(cacerts.fresh(context, ca)) == [b"one", b"two"] and ca.asked == 2  # type: ignore[arg-type]
    now = cacerts.now()
    monkeypatch.setattr(cacerts, "now", lambda: now + cacerts.FRESH_SECONDS + 1)
    ca.certs = None
    assert sorted(cacerts.fresh(context, ca)) == [b"one", b"two"] and ca.asked == 3  # type: ignore[arg-type]
    with pytest.raises(TransportError):
        cacerts.fresh(context, ca, anew=True)  # type: ignore[arg-type]
    # the CA rolled over: the new one counts, the old one stays as trust of renewals
    ca.certs = [b"three"]
    assert cacerts.fresh(context, ca) == [b"three"]  # type: ignore[arg-type]
    assert {b"one", b"two", b"three"} <= set(cacerts.ever_known(context))
    assert cacerts.trust_version(context) == before + 2


def test_certificates_of_one_answer_are_known_together(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many seconds pass while they are noted."""
    ticks = iter(range(1_800_000_000, 1_800_001_000))
    monkeypatch.setattr(cacerts, "now", lambda: next(ticks))
    cacerts.remember(context, 77, [b"root", b"intermediate"])
    assert sorted(cacerts.known(context, 77)[0]) == [b"intermediate", b"root"]
