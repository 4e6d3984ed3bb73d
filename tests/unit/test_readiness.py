"""/readyz: a proxy that cannot write is not ready; what monitoring asks is no news in the log."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from igelcert.errors import StorageError
from igelcert.proxy import admin_routes, database
from igelcert.proxy.app import make_admin_app
from igelcert.proxy.context import Context
from igelcert.proxy.database import Database
from tests.support.postgres import Cluster
from tests.support.stores import Stores


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_routes, "current_version", lambda _context: 1)


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can be written: of a full disk, SQLite sees the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def asked(client: FlaskClient) -> tuple[int, str]:
    answer = client.get("/readyz")
    return answer.status_code, answer.get_data(as_text=True)


def test_a_full_disk(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "igelcert.proxy")
    monkeypatch.setattr(database, "PROBE_SECONDS", 0.0)
    with stores.fresh("sqlite", tmp_path / "data") as context:
        client = make_admin_app(context).test_client()
        assert asked(client) == (200, "ready\n")
        with no_room():
            said = [asked(client) for _ in range(3)]
        assert {status for status, _ in said} == {503} and said[0][1].startswith("not ready: the database")
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        found = [(each.levelname, each.getMessage()) for each in caplog.records]
        assert [level for level, _ in found] == ["WARNING", "INFO"], "each change once, and nothing else"
        assert found[0][1].startswith("not ready: ") and found[1][1] == "ready again"


def test_a_write_that_fails_is_reason_to_look(stores: Stores, tmp_path: Path) -> None:
    """What was seen seconds ago counts only while nothing fails; and a probe writes only now and then."""
    with stores.fresh("sqlite", tmp_path / "data") as context:
        client = make_admin_app(context).test_client()
        assert asked(client)[0] == 200
        with no_room():
            assert asked(client)[0] == 200, "nothing was written"
            with pytest.raises(StorageError), context.db.begin() as connection:
                Database.record(connection, "tests", "test", "")
            assert asked(client)[0] == 503
        assert asked(client)[0] == 200


@pytest.mark.peers
def test_a_database_that_is_read_only(stores: Stores, postgres: Cluster, tmp_path: Path) -> None:
    stores.cluster = postgres
    with stores.fresh("postgresql", tmp_path / "data") as context:
        with context.db.read() as connection:
            name = connection.exec_driver_sql("SELECT current_database()").scalar()
        client = make_admin_app(context).test_client()
        for value, status in (("on", 503), ("off", 200)):
            postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
            context.db.close()
            assert asked(client)[0] == status


def test_who_looks_while_another_does_is_told_what_was_seen_last(context: Context) -> None:
    with context.db._probing:
        context.db.check_writable()
        context.db._trouble = StorageError("it was full")
        with pytest.raises(StorageError, match="it was full"):
            context.db.check_writable()
    context.db.check_writable()
