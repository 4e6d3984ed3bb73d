"""What a run leaves for the resident agent: when there is something to do again. Imported by it: stays small."""

from __future__ import annotations

import json
import os

from ..errors import StorageError
from . import files

__all__ = ["CLOCK_SECONDS", "RUN_LOCK", "next_at", "note", "note_refused", "tags", "waits_for_clock"]

RUN_LOCK = "run.lock"
FILE = "agenda.json"
REFUSED = "settings.refused"
CLOCK_SECONDS = 30  # between looks at a clock that is wrong


def note(directory: str, moment: int | None, *, clock: bool = False) -> None:
    """moment: seconds since 1970, None for never. clock: it waits for the right time."""
    if os.path.isdir(directory):
        text = json.dumps({"next_at": moment, "clock": clock})
        files.replace(os.path.join(directory, FILE), text.encode(), 0o644)


def _noted(directory: str) -> dict[str, object]:
    try:
        found = json.loads(files.read(os.path.join(directory, FILE)))
    except (FileNotFoundError, StorageError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def next_at(directory: str) -> int | None:
    moment = _noted(directory).get("next_at")
    return moment if isinstance(moment, int) else None


def waits_for_clock(directory: str) -> bool:
    return _noted(directory).get("clock") is True


def note_refused(directory: str, etag: str) -> None:
    """The tag of settings that were not valid: the resident agent waits for others."""
    files.replace(os.path.join(directory, REFUSED), etag.encode("ascii", "replace"), 0o600)


def tags(directory: str) -> str:
    """If-None-Match for the settings that are stored and those that were refused; "" before the first."""
    found = []
    for name in ("settings.etag", REFUSED):
        try:
            tag = files.read(os.path.join(directory, name), 1000).decode("ascii", "replace").strip()
        except (FileNotFoundError, StorageError):
            continue
        if tag and tag not in found and tag.isprintable():
            found.append(tag)
    return ", ".join(found)
