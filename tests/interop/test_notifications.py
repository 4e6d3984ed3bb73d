"""Notifications read back from a real notification service (dunst) on session buses of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from igelcert.device import notify
from igelcert.device.config import Config
from igelcert.device.log import Log
from tests.support.peers import peer
from tests.support.servers import device, lab_ca, straight
from tests.support.until import until

pytestmark = [pytest.mark.peers, pytest.mark.xdist_group("display")]
if os.geteuid() != 0:
    pytest.skip("acts as several users", allow_module_level=True)

# without service files: a question before dunst is there must not start another one
BUS = """\
<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""
# its history has no urgency, but what it would display does
URGENCIES = "".join(f'[urgency_{level}]\n  format = "{level}|"\n' for level in ("low", "normal", "critical"))
DUNSTRC = f"[global]\n  history_length = 50\n  markup = full\n  notification_limit = 5\n{URGENCIES}"


class Screen:
    """A logged-in user: a bus below <root>/run/user, and dunst on it."""

    def __init__(self, root: Path, uid: int, display: str) -> None:
        self.uid = uid
        self.home = root / f"run/user/{uid}"
        self.home.mkdir(parents=True)
        os.chown(self.home, uid, uid)
        self.home.chmod(0o700)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DISPLAY": display,
            "XDG_RUNTIME_DIR": str(self.home),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.home}/bus",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, *words: str | Path) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        made = subprocess.Popen(
            [str(word) for word in words], env=self.env, cwd="/", user=self.uid, group=self.uid, extra_groups=[],
            **quiet,  # type: ignore[call-overload]
        )  # fmt: skip
        self.processes.append(made)
        return made

    def start(self) -> None:
        (self.home / "bus.conf").write_text(BUS.format(self.home / "bus"))
        self.run(peer("dbus-daemon"), "--nofork", f"--config-file={self.home}/bus.conf")
        until((self.home / "bus").exists)
        (self.home / "dunstrc").write_text(DUNSTRC)
        self.run(peer("dunst"), "-conf", self.home / "dunstrc")
        until(lambda: self.shown() is not None)

    def shown(self) -> list[tuple[str, str, str]] | None:
        """(summary, body, urgency) of what was shown, the oldest first; None while dunst is not there."""
        for words in (("close-all",), ("history",)):
            done = subprocess.run(
                [str(peer("dunstctl")), *words], env=self.env, capture_output=True, text=True,
                user=self.uid, group=self.uid, extra_groups=[], timeout=10, cwd="/",
            )  # fmt: skip
            if done.returncode:
                return None
        try:
            entries = json.loads(done.stdout)["data"][0]
        except (ValueError, LookupError):
            return None
        found = [
            (e["summary"]["data"], e["body"]["data"], e["message"]["data"].partition("|")[0], e["id"]["data"])
            for e in entries
        ]
        assert all(e["appname"]["data"] == "igelcert" for e in entries)
        return [entry[:3] for entry in sorted(found, key=lambda entry: entry[3])]

    def end(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    reading, writing = os.pipe()
    words = [
        str(peer("Xvfb")),
        "-displayfd",
        str(writing),
        "-nolisten",
        "tcp",
        "-screen",
        "0",
        "640x480x24",
        "-ac",
    ]
    process = subprocess.Popen(
        words, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            yield f":{pipe.readline().strip()}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def root() -> Iterator[Path]:
    """Where other users get in, unlike tmp_path."""
    made = Path(tempfile.mkdtemp(prefix="igelcert-"))
    made.chmod(0o755)
    yield made / "root"
    shutil.rmtree(made)


@pytest.fixture
def screens(root: Path, display: str) -> Iterator[list[Screen]]:
    """Two logged-in users: root, and one who is nobody else."""
    (root / "run/user").mkdir(parents=True)
    found = [Screen(root, uid, display) for uid in (0, 65_534)]
    try:
        for screen in found:
            screen.start()
        yield found
    finally:
        for screen in found:
            screen.end()


@pytest.fixture(params=["notify-send", "gdbus"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two ways to the service by itself."""
    program = str(peer(request.param))
    monkeypatch.setattr(notify, "_which", lambda name: program if name == request.param else None)
    return str(request.param)


def test_every_text(screens: list[Screen], root: Path, tool: str) -> None:
    name = "l<b>a</b>n & 'co' \\"
    notes = [
        notify.enrolled(name, "2030-01-01"), notify.renewed(name, "2030-01-01"), notify.failing(name, 12),
        notify.failing(name, 1), notify.failing(name, 0), notify.failing(name, None), notify.refused(name, 5),
        notify.refused(name, None),
    ]  # fmt: skip
    log = Log("igel-certs", screen=False)
    for note in notes:
        assert notify.send(Config(root=str(root)), note, log) == 2
    for screen in screens:
        found = screen.shown()
        assert found is not None and len(found) == len(notes)
        for note, (summary, body, urgency) in zip(notes, found, strict=True):
            assert summary == note.summary and urgency == note.urgency
            # dunst hands the body back as it came: markup of the name is escaped
            assert "l&lt;b&gt;a&lt;/b&gt;n &amp; 'co' \\" in body and "<b>" not in body
            assert "\n" not in body and body[-1] == "."


def test_what_a_device_shows(screens: list[Screen], root: Path, tmp_path: Path) -> None:
    """Enrolled and renewed once each; a CA that is away only when it lasts; a refusal; nothing when it is off."""
    (tmp_path / "password").write_text("secret\n")
    options = ("--est-user", "d", "--est-password-file", tmp_path / "password")
    with lab_ca(tmp_path / "ca", *options) as ca:
        shutil.rmtree(root / "wfs", ignore_errors=True)
        host = device(root / "tc", "tc-1", "U1")
        (root / "tc/run").symlink_to(root / "run")
        host.trust((ca.dir / "root.pem").read_bytes())
        login = {"username": "d", "crypt_password": "secret"}
        host.wants(straight("lan", ca.port, **login))
        host.do()
        host.do()
        host.do("renew", "--force")
        screen = screens[1]
        assert [entry[0] for entry in screen.shown() or ()] == [
            "Certificate installed",
            "Certificate renewed",
        ]
        assert "“lan”, valid until 20" in (screen.shown() or ())[0][1]
        host.wants(
            straight("lan", ca.port, **login), straight("vpn", ca.port, username="d", crypt_password="no")
        )
        host.do(code=1)
        host.do(code=1)
        assert [entry[0] for entry in screen.shown() or ()][2:] == ["Certificate refused"]
        host.wants(straight("lan", ca.port, **login), straight("vpn", 1, **login))
        host.do(code=75)
        assert len(screen.shown() or ()) == 3, "once a day"
        host.wants(straight("lan", ca.port, **login), straight("other", 1, **login))
        host.do(code=75)
        assert len(screen.shown() or ()) == 3, "a single failure may pass"
        host.do(code=75)
        assert [entry[0] for entry in screen.shown() or ()][3:] == ["Certificate missing"]
        quiet = json.loads(host.settings.read_text())
        quiet["show_user_notifications"] = False
        quiet["certs"] = [straight("quiet", ca.port, **login)]
        host.settings.write_text(json.dumps(quiet))
        host.do()
        assert len(screen.shown() or ()) == 4
        assert "secret" not in str(screen.shown())


def test_a_service_that_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus without anybody behind it, a socket of somebody else, no bus at all: a line in the log, no wait."""
    import socket

    monkeypatch.setattr(notify, "SECONDS", 60.0)
    home = root / "run/user/0"
    home.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(home / "bus"))
        (root / "run/user/7").mkdir()
        (root / "run/user/7/bus").symlink_to(home / "bus")  # a link is nobody's bus
        (root / "run/user/notes.txt").write_text("")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            assert (
                notify.send(Config(root=str(root)), notify.enrolled("lan", "x"), Log("t", screen=False)) == 0
            )
        assert time.monotonic() - began < 30
