"""The lab CA, proxies and browsers of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain import LabCa, Proxy, lab_ca, proxy
from tests.support.walk import Walk, chromium
from tests.support.wiretap import wiretap


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    with lab_ca(tmp_path_factory.mktemp("lab") / "ca", "--est", "127.0.0.1:0", "--scep", "127.0.0.1:0") as ca:
        yield ca


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Proxy]:
    with proxy(tmp_path / "data") as made:
        yield made


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as context:
        yield context


@pytest.fixture
def walk(browser: Any, gate: Proxy) -> Iterator[Walk]:
    with wiretap(gate.admin_port) as line:
        made = Walk(browser, gate, line)
        made.log_in()
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """One proxy and one browser, logged in, for all tests of a module: each uses names of its own."""
    place = tmp_path_factory.mktemp("shared")
    with proxy(place / "data") as gate, chromium() as context, wiretap(gate.admin_port) as line:
        made = Walk(context, gate, line)
        made.log_in()
        yield made


@pytest.fixture
def tour(shared: Walk) -> Iterator[Walk]:
    """The shared walk; nothing strange may have happened in it."""
    yield shared
    shared.page.context.set_offline(False)
    assert shared.strange == []
