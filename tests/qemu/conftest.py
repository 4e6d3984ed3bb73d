"""One lab CA and one proxy for the guests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.guests import Rig, rig


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("qemu")) as made:
        yield made
