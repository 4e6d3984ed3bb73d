"""The proxy on PostgreSQL: made, joined, copied to, migrated; its URL stays with it; what it says without its database."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from igelcert.proxy import devices, enrollments, merging, profiles, schema
from igelcert.proxy.context import Context
from tests.support.chain import LabCa, ok, proxy, run
from tests.support.postgres import PASSWORD, Cluster
from tests.support.stores import Stores

pytestmark = pytest.mark.peers

CERT = {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}, "subject": {"auto_cn": "hostname"}}


@pytest.fixture
def name(postgres: Cluster) -> Iterator[str]:
    """Of an empty database."""
    made = postgres.create()
    yield made
    postgres.drop(made)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


def init(data: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return run("ca-proxy", "init", "--data", data, "--hostname", "localhost", *args)


def test_a_certificate_through_two_proxies(
    lab: LabCa, postgres: Cluster, name: str, secret: Path, tmp_path: Path
) -> None:
    """Made with a password from a file, joined with the master key, served at both: one knows what the other does."""
    url, one, two = postgres.url(name, tcp=True), tmp_path / "one", tmp_path / "two"
    more = ("--database", url, "--database-password-file", secret)
    assert init(one, *more).returncode == 0
    assert (one / "database.url").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in one.iterdir()) == [
        "database.url",
        "master.key",
        "proxy.toml",
        "trust.pem",
    ]
    ok("ca-proxy", "join", "--data", two, "--master-key", one / "master.key", *more)
    assert (one / "trust.pem").read_bytes() == (two / "trust.pem").read_bytes()
    assert (two / "master.key").stat().st_mode & 0o777 == 0o600
    with proxy(one) as first, proxy(two) as second:
        first.use(lab)
        first.profile("lan", CERT, directory="/")
        device = second.device(tmp_path / "root", "PG1", "tc-pg1")
        device.sync()
        assert (device.certs / "lan/cert.pem").exists()
        (row,) = first.enrollments()
        assert (row["unit_id"], row["state"]) == ("PG1", "issued")
        for pid in (json.loads((place / "run.json").read_text())["pid"] for place in (one, two)):
            for process in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
                assert PASSWORD.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
        second.cli("device", "remove", "--unit-id", "PG1")
        assert first.ask("GET", "/rmagent/settings", client=device)[0] == 403
    assert PASSWORD not in (tmp_path / "proxy.log").read_text()


def test_a_password_in_the_url_is_not_taken(postgres: Cluster, name: str, tmp_path: Path) -> None:
    for url in (
        f"postgresql://tests:hunter2@127.0.0.1:{postgres.port}/{name}",
        f"postgresql://tests@127.0.0.1:{postgres.port}/{name}?password=hunter2",
    ):
        done = init(tmp_path / "data", "--database", url)
        assert done.returncode == 78 and "--database-password-file" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://x/y", "is not a URL of PostgreSQL"),
        ("postgresql://x@[h/hunter2", "cannot be read as a URL"),
        ("postgresql://x@h", "names no database"),
    ],
)
def test_what_is_no_url(tmp_path: Path, url: str, sentence: str) -> None:
    done = init(tmp_path / "data", "--database", url)
    assert done.returncode == 78 and sentence in done.stderr and "hunter2" not in done.stderr


def test_a_wrong_password_and_a_server_that_is_away(postgres: Cluster, name: str, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("hunter2\n")
    for url, sentence, code in (
        (postgres.url(name, tcp=True), "password authentication failed", 1),
        (postgres.url("nowhere"), 'database "nowhere" does not exist', 1),
        ("postgresql://x@127.0.0.1:1/x", "Connection refused", 75),
    ):
        done = init(tmp_path / "data", "--database", url, "--database-password-file", tmp_path / "wrong")
        assert done.returncode == code and sentence in done.stderr and "Traceback" not in done.stderr
        assert "hunter2" not in done.stderr and not (tmp_path / "data").exists()
        assert list(tmp_path.glob(".data.*")) == []


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding(postgres: Cluster, tmp_path: Path, encoding: str) -> None:
    name = f"of_{encoding.lower()}"
    postgres.sql(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        done = init(tmp_path / "data", "--database", postgres.url(name))
    finally:
        postgres.drop(name)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2, done.stderr
    assert f"the encoding of the database is {encoding}: it must be UTF8" in done.stderr
    assert "createdb --encoding=UTF8 --template=template0" in done.stderr and not (tmp_path / "data").exists()


def test_commands_while_the_database_is_away(postgres: Cluster, name: str, tmp_path: Path) -> None:
    """They end with 75: another try is worth it."""
    data = tmp_path / "data"
    assert init(data, "--database", postgres.url(name)).returncode == 0
    (data / "database.url").write_text("postgresql://x@127.0.0.1:1/x\n")
    for words in (
        ["device", "list"],
        ["backup", tmp_path / "b.tar", "--without-key"],
        ["rekey"],
        ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        ["audit", "--lines", "--follow"],
    ):
        done = run("ca-proxy", *words, "--data", data)
        assert done.returncode == 75 and "cannot be used now" in done.stderr, words
        assert "Traceback" not in done.stderr and not (tmp_path / "b.tar").exists()


def test_libpq_finds_the_password_by_itself(postgres: Cluster, name: str, tmp_path: Path) -> None:
    (tmp_path / "pgpass").write_text(f"127.0.0.1:{postgres.port}:*:tests:{PASSWORD}\n")
    (tmp_path / "pgpass").chmod(0o600)
    env = {"PGPASSFILE": str(tmp_path / "pgpass")}
    url = postgres.url(name, tcp=True)
    ok("ca-proxy", "init", "--data", tmp_path / "data", "--hostname", "localhost", "--database", url, env=env)
    assert "password" not in (tmp_path / "data/database.url").read_text()
    ok("ca-proxy", "device", "list", "--data", tmp_path / "data", env=env)
    (tmp_path / "data/database.url").chmod(0o644)
    done = run("ca-proxy", "device", "list", "--data", tmp_path / "data", env=env)
    assert done.returncode == 1 and "is open to others" in done.stderr


def test_a_database_in_use_is_left_alone(postgres: Cluster, name: str, tmp_path: Path) -> None:
    postgres.sql("CREATE TABLE theirs (x int)", name)
    done = init(tmp_path / "data", "--database", postgres.url(name))
    assert done.returncode == 1 and "is not empty" in done.stderr and "ca-proxy join" in done.stderr
    tables = "SELECT relname FROM pg_stat_user_tables"
    assert postgres.sql(tables, name) == [("theirs",)] and not (tmp_path / "data").exists()


def test_only_with_the_master_key_does_a_proxy_join(
    stores: Stores, postgres: Cluster, tmp_path: Path
) -> None:
    stores.cluster = postgres
    with stores.fresh("postgresql", tmp_path / "one") as first, stores.fresh("sqlite", tmp_path / "other"):
        url = first.db.url
        args = ("ca-proxy", "join", "--data", tmp_path / "two", "--database", url, "--master-key")
        done = run(*args, tmp_path / "other/master.key")
        assert done.returncode == 1 and "does not open with this master key" in done.stderr
        assert not (tmp_path / "two").exists()
        ok(*args, tmp_path / "one/master.key", "--hostname", "two.example")
        assert Context.open(tmp_path / "two").config.hostnames == ("two.example",)
        # an empty database has nothing to join
        empty = postgres.url(postgres.create())
        done = run(
            *args[:4], tmp_path / "three", *args[4:5], empty, "--master-key", tmp_path / "one/master.key"
        )
        assert done.returncode != 0 and not (tmp_path / "three").exists()


def test_migrating(postgres: Cluster, stores: Stores, tmp_path: Path) -> None:
    stores.cluster = postgres
    with stores.fresh("postgresql", tmp_path / "data") as context:
        with context.db.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
        done = run("ca-proxy", "device", "list", "--data", tmp_path / "data")
        assert done.returncode == 1 and "run: ca-proxy migrate" in done.stderr
        with context.db.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :it"), {"it": schema.HEAD})
        ok("ca-proxy", "migrate", "--data", tmp_path / "data")


# ---- copying ------------------------------------------------------------------------------------


@pytest.fixture
def full(stores: Stores, tmp_path: Path) -> Iterator[Context]:
    """An embedded database with something in most tables."""
    with stores.fresh("sqlite", tmp_path / "embedded") as context:
        rows = "\n".join(f"U{index},/d{index % 7},host-{index}" for index in range(2500))
        devices.import_csv(context, "unit_id,directory,hostname\n" + rows)
        profiles.store(context, "Büro ☂", json.dumps({"certs": [CERT]}).encode())
        profiles.assign(context, "Büro ☂", directory="/d1")
        columns = enrollments.enrollments.c
        with context.db.begin() as connection:
            connection.execute(
                enrollments.enrollments.insert(),
                [
                    {
                        **{column.name: "" for column in columns if column.name not in {"id", "retry_at"}},
                        **{"unit_id": f"U{index}", "csr_sha256": str(index), "state": "issued"},
                        **dict.fromkeys(
                            ("config_version", "not_before", "not_after", "created", "updated"), index
                        ),
                        **{"certificate": bytes([index % 256, 0, 255])},
                    }
                    for index in range(1200)
                ],
            )
        yield context


def test_a_copy_is_the_whole(
    full: Context, postgres: Cluster, name: str, secret: Path, tmp_path: Path
) -> None:
    url = postgres.url(name, tcp=True)
    args = ("ca-proxy", "copy", "--data", full.data, "--to", url, "--to-password-file", secret)
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert "devices: 2500 of 2500" in done.stderr and "1000 of 1200" not in done.stderr  # no terminal
    assert "rows are in" in done.stdout and PASSWORD not in done.stdout + done.stderr
    two = tmp_path / "two"
    ok(
        "ca-proxy", "join", "--data", two, "--master-key", full.data / "master.key", "--database", url,
        "--database-password-file", secret,
    )  # fmt: skip
    there = Context.open(two)
    for table in schema.metadata.sorted_tables:
        with full.db.read() as old, there.db.read() as new:
            theirs, mine = (each.execute(table.select()).all() for each in (new, old))
        more = {"audit": 2, "meta": 0}.get(table.name, 0)  # the copy, and who joined
        assert len(theirs) == len(mine) + more and set(mine) <= set(theirs), table.name
    # secrets open, and what counts by itself counts on
    device = devices.get(there, "U1")
    assert device is not None
    assert [cert.friendly_name for cert in merging.effective(there, device).certs] == ["lan"]
    devices.add(there, "NEW")
    again = run(*args)
    assert again.returncode == 1 and "is not empty" in again.stderr
    there.db.close()


def test_a_copy_that_fails_leaves_nothing(
    full: Context, postgres: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that arrives otherwise than it was is found, and the other database is as it was before."""
    from igelcert.proxy import copying

    url = postgres.url(name)
    compare = copying._compare

    def meddle(new: object, table: object, rows: list[dict[str, object]]) -> None:
        if table is schema.enrollments:
            new.execute(schema.enrollments.update().where(schema.enrollments.c.id == 1150).values(reason="x"))  # type: ignore[attr-defined]
        compare(new, table, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "_compare", meddle)
    with pytest.raises(copying.StorageError, match="a row of enrollments did not arrive as it was: 1150"):
        list(copying.copy(full, url))
    assert postgres.sql("SELECT count(*) FROM pg_stat_user_tables", name) == [(0,)]
    monkeypatch.undo()
    for _ in copying.copy(full, url):
        assert postgres.sql("SELECT count(*) FROM pg_stat_user_tables", name) == [(0,)], "before all is there"
        break
    assert postgres.sql("SELECT count(*) FROM pg_stat_user_tables", name) == [(0,)]


def test_no_copy_beside_a_running_proxy(full: Context, postgres: Cluster, name: str) -> None:
    (full.data / "run.json").write_text(json.dumps({"pid": os.getpid()}))
    done = run("ca-proxy", "copy", "--data", full.data, "--to", postgres.url(name))
    assert done.returncode == 1 and "stop it first" in done.stderr
    assert postgres.sql("SELECT count(*) FROM pg_stat_user_tables", name) == [(0,)]
