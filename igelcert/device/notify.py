"""Notifications for the people at the device: every text in one place, and the way to their screens.

A user who is logged in has a session bus below /run/user; the freedesktop notification service listens
there. Without one (a headless device, nobody logged in) there is nobody to tell, and the log has it all.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

from ..record import record
from .config import Config
from .log import Log

__all__ = ["Note", "enrolled", "failing", "refused", "renewed", "send"]

RUNTIME_DIR = "/run/user"
SECONDS = 5.0  # for one user's notification service
APP = "igelcert"


@record
class Note:
    """summary: a line. body: a sentence or two. urgency: "low", "normal" or "critical"."""

    summary: str
    body: str
    urgency: str = "normal"
    icon: str = "security-high"


def enrolled(name: str, until: str) -> Note:
    return Note(
        "Certificate installed", f"This device received the certificate “{name}”, valid until {until}."
    )


def renewed(name: str, until: str) -> Note:
    return Note(
        "Certificate renewed", f"The certificate “{name}” was renewed and is valid until {until}.", "low"
    )


def failing(name: str, days: int | None) -> Note:
    """days: of the certificate's life that are left; None when there is no valid one."""
    if days is None:
        return Note(
            "Certificate missing",
            f"This device cannot get the certificate “{name}”. It goes on trying. If network or VPN do not work, "
            "tell your administrator.",
            "critical",
            "security-low",
        )
    left = "today" if days < 1 else f"in {days} day{'s' if days > 1 else ''}"
    return Note(
        "Certificate renewal fails",
        f"The certificate “{name}” expires {left} and cannot be renewed. This device goes on trying. Keep it "
        "connected, and tell your administrator if this message comes again.",
        "critical" if days < 3 else "normal",
        "security-medium",
    )


def refused(name: str, days: int | None) -> Note:
    """The CA or the proxy said no; trying again changes little."""
    now = "There is no valid one" if days is None else f"The present one is valid for {days} more day(s)"
    return Note(
        "Certificate refused",
        f"The certificate “{name}” was refused. {now}. Tell your administrator; the device's log has the reason.",
        "critical",
        "security-low",
    )


def _which(name: str) -> str | None:
    import shutil  # it brings compressors along; most runs have nothing to show

    return shutil.which(name)


def send(config: Config, note: Note, log: Log) -> int:
    """Shows the note to every logged-in user; returns to how many. What fails is a line in the log, no more."""
    buses = _buses(config.at(RUNTIME_DIR))
    if not buses:
        return 0
    tool = next((path for name in ("notify-send", "gdbus") if (path := _which(name))), "")
    if not tool:
        log.debug("neither notify-send nor gdbus is here: no notification is shown")
        return 0
    return sum(_show(tool, uid, bus, note, log) for uid, bus in buses)


def _buses(runtime: str) -> list[tuple[int, str]]:
    """(uid, socket) of each session bus. Only what the user himself owns counts."""
    try:
        names = sorted(os.listdir(runtime))
    except OSError:
        return []
    found = []
    for name in names:
        path = os.path.join(runtime, name, "bus")
        with contextlib.suppress(OSError):
            info = os.lstat(path)
            if name.isdecimal() and stat.S_ISSOCK(info.st_mode) and info.st_uid == int(name):
                found.append((info.st_uid, path))
    return found


def _show(tool: str, uid: int, bus: str, note: Note, log: Log) -> bool:
    """The bus takes nobody but its user, so the tool runs as that user, with nothing of ours."""
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}",
        "XDG_RUNTIME_DIR": os.path.dirname(bus),
    }
    import subprocess  # where nobody is logged in, nothing is shown

    as_user: dict[str, object] = {}
    if uid != os.geteuid():
        as_user = {"user": uid, "group": _group_of(uid), "extra_groups": []}
    try:
        done = subprocess.run(  # noqa: S603 - by argument vector; texts are ours but for the friendly name
            _words(tool, note),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            timeout=SECONDS,
            check=False,
            **as_user,  # type: ignore[call-overload]
        )
    except (OSError, subprocess.SubprocessError) as err:
        log.debug(f"user {uid} could not be notified: {type(err).__name__}")
        return False
    if done.returncode:
        log.debug(f"user {uid} could not be notified: {done.stderr[:200].decode('utf-8', 'replace')}")
    return bool(done.returncode == 0)


def _group_of(uid: int) -> int:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def _words(tool: str, note: Note) -> Sequence[str]:
    if os.path.basename(tool) == "notify-send":
        options = (f"--app-name={APP}", f"--urgency={note.urgency}", f"--icon={note.icon}")
        # it reads backslashes in the body as C does
        body = _escaped(note.body).replace("\\", "\\\\")
        return [tool, *options, "--", note.summary, body]
    level = {"low": 0, "normal": 1, "critical": 2}[note.urgency]
    return [
        tool, "call", "--session", "--dest", "org.freedesktop.Notifications",
        "--object-path", "/org/freedesktop/Notifications", "--method", "org.freedesktop.Notifications.Notify",
        _text(APP), "uint32 0", _text(note.icon), _text(note.summary), _text(_escaped(note.body)), "@as []",
        f"{{'urgency': <byte {level}>}}", "int32 -1",
    ]  # fmt: skip


def _escaped(body: str) -> str:
    """The body may hold markup (Desktop Notifications Specification, "Markup"): a name must not."""
    return body.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _text(value: str) -> str:
    """A string in GVariant's text format."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"
