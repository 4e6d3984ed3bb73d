"""`igel-certs status`: what is there, from the tree alone. It is run often: nothing heavy is imported."""

from __future__ import annotations

import binascii
import json
import os
import sys
import time

from ..errors import CryptoError, Error
from . import notes
from .store import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..crypto import Certificate

__all__ = ["collect", "main", "report", "state_of"]

USAGE = """\
usage: igel-certs status [NAME…] [--root DIR] [--config FILE] [--json] [--verbose]

Shows each certificate: state, subject, issuer, expiry, the instant of its next renewal, the window that the
proxy wants it renewed in, last error.
States: valid, due (renewal is due), expired, pending (the CA has not decided), missing, damaged.

  --root DIR     act inside a root file system
  --config FILE  instead of /etc/igelcert/device.toml
  --json         for programs
  --help         this text

exit status: 0, or 1 when a NAME does not exist, 64 usage, 78 bad configuration
"""


def collect(tree: Tree, names: list[str], now: int) -> list[dict[str, Any]]:
    """One entry for each certificate, in the order of the names."""
    return [_entry(tree, name, now) for name in names]


def _entry(tree: Tree, name: str, now: int) -> dict[str, Any]:
    from .. import crypto

    state = tree.state(name)
    entry: dict[str, Any] = {
        "friendly_name": name,
        "state": state_of(state, None, now),
        "error": state.get("error", ""),
    }
    if entry["state"] == "pending":
        entry.update(error=state["pending"], retry_at=state["retry_at"])
    elif entry["error"]:
        entry.update(
            error_at=state.get("error_at"), failures=state.get("failures"), retry_at=state.get("try_at")
        )
    if isinstance(hooks := state.get("hooks"), dict):
        entry["hooks"] = {key: hooks.get(key) for key in ("event", "error", "failures", "retry_at")}
    pem = tree.read(name, "cert.pem")
    if pem is None:
        return entry
    try:
        cert = crypto.parse_certificate(_der(pem))
    except (CryptoError, ValueError):
        entry["state"] = "damaged"
        return entry
    entry.update(
        state=state_of(state, cert, now),
        subject=cert.subject_text,
        issuer=cert.issuer_text,
        serial=cert.serial_hex,
        key_type=cert.key_type,
        not_before=cert.not_before,
        not_after=cert.not_after,
        renew_at=state.get("renew_at"),
        window=_window(state, cert.serial_hex),
        directory=os.path.join(tree.path, name),
    )
    if state.get("pending"):
        entry["pending"] = state["pending"]
    return entry


def state_of(state: dict[str, Any], cert: Certificate | None, now: int) -> str:
    """The word for a certificate: valid, due, expired; pending or missing when there is none."""
    if cert is None:
        return "pending" if state.get("pending") and int(state.get("retry_at", 0)) > 0 else "missing"
    if now >= cert.not_after:
        return "expired"
    moment = notes.planned({"not_after": cert.not_after, **state}, 0.0)
    return "due" if moment is not None and now >= moment else "valid"


def _window(state: dict[str, Any], serial: str) -> list[int] | None:
    """The window that an administrator, or else the proxy, wants it renewed in: [begin, end]."""
    asked = state.get("asked")
    return asked if asked else (list(told) if (told := notes.window_of(state, serial)) else None)


def _der(pem: bytes) -> bytes:
    """The first PEM block; our own files have just one."""
    body = pem.partition(b"-----BEGIN CERTIFICATE-----")[2].partition(b"-----END")[0]
    return binascii.a2b_base64(b"".join(body.split()))


def _when(moment: int | None) -> str:
    if moment is None:
        return "never"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
    except (OverflowError, ValueError):
        return "beyond the calendar"


def report(entries: list[dict[str, Any]]) -> str:
    lines = []
    for entry in entries:
        lines.append(f"{entry['friendly_name']}: {entry['state']}")
        if "subject" in entry:
            rows = [
                ("subject", entry["subject"]),
                ("issuer", entry["issuer"]),
                ("serial", entry["serial"]),
                ("key", entry["key_type"]),
                ("expires", _when(entry["not_after"])),
                ("renewal", _when(entry["renew_at"]) if entry["renew_at"] is not None else "not automatic"),
            ]
            if window := entry.get("window"):
                rows.append(("window", f"{_when(window[0])} to {_when(window[1])}"))
            lines += [f"  {label:<8} {value}" for label, value in rows]
        if entry.get("retry_at"):
            lines.append(f"  {'retry':<8} {_when(entry['retry_at'])}")
        if entry.get("error"):
            lines.append(f"  {'error':<8} {entry['error']}")
        if hooks := entry.get("hooks"):
            lines.append(
                f"  {'hooks':<8} {hooks['event']}: {hooks['error']}; again {_when(hooks['retry_at'])}"
            )
    return "\n".join(lines) or "no certificates"


def main(argv: list[str]) -> int:
    """argv: what follows the word status."""
    names: list[str] = []
    options = {"--root": "", "--config": ""}
    as_json = False
    rest = iter(argv)
    for word in rest:
        key, equals, value = word.partition("=")
        if word in {"--help", "-h"}:
            print(USAGE, end="")
            return 0
        if word == "--json":
            as_json = True
        elif word == "--verbose":
            pass
        elif key in options:
            given = value if equals else next(rest, "")
            if not given:
                return _usage(f"{key} wants a value")
            options[key] = given
        elif word == "--":
            names += list(rest)
        elif word.startswith("-"):
            return _usage(f"unknown option {word}")
        else:
            names.append(word)
    try:
        return _show(_tree(options["--root"], options["--config"]), names, as_json)
    except Error as err:
        print(f"igel-certs: error: {err}", file=sys.stderr)
        if err.hint:
            print(f"igel-certs: hint: {err.hint}", file=sys.stderr)
        from ..errors import SettingsError

        return 78 if isinstance(err, SettingsError) else 1


def _usage(text: str) -> int:
    print(USAGE.splitlines()[0], file=sys.stderr)
    print(f"igel-certs: error: {text}", file=sys.stderr)
    return 64


def _tree(root: str, config: str) -> Tree:
    """The tree; the configuration is only read when there is one (parsing TOML costs 10 ms)."""
    path = config or os.path.join(root or "/", "etc/igelcert/device.toml")
    wfs = "/wfs"
    try:
        with open(path, "rb") as file:
            plain = all(not line.strip().startswith((b"wfs", b'"wfs', b"'wfs")) for line in file)
    except OSError:
        plain = not config
    if not plain:
        from .config import load

        wfs = load(root, config or None).wfs
    return Tree(os.path.join(os.path.abspath(root), wfs.lstrip("/")) if root else wfs)


def _show(tree: Tree, names: list[str], as_json: bool) -> int:
    known = tree.names()
    missing = [name for name in names if name not in known]
    entries = collect(tree, [name for name in names if name in known] if names else known, int(time.time()))
    if as_json:
        print(json.dumps({"certificates": entries}, indent=1))
    elif entries or not missing:
        print(report(entries))
    for name in missing:
        print(f"igel-certs: error: {name}: there is no such certificate", file=sys.stderr)
    return 1 if missing else 0
