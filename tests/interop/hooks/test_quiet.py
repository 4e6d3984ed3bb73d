"""When the hooks act, and when they keep still."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hooks import hook
from tests.support.sandbox import Machine
from tests.support.servers import Host
from tests.support.until import until

pytestmark = pytest.mark.peers

# The programs each is for, and what a recorder in their place answers.
RECORDERS = {
    "nginx": {"nginx": "", "systemctl": "exit 3"},
    "strongswan": {"swanctl": ""},
    "wpa_supplicant": {"wpa_cli": "case $* in *ping) echo PONG ;; *) echo OK ;; esac"},
    "networkmanager": {
        "nmcli": """case $* in
        *general) echo running ;;
        *--active) echo uuid-1; echo uuid-2 ;;
        *'show uuid uuid-1') echo "$IGELCERT_DIR/cert.pem" ;;
        *'show uuid uuid-2') echo "$IGELCERT_DIR-2/cert.pem" ;;
        esac"""
    },
    "openvpn": {"systemctl": ""},
}
# What only asks, and what they do beyond that.
QUESTIONS = ("nmcli -t -f ", "nmcli -t -e no -g ", "swanctl --stats", "systemctl --quiet is-active ")
CALLS = {
    "nginx": ["nginx -q -t", "nginx -s reload"],
    "strongswan": ["swanctl --load-creds --clear --noprompt", "swanctl --load-conns"],
    "wpa_supplicant": [
        "wpa_cli -p /run/wpa_supplicant -s /run -i lan0 ping",
        "wpa_cli -p /run/wpa_supplicant -s /run -i lan0 reconfigure",
    ],
    "networkmanager": ["nmcli -t --wait 45 connection up uuid uuid-1"],  # not that with other files
    "openvpn": ["systemctl restart openvpn-client@office"],
}
LEFT_OVER = "import socket; socket.socket(socket.AF_UNIX).bind('/run/wpa_supplicant/lan0')"
NAME = "Büro $(echo WLAN) 1"


@dataclasses.dataclass(frozen=True)
class Recorder:
    """The hook with recorders in place of its program."""

    box: Machine
    host: Host
    name: str
    calls: Path

    def __call__(self, event: str, conf: str = "") -> list[str]:
        """The calls that the hook makes to do something; `conf`: a line of hooks.conf."""
        self.calls.write_text("")
        if self.name == "openvpn":
            conf += "\nOPENVPN_UNITS=openvpn-client@office"
        (self.box.etc / "igelcert/hooks.conf").write_text(conf + "\n")
        assert hook(self.box, self.name, self.host, event, NAME, path=self.calls.parent) == ""
        return [call for call in self.calls.read_text().splitlines() if not call.startswith(QUESTIONS)]


@pytest.fixture(params=sorted(RECORDERS))
def recorder(request: pytest.FixtureRequest, box: Machine, host: Host, tmp_path: Path) -> Iterator[Recorder]:
    place = tmp_path / "bin"
    place.mkdir()
    for program, answer in RECORDERS[request.param].items():
        text = f'#!/bin/sh\n[ "$1" != sleep ] || sleep 60\necho "${{0##*/}} $*" >>"{place}/calls"\n{answer}\n'
        (place / program).write_text(text)
        (place / program).chmod(0o755)
    made = Recorder(box, host, request.param, place / "calls")
    if request.param == "wpa_supplicant":
        box.run("mkdir", "/run/wpa_supplicant")
        box.run("touch", "/run/wpa_supplicant/lan0")
    if request.param == "nginx":
        # a process of that name, for the PID file
        with box.running("nginx", "sh", "-c", f"echo $$ >/run/nginx.pid; exec {place}/nginx sleep"):
            until(lambda: comm(box) == "nginx\n", say=lambda: "no process nginx")
            yield made
    else:
        yield made


def comm(box: Machine) -> str:
    """The name of the process in nginx's PID file."""
    shell = "cat /proc/$(cat /run/nginx.pid)/comm"
    return box.run("sh", "-c", shell, code=None).stdout


def test_which_events_and_which_certificate(recorder: Recorder) -> None:
    variable, calls = recorder.name.upper() + "_CERTIFICATE", CALLS[recorder.name]
    for event in ("enrolled", "renewed"):
        assert recorder(event) == calls
        assert recorder(event, f"{variable}='{NAME}'") == calls
        assert recorder(event, f"{variable}='another'") == []
    for event in ("failed", "removed", "invented", ""):
        assert recorder(event) == []


def test_nginx_as_a_unit(box: Machine, host: Host, tmp_path: Path) -> None:
    """There is no systemd on the machines of these tests: a recorder stands for systemctl."""
    calls = tmp_path / "calls"
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$*" >>"{calls}"\n[ "$1" != reload ]\n')
    (tmp_path / "systemctl").chmod(0o755)
    said = hook(box, "nginx", host, code=1, path=tmp_path)
    assert calls.read_text() == "--quiet is-active nginx.service\nreload nginx.service\n"
    assert said == "nginx hook: nginx keeps the old certificate: journalctl -u nginx says why\n"


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not installed"])
@pytest.mark.parametrize("name", sorted(RECORDERS))
def test_a_program_that_does_not_run(box: Machine, host: Host, name: str, installed: bool) -> None:
    """Here or not, it does not run; PID files and sockets are left over from before."""
    for program in RECORDERS[name]:
        found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if found and not installed:
            box.run("mount", "--bind", "/dev/null", found)
    box.run("mkdir", "/run/openvpn", "/run/wpa_supplicant")
    box.run(sys.executable, "-c", LEFT_OVER)
    # another process has the number by now
    with box.running(
        "other", "sh", "-c", "echo $$ | tee /run/nginx.pid >/run/openvpn/office.pid; exec sleep 60"
    ):
        stale = box.proc / "run/openvpn/office.pid"
        until(lambda: stale.exists() and stale.read_text() != "", say=lambda: "no PID file")
        assert hook(box, name, host) == ""
        box.run("kill", "-0", stale.read_text().strip())
