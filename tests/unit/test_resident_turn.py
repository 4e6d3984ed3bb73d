"""Other settings come with a turn when many devices hear of them: the resident agent acts on them then."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from igelcert.device import agenda
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
        late = 1 if wait else 0  # each device at its own moment
        assert wait - 1 <= moment - now <= wait + late, "neither acts before, nor asks the proxy before"


def test_devices_whose_clocks_agree_do_not_act_in_the_same_moment(tmp_path: Path) -> None:
    """What they are told counts whole seconds."""
    plan = {"agent_dir": str(tmp_path), "server": "https://localhost:1", "wait": 600, "child": ["false"],
            "watch_network": False, "screen": False, "level": "info"}  # fmt: skip
    begin, turns = time.monotonic(), []
    for _ in range(12):
        resident = Resident(plan)
        resident._want = ""
        resident._answered(Answer(200, {"retry-after": "37", "preference-applied": "wait=600"}))
        turns.append(resident._want_at - begin)
    assert min(turns) >= 37 and max(turns) - min(turns) > 0.3
    resident = Resident(plan)
    resident._want, resident._fraction = "", 30.0
    agenda.note(str(tmp_path), int(time.time()))
    resident._start_what_is_due(time.monotonic())
    assert resident._want == "", "its part of the second is still to come"


def test_a_child_that_has_just_started_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, and a second one, in the moment between its start and our note of it."""
    (tmp_path / "cert.pem").touch()
    plan = {"agent_dir": str(tmp_path), "server": "https://localhost:1", "wait": 600,
            "child": ["/bin/sleep", "60"], "watch_network": False, "screen": False, "level": "info"}  # fmt: skip
    resident, spawn, started = Resident(plan), os.posix_spawn, []

    def spawn_and_be_ended(*args: Any, **more: Any) -> int:
        started.append(spawn(*args, **more))
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the interpreter takes note of it here, whichever thread the kernel chose
        return int(started[0])

    monkeypatch.setattr(os, "posix_spawn", spawn_and_be_ended)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    try:
        assert resident.run() == 0
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before:
            signal.signal(number, handler)
    assert len(started) == 1 and not Path(f"/proc/{started[0]}").exists()
