from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chain import LabCa, Proxy, lab_ca, proxy


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    with lab_ca(tmp_path_factory.mktemp("lab") / "ca") as ca:
        yield ca


@pytest.fixture(scope="module")
def gate(lab: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of the lab CA."""
    with proxy(tmp_path_factory.mktemp("gate") / "data") as made:
        made.use(lab)
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"
