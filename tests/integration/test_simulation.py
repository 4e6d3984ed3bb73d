"""The simulation and real programs, in small: tests/load/renewals.py. At 2000 devices: `python -m tests.load renewals`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.renewals import Short, agree, played, simulated
from tests.load.scenarios import QUICK


@pytest.mark.slow
def test_real_programs_renew_as_the_simulation_says(tmp_path: Path) -> None:
    short = Short(QUICK.renewals, *QUICK.lives)
    real, model = played(tmp_path / "windows", short), simulated(short)
    assert agree(real, model, 0.25), (real, model)
    without = simulated(Short(QUICK.renewals, *QUICK.lives, windows=False))
    assert not agree(real, without, 0.25), "it is the windows that make it so"
