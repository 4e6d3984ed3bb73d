"""A storm of devices while proxies are killed and PostgreSQL is restarted: tests/load/siege.py, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.siege import UNLEASED, Plan, besieged, judge
from tests.support.postgres import Cluster

pytestmark = [pytest.mark.peers, pytest.mark.slow]


def test_everybody_gets_one_certificate_whatever_dies(postgres: Cluster, tmp_path: Path) -> None:
    with besieged(tmp_path, postgres, Plan(devices=150, kills=6, patience=90.0, seconds=400.0)) as seen:
        print(f"\n{seen.figures()}")
        judge(seen)
        assert not any("Traceback" in keep.log for keep in seen.keeps)


def test_without_the_check_of_leases_that_is_noticed(postgres: Cluster, tmp_path: Path) -> None:
    """The control: the same, with the one difference that each proxy takes the places at the CA for its own."""
    plan = Plan(devices=60, delay="2s", seconds=15, program=UNLEASED)
    with besieged(tmp_path, postgres, plan) as seen, pytest.raises(AssertionError, match="at the CA at once"):
        judge(seen)
