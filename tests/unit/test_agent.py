"""The agent: what comes from the proxy counts only when it is valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from igelcert.codec.http import Request, Response
from igelcert.device.agent import Agent
from igelcert.device.config import load
from igelcert.device.log import Log
from igelcert.errors import Error, RemoteProtocolError


class Wire:
    """A link whose answer is given."""

    def __init__(self, answer: Response) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    def send(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answer


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    (tmp_path / "etc/igelcert").mkdir(parents=True)
    (tmp_path / "etc/igelcert/device.toml").write_text('unit_id = "U1"\nhostname = "tc"\n')
    made = Agent(load(str(tmp_path), None), Log("rmagent", screen=False))
    Path(made.dir).mkdir(parents=True)
    return made


def test_good_settings_are_stored_with_their_tag(agent: Agent) -> None:
    wire = Wire(Response(200, (("ETag", '"one"'),), b'{"certs": [{"friendly_name": "lan"}]}'))
    agent._fetch(wire)  # type: ignore[arg-type]
    stored = Path(agent.dir) / "settings.json"
    assert stored.read_bytes() == wire.answer.body
    assert stored.stat().st_mode & 0o777 == 0o600
    agent._fetch(wire)  # type: ignore[arg-type]
    assert wire.asked[1].header("If-None-Match") == '"one"'


@pytest.mark.parametrize(
    "answer",
    [
        Response(200, (), b'{"certs": [{"frendly_name": "lan"}]}'),
        Response(200, (), b"<html>please log in</html>"),
        Response(200, (), b"[]"),
        Response(200, (), b""),
        Response(200, (), b"\xff\xfe"),
        Response(403, (), b'{"error": "this device is not known"}'),
        Response(500, (), b"oops"),
        Response(302, (), b""),
    ],
)
def test_bad_settings_leave_the_stored_ones(agent: Agent, answer: Response) -> None:
    stored = Path(agent.dir) / "settings.json"
    stored.write_bytes(b'{"certs": []}')
    with pytest.raises(Error) as caught:
        agent._fetch(Wire(answer))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert stored.read_bytes() == b'{"certs": []}'
    if answer.status == 403:
        assert isinstance(caught.value, RemoteProtocolError) and "this device is not known" in str(
            caught.value
        )
