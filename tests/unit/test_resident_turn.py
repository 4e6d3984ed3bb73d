"""Other settings come with a turn when many devices hear of them: the resident agent acts on them then."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from igelcert.device.resident import TURN_LATEST, Resident
from igelcert.device.watch import Answer


@pytest.mark.parametrize(("told", "wait"), [("", 0), ("0", 0), ("37", 37), ("999999", TURN_LATEST)])
def test_other_settings_are_acted_on_in_turn(tmp_path: Path, told: str, wait: int) -> None:
    plan = {"agent_dir": str(tmp_path), "server": "https://localhost:1", "wait": 600, "child": ["false"],
            "watch_network": False, "screen": False, "level": "info"}  # fmt: skip
    resident = Resident(plan)
    resident._want = ""  # the first run is over
    resident._answered(Answer(200, {"retry-after": told, "preference-applied": "wait=600"}))
    now = time.monotonic()
    assert resident._want == "other settings"
    for moment in (resident._want_at, resident._next_watch):
        assert wait - 1 <= moment - now <= wait, "neither acts before, nor asks the proxy before"
