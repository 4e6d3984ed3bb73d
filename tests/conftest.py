"""Hypothesis: the same examples in every run of CI, so that a red build is red again on a desk.

Databases: a PostgreSQL cluster for each run, started when a test asks for it, and proxies' stores on either engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from igelcert.proxy.context import Context
    from igelcert.proxy.database import Database
    from tests.support.postgres import Cluster
    from tests.support.stores import Stores

settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("desk"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "desk")
BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.peers))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    from tests.support.postgres import cluster

    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    from tests.support.stores import Stores

    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(params=BOTH)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables, on each engine in turn."""
    from igelcert.proxy.database import Database

    if request.param == "sqlite":
        db = Database.sqlite(tmp_path / "empty.db")
    else:
        cluster = request.getfixturevalue("postgres")
        db = Database(cluster.url(cluster.create()))
    yield db
    db.close()


@pytest.fixture(params=BOTH)
def context(request: pytest.FixtureRequest, stores: Stores, tmp_path: Path) -> Iterator[Context]:
    """A proxy's store that holds nothing yet, on each engine in turn."""
    if request.param == "postgresql":
        stores.cluster = request.getfixturevalue("postgres")
    with stores.fresh(request.param, tmp_path / "data") as made:
        yield made
