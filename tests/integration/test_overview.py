"""The expiry overview: what devices report, and what an administrator sees of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain import Proxy, proxy
from tests.support.crowd import register

DAY = 86_400
UNITS = ["ONE", "TWO", "THREE"]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Proxy]:
    with proxy(tmp_path / "data") as made:
        register(made.data, tmp_path / "devices", UNITS, "/")
        yield made


def report(gate: Proxy, unit: str, *certs: dict[str, Any], status: int = 204) -> None:
    place = gate.data.parent / "devices"
    body = json.dumps({"certs": certs}).encode()
    answer = gate.ask("POST", "/rmagent/report", body, client=(place / unit, place / "key"))
    assert answer[0] == status, answer


def cert(name: str, state: str, days: float | None = None, **more: Any) -> dict[str, Any]:
    end = None if days is None else int(time.time() + days * DAY)
    return {"friendly_name": name, "state": state, "serial": "1", "not_after": end, "error": "", **more}


def test_the_overview(gate: Proxy) -> None:
    soon = cert("soon", "due", 3, error="the CA is away", renew_at=int(time.time()) - 60, hooks="")
    report(
        gate, "ONE", cert("fine", "valid", 400), cert("month", "valid", 29.9), cert("quarter", "valid", 89), soon
    )  # fmt: skip
    report(
        gate, "TWO", cert("gone", "valid", -1), cert("never", "missing", error="403: not assigned\x1b[31m"),
        cert("wait", "pending"), cert("torn", "damaged", 50), cert("edge", "valid", 7.01),
    )  # fmt: skip
    report(gate, "THREE", cert("lan", "valid", 200, hooks="50-wpa exited with 1"))
    found = json.loads(gate.cli("enrollments", "--overview", "--json"))
    assert found["certificates"] == {
        "expired": 1, "under_7_days": 1, "under_30_days": 2, "under_90_days": 2, "later": 2, "missing": 2,
    }  # fmt: skip
    trouble = [(each["unit_id"], each["friendly_name"], each["state"]) for each in found["trouble"]]
    assert trouble == [
        ("TWO", "never", "missing"), ("TWO", "gone", "expired"), ("ONE", "soon", "due"), ("TWO", "torn", "damaged"),
        ("THREE", "lan", "valid"),
    ]  # fmt: skip
    by_name = {each["friendly_name"]: each for each in found["trouble"]}
    assert by_name["soon"]["renew_at"] == soon["renew_at"] and by_name["soon"]["error"] == "the CA is away"
    assert by_name["lan"]["hooks"] == "50-wpa exited with 1" and by_name["lan"]["renew_at"] is None
    assert by_name["lan"]["last_seen"] >= time.time() - 60

    shown = gate.cli("enrollments", "--overview")
    lines = shown.splitlines()
    assert lines[0].split("  ")[0] == "EXPIRED" and "< 7 DAYS" in lines[0]
    assert lines[1].split() == ["1", "1", "2", "2", "2", "2"]
    assert "hooks: 50-wpa exited with 1" in shown and "the CA is away" in shown and "\x1b" not in shown
    assert "and 4 more" in gate.cli("enrollments", "--overview", "--limit", "1")
    one = json.loads(gate.cli("enrollments", "--overview", "--json", "--unit-id", "ONE"))
    assert sum(one["certificates"].values()) == 4 and len(one["trouble"]) == 1


def test_reports_that_make_no_sense(gate: Proxy) -> None:
    """They are kept within bounds, and the overview still shows the others'."""
    odd = cert("x" * 3000, "new state", error="y" * 3000)
    report(
        gate,
        "ONE",
        {**odd, "not_after": True, "renew_at": 10**40, "hooks": {"a": 1}},
        {},
        cert("ok", "valid", 1),
    )
    report(gate, "TWO", {**odd, "not_after": -5, "renew_at": "soon"})
    report(gate, "THREE", *[cert("a", "valid")] * 201, status=400)
    found = json.loads(gate.cli("enrollments", "--overview", "--json"))
    assert found["certificates"]["missing"] == 3 and found["certificates"]["under_7_days"] == 1
    assert all(each["renew_at"] is None and len(each["error"]) == 500 for each in found["trouble"])
    assert "new state" in gate.cli("enrollments", "--overview")


def test_nothing_reported(gate: Proxy) -> None:
    found = json.loads(gate.cli("enrollments", "--overview", "--json"))
    assert set(found["certificates"].values()) == {0} and found["trouble"] == []
    assert len(gate.cli("enrollments", "--overview").splitlines()) == 2
