"""The dashboard and the alert rules name figures that the proxy has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from igelcert.proxy.admin_routes import figures
from igelcert.proxy.context import Context
from igelcert.proxy.initialise import initialise
from igelcert.proxy.waiting import Room

FILES = Path(__file__).resolve().parents[2] / "contrib/monitoring"


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "alerts.yml"])
def test_every_figure_is_served(name: str, tmp_path: Path) -> None:
    text = (FILES / name).read_text()
    if name.endswith(".json"):
        assert len({panel["id"] for panel in json.loads(text)["panels"]}) == len(json.loads(text)["panels"])
    initialise(tmp_path / "data", ["localhost"], "127.0.0.1:0", "127.0.0.1:0")
    context = Context.open(tmp_path / "data")
    context.upstreams  # noqa: B018 - whoever holds the CA says how many places there are
    from igelcert.proxy import cahealth
    from igelcert.proxy.upstream.config import ScepSettings, store

    cahealth.note(context, store(context, ScepSettings("x", "http://ca.example/scep")), True)
    served = figures(context, Room(1)).decode()
    known = set(re.findall(r"^(igelcert_\w+)", served, re.MULTILINE)) | set(
        re.findall(r"^# TYPE (igelcert_\w+)", served, re.MULTILINE)
    )
    named = set(re.findall(r"igelcert_\w+", text))
    assert len(named) > 6 and named <= known, named - known


def test_docs_say_what_to_do_when_an_alert_fires() -> None:
    """Each rule has its paragraph, with a command or a place to look at; and no paragraph is of a rule that is gone."""
    alerts = re.findall(r"- alert: (\w+)", (FILES / "alerts.yml").read_text())
    text = (FILES.parents[1] / "docs/operations.md").read_text()
    part = text.partition("### When an alert fires\n")[2].partition("\n## ")[0]
    said = dict(re.findall(r"^\*\*(\w+)\*\*: (.+?)(?=\n\n|\Z)", part, re.MULTILINE | re.DOTALL))
    assert list(said) == alerts
    assert all(len(paragraph) > 200 for paragraph in said.values())
