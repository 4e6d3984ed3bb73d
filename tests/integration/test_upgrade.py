"""A database of an older schema with 100 000 devices: the proxy does not start on it, and says what brings it up."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config

import igelcert.proxy
from igelcert.proxy import devices, schema
from igelcert.proxy.context import Context
from igelcert.proxy.database import Database
from tests.support.chain import command, run
from tests.support.postgres import Cluster
from tests.support.stores import Stores

COUNT = 100_000
OLD = "0004"
SECONDS = 120  # far more than it takes: a migration that goes through rows one by one does not get there
MEMORY = 160 << 20  # octets: of the program, and not of the database


def old_store(stores: Stores, engine: str, cluster: Cluster | None, place: Path) -> str:
    """A proxy's data directory whose database is of the older schema, with rows; its URL."""
    stores.cluster = cluster
    shutil.copytree(stores._blank(engine), place)
    if engine == "sqlite":
        url = f"sqlite:///{place}/proxy.db"
        (place / "proxy.db").unlink()
    else:
        assert cluster is not None
        url = cluster.url(cluster.create())
        (place / "database.url").write_text(url)
    db = Database(url)
    config = Config()
    config.set_main_option("script_location", str(Path(igelcert.proxy.__file__).parent / "migrations"))
    with db.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, OLD)
        values = {"octets": bytes(700), "moment": MOMENT, "end": 2 * MOMENT}
        for statement in ROWS:
            query = sa.text(f"WITH RECURSIVE row(n) AS ({NUMBERS}) {statement}")
            connection.execute(query, {key: values[key] for key in query._bindparams})
        for key, value in _management_ca(stores, engine).items():
            connection.execute(schema.meta.insert().values(key=key, value=value))
    db.close()
    return url


def _management_ca(stores: Stores, engine: str) -> dict[str, str]:
    """As it was kept then."""
    context = Context(stores._blank(engine))
    with context.db.read() as connection:
        row = connection.execute(sa.select(schema.management_cas)).one()
    context.db.close()
    pem = context.management_ca.pem
    return {
        "management_ca_certificate": pem,
        "management_ca_key": base64.b64encode(row.sealed).decode(),
    }


MOMENT = 1_700_000_000
NUMBERS = "SELECT 100000 AS n UNION ALL SELECT n + 1 FROM row WHERE n < 199999"  # COUNT of them
# a statement each; :octets, :moment and :end are bound
ROWS = (
    """INSERT INTO devices (unit_id, directory, hostname, hostname_fixed, ips, state, report, created, registered_at)
    SELECT 'U' || n, '/Site ' || (n % 97), 'tc-' || n, TRUE, '[]', 'registered', '{}', :moment, :moment FROM row""",
    """INSERT INTO management_certificates (sha256, unit_id, serial, not_before, not_after, spki_sha256, certificate)
    SELECT 'm' || n, 'U' || n, CAST(n AS TEXT), :moment, :end, '', :octets FROM row""",
    """INSERT INTO enrollments (unit_id, friendly_name, operation, csr_sha256, state, config_version, reason, warnings,
    subject, serial, not_before, not_after, certificate, certificate_sha256, created, updated)
    SELECT 'U' || n, 'lan', 'simpleenroll', 'r' || n, 'issued', 1, '', '', 'CN=x', CAST(n AS TEXT), :moment, :end,
    :octets, 'c' || n, :moment, :moment FROM row""",
    "INSERT INTO audit (at, actor, action, detail) SELECT :moment, 'U' || n, 'issue', 'lan' FROM row",
)


def measured(*args: str | Path) -> tuple[int, float, int]:
    """Exit status, seconds, and the most memory of one of our commands, in octets."""
    start, most = time.monotonic(), 0
    process = subprocess.Popen([command("ca-proxy"), *map(str, args)])
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        # getrusage would count what the child had of us before it became another program
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        most = int(found[1]) * 1024 if found else most
        time.sleep(0.01)
    return process.returncode, time.monotonic() - start, most


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def test_a_database_with_100_000_devices(
    engine: str, request: pytest.FixtureRequest, stores: Stores, tmp_path: Path
) -> None:
    cluster = request.getfixturevalue("postgres") if engine == "postgresql" else None
    data = tmp_path / "data"
    old_store(stores, engine, cluster, data)
    for args in (("serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"), ("device", "list")):
        done = run("ca-proxy", *args, "--data", data)
        assert (
            done.returncode == 1
            and f"has schema {OLD}" in done.stderr
            and "run: ca-proxy migrate" in done.stderr
        )
    code, seconds, memory = measured("migrate", "--data", data)
    print(json.dumps({"engine": engine, "seconds": round(seconds, 1), "MB": memory >> 20}))
    assert code == 0 and seconds < SECONDS and memory < MEMORY
    context = Context.open(data)
    for table in (schema.devices, schema.management_certificates, schema.enrollments, schema.audit):
        with context.db.read() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == COUNT
    assert context.management_ca.number == 1
    device = devices.get(context, "U112345")
    assert device is not None and device.directory == f"/Site {112345 % 97}"
    devices.add(context, "NEW")
    with pytest.raises(Exception, match="append-only"), context.db.begin() as connection:
        connection.execute(schema.audit.delete())
    context.db.close()
    assert measured("migrate", "--data", data)[0] == 0
