"""A process that ends while the CA still works for it keeps that place until its lease is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from igelcert.errors import UnavailableError
from igelcert.proxy import leases
from igelcert.proxy.context import Context
from igelcert.proxy.database import moment
from igelcert.proxy.leases import Leases
from igelcert.proxy.schema import proxies, slots
from tests.support.postgres import Cluster
from tests.support.stores import Stores

pytestmark = pytest.mark.peers

CAP = 8  # places, by default


@pytest.fixture
def shared(stores: Stores, postgres: Cluster, tmp_path: Path) -> Iterator[Context]:
    stores.cluster = postgres
    with stores.fresh("postgresql", tmp_path / "data") as made:
        yield made


def taken(context: Context) -> tuple[int, int]:
    """Places that are somebody's, and processes that count as alive."""
    with context.db.read() as connection:
        held = connection.execute(sa.select(sa.func.count()).where(slots.c.until > moment())).scalar_one()
        alive = connection.execute(sa.select(sa.func.count()).where(proxies.c.until > moment())).scalar_one()
    return held, alive


def test_what_is_asked_of_the_ca_outlives_who_asked(shared: Context) -> None:
    mine, others = Leases(shared), Leases(shared)
    with mine.place(1) as got:
        assert got and taken(shared) == (1, 1)
        mine.close()
        assert taken(shared) == (1, 1), "nobody knows whether the CA still works for it"
        # the others have the rest, and not one more
        held = [others.place(0.2) for _ in range(CAP)]
        assert [each.__enter__() for each in held] == [True] * (CAP - 1) + [False]
        for each in held:
            each.__exit__(None, None, None)
    with mine.place(0.2) as got:
        assert not got, "it has ended"
    others.close()


def test_who_asks_nothing_leaves_nothing(shared: Context) -> None:
    mine = Leases(shared)
    with mine.place(1):
        pass
    mine.close()
    assert taken(shared) == (0, 0)


def test_no_sign_of_life_comes_after_the_end(shared: Context) -> None:
    """One that was due in the same moment: others would count a process that is gone."""
    mine = Leases(shared)
    with mine.place(1):
        pass
    mine.close()
    mine._beat()
    assert taken(shared) == (0, 0)


def test_who_has_ended_does_not_begin(shared: Context) -> None:
    """As where the database comes back while a process of the proxy is told to end."""
    mine = Leases(shared)
    mine.close()
    with pytest.raises(UnavailableError):
        mine.holder  # noqa: B018
    assert taken(shared) == (0, 0)


def test_what_is_to_be_recorded_later_is_recorded_at_the_end(shared: Context) -> None:
    mine = Leases(shared)
    done: list[int] = []
    with mine.place(1):
        pass
    assert mine.later(lambda: done.append(1))
    mine.close()
    mine._beat()
    assert done == [1]


@pytest.mark.parametrize("busy", ["_lock", "_at_the_row"])
def test_the_end_waits_for_no_database(shared: Context, monkeypatch: pytest.MonkeyPatch, busy: str) -> None:
    """That does not answer who begins just now, or gives a sign of life."""
    monkeypatch.setattr(leases, "LEAVE_SECONDS", 0.1)
    mine = Leases(shared)
    with mine.place(1):
        pass
    with getattr(mine, busy):
        ending = threading.Thread(target=mine.close, daemon=True)
        ending.start()
        ending.join(20)
        assert not ending.is_alive()
    assert taken(shared)[1] == 1, "until the lease ends"
