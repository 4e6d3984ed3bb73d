"""Prometheus reads the proxy; the alert rules and the dashboard are asked of it; Grafana's own types read the dashboard."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain import LabCa, Proxy, lab_ca, proxy
from tests.support.peers import peer

pytestmark = pytest.mark.peers
FILES = Path(__file__).resolve().parents[2] / "contrib/monitoring"
START_SECONDS = 90


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "grafana-dashboard.json").read_text())
    return found


@contextmanager
def prometheus(place: Path, target: int) -> Iterator[int]:
    """Reads 127.0.0.1:target every second, with our rules; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place.mkdir()
    shutil.copy(FILES / "alerts.yml", place)
    (place / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yml]\nscrape_configs:\n"
        f"  - {{job_name: ca-proxy, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}\n"
    )
    program = [str(peer("prometheus")), f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data",
               f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]  # fmt: skip
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(program, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


def ask(port: int, path: str, **values: str) -> Any:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(values)}"
    ) as answer:
        return json.load(answer)["data"]


def until(true: Any) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            if true():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError("Prometheus does not get there")


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for name in (FILES / "alerts.yml", Path(__file__).parent / "alerts_test.yml"):
        shutil.copy(name, tmp_path)
    promtool = peer("promtool")
    for command in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    rules = [rule for rule in (FILES / "alerts.yml").read_text().splitlines() if "- alert:" in rule]
    tested = (Path(__file__).parent / "alerts_test.yml").read_text()
    assert len(rules) == 8 and all(tested.count(rule.partition(": ")[2]) == 2 for rule in rules)


@pytest.mark.slow
def test_prometheus_reads_it_and_answers_the_dashboard(tmp_path: Path) -> None:
    with (
        lab_ca(tmp_path / "ca") as lab,
        proxy(tmp_path / "data") as gate,
        prometheus(tmp_path / "prometheus", gate.admin_port) as port,
    ):
        _work(gate, lab, tmp_path)
        until(lambda: ask(port, "query", query="igelcert_requests_total > 0")["result"])
        lint = subprocess.run([peer("promtool"), "check", "metrics"], input=gate.admin("/metrics")[1],
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert lint.returncode == 0 and not lint.stderr, lint.stderr
        expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
        assert len(expressions) >= 14
        for expression in expressions:
            asked = expression.replace("$job", "ca-proxy").replace("$__rate_interval", "1m")
            until(lambda asked=asked: ask(port, "query", query=asked)["result"])
        labels = ask(port, "label/job/values", **{"match[]": "igelcert_ca_configured"})
        assert labels == ["ca-proxy"], "what the variable of the dashboard asks for"
        until(lambda: all(rule["health"] == "ok" and rule["state"] == "inactive" for rule in rules(port)))
        assert len(rules(port)) == 8


def rules(port: int) -> list[dict[str, Any]]:
    return [rule for group in ask(port, "rules")["groups"] for rule in group["rules"]]


def _work(gate: Proxy, lab: LabCa, place: Path) -> None:
    gate.use(lab)
    gate.profile("lan", {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}}, directory="/")
    gate.device(place / "root", "A1", "pc1").sync()


def test_grafanas_own_types_know_all_of_the_dashboard() -> None:
    """Read into them and written again: a field or a panel that they do not know would be lost on the way."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    ours = dashboard()
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    assert list(_lost(ours, theirs, "")) == []
    assert list(_lost({**ours, "paneels": []}, theirs, "")) == [".paneels"]
    grids = [panel["gridPos"] for panel in ours["panels"]]
    places = {place for grid in grids for place in _cells(grid)}
    assert len(places) == sum(grid["w"] * grid["h"] for grid in grids), "none covers another"


def _cells(grid: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(grid["x"], grid["x"] + grid["w"]):
        assert x < 24
        for y in range(grid["y"], grid["y"] + grid["h"]):
            yield x, y


def _lost(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    """Where `theirs` has not what `ours` has."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if not isinstance(theirs, dict) or key not in theirs:
                yield f"{path}.{key}"
            else:
                yield from _lost(value, theirs[key], f"{path}.{key}")
    elif isinstance(ours, list):
        for index, value in enumerate(ours):
            if not isinstance(theirs, list) or index >= len(theirs):
                yield f"{path}[{index}]"
            else:
                yield from _lost(value, theirs[index], f"{path}[{index}]")
    elif ours != theirs:
        yield path
