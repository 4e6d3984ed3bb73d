"""After the certificates: hooks and users hear of what changed, until they have heard.

What is outstanding is derived, not queued: the live certificate and its CAs are compared with what was
announced last. So a power cut between a swap and its hooks loses nothing, and a hook that failed is run
again, with back-off, until it succeeds. It never undoes a certificate.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from .. import crypto
from ..settings import Settings
from . import files, hooks, notify, schedule
from .config import Config
from .hooks import Event
from .log import Log
from .notes import State
from .store import Busy, Lock, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Settler", "content_of", "note_removal"]

REMOVED = ".removed.json"  # no friendly name begins with a dot
ROUNDS = 3  # what another run changed while hooks ran is looked for again


def content_of(tree: Tree, name: str) -> str:
    """What hooks have to hear of: the live certificate and its CAs; "" without one."""
    cert, cas = tree.read(name, "cert.pem"), tree.read(name, "cacerts.pem")
    return crypto.sha256(cert + (cas or b"")).hex()[:32] if cert else ""


def _removals(tree: Tree) -> dict[str, State]:
    try:
        found = json.loads(files.read(os.path.join(tree.store, REMOVED)))
    except (FileNotFoundError, ValueError):
        return {}
    return (
        {name: entry for name, entry in found.items() if isinstance(entry, dict)}
        if isinstance(found, dict)
        else {}
    )


def _keep_removals(tree: Tree, removals: Mapping[str, State]) -> None:
    path = os.path.join(tree.store, REMOVED)
    if removals:
        files.replace(path, json.dumps(removals, sort_keys=True, indent=1).encode(), 0o644, tree.owner)
    else:
        files.remove_tree(path)


def note_removal(tree: Tree, name: str, now: int) -> None:
    """Called before a certificate is removed: its hooks will hear of it, as they may have heard of the certificate,
    whether that was noted or not."""
    if tree.state(name).get("announced") or content_of(tree, name):
        _keep_removals(tree, {**_removals(tree), name: {"at": now}})


class Settler:
    """`lock`: the tree's lock; hooks run without it, so that they may look at the tree."""

    def __init__(
        self, config: Config, tree: Tree, log: Log, now: Callable[[], int], lock: Callable[[], Lock]
    ) -> None:
        self._config = config
        self._tree = tree
        self._log = log
        self._now = now
        self._lock = lock

    def settle(self, settings: Settings, *, paced: bool) -> bool:
        """Runs what is outstanding; False when a hook failed and waits to be run again.

        paced: hooks that failed wait until their time comes.
        """
        names = [cert.friendly_name for cert in settings.certs]
        self._forget_removals(names)
        turn = Lock(os.path.join(self._tree.store, ".lock"), 0.0)
        good = True
        try:
            turn.__enter__()
        except Busy:
            self._log.debug("another run is at the hooks")
        else:
            with contextlib.closing(turn):
                good = self._rounds(names, settings.show_user_notifications, paced)
        for name in names:
            self._show_failing(name, settings.show_user_notifications)
        return good

    def _rounds(self, names: Sequence[str], shown: bool, paced: bool) -> bool:
        good = True
        for _ in range(ROUNDS):
            waiting = self._outstanding(names, paced)
            if not waiting:
                break
            for event, content in waiting:
                good &= self._tell(event, content, shown=shown)
            paced = True  # what failed just now is not due again
        return good

    def _forget_removals(self, names: Iterable[str]) -> None:
        """What is wanted again was not removed: its hooks hear of the new certificate."""
        if set(_removals(self._tree)).intersection(names):
            with self._lock():
                left = {
                    name: entry for name, entry in _removals(self._tree).items() if name not in set(names)
                }
                _keep_removals(self._tree, left)

    def next_removal(self) -> int | None:
        """When the hooks of a removal that failed are run again; None when there are none."""
        troubles = (entry.get("hooks") for entry in _removals(self._tree).values())
        moments = [
            int(trouble.get("retry_at", 0)) if isinstance(trouble, dict) else 0 for trouble in troubles
        ]
        return min(moments, default=None)

    # ---- what is outstanding --------------------------------------------------------------------

    def _outstanding(self, names: Iterable[str], paced: bool) -> list[tuple[Event, str]]:
        """Events and the content that each is about."""
        found = []
        wanted = set(names)
        for name, entry in _removals(self._tree).items():
            if name not in wanted and self._is_time("removed", "", entry, paced):
                found.append((self._event("removed", name, "the settings no longer have it"), ""))
        for name in names:
            state = self._tree.state(name)
            content = content_of(self._tree, name)
            kind, reason = self._kind(state, content)
            if kind and self._is_time(kind, content, state, paced):
                found.append((self._event(kind, name, reason), content))
        return found

    def _kind(self, state: State, content: str) -> tuple[str, str]:
        """("", "") when hooks and users have heard of everything."""
        if content and content != state.get("announced"):
            return ("renewed" if state.get("announced") else "enrolled"), str(state.get("reason", ""))
        if state.get("error") and self._now() - int(state.get("failed_told", 0)) >= schedule.DAY:
            return "failed", str(state["error"])
        return "", ""

    def _event(self, kind: str, name: str, reason: str) -> Event:
        return Event(kind, name, os.path.join(self._tree.path, name), reason)

    def _is_time(self, kind: str, content: str, entry: Mapping[str, Any], paced: bool) -> bool:
        trouble = entry.get("hooks")
        if not paced or not isinstance(trouble, dict) or trouble.get("for") != f"{kind} {content}":
            return True
        return self._now() >= int(trouble.get("retry_at", 0))

    # ---- telling --------------------------------------------------------------------------------

    def _tell(self, event: Event, content: str, *, shown: bool) -> bool:
        if event.kind in {"enrolled", "renewed"}:
            self._show_new(event, content, shown)
        heard = hooks.run(self._config, event, self._log, self._done(event, content))
        with self._lock():
            if event.kind == "removed":
                self._note_removed(event, heard)
            else:
                self._note(event, content, heard)
        return not heard.failed

    def _done(self, event: Event, content: str) -> Sequence[str]:
        """Hooks that heard of this very event when others failed: they are left in peace."""
        name = event.friendly_name
        entry = _removals(self._tree).get(name, {}) if event.kind == "removed" else self._tree.state(name)
        trouble = entry.get("hooks")
        if not isinstance(trouble, dict) or trouble.get("for") != f"{event.kind} {content}":
            return ()
        return [str(name) for name in trouble.get("heard", ())]

    def _note_removed(self, event: Event, heard: hooks.Heard) -> None:
        removals = _removals(self._tree)
        entry = removals.pop(event.friendly_name, None)
        if entry is not None and heard.failed:
            removals[event.friendly_name] = {**entry, "hooks": self._trouble(entry, event, "", heard)}
        _keep_removals(self._tree, removals)

    def _note(self, event: Event, content: str, heard: hooks.Heard) -> None:
        name = event.friendly_name
        if name not in self._tree.names():
            return  # removed meanwhile
        state = self._tree.state(name)
        if heard.failed:
            state["hooks"] = self._trouble(state, event, content, heard)
        else:
            state.pop("hooks", None)
            if event.kind == "failed":
                state["failed_told"] = self._now()
            else:
                state["announced"] = content
        self._tree.save_state(name, state)

    def _trouble(self, entry: Mapping[str, Any], event: Event, content: str, heard: hooks.Heard) -> State:
        about = f"{event.kind} {content}"
        before = entry.get("hooks")
        count = 1
        if isinstance(before, dict) and before.get("for") == about:
            count = int(before.get("failures", 0)) + 1
        again = schedule.hook_retry(count, self._now())
        self._log.info(
            f"{event.friendly_name}: the hooks for {event.kind} are run again in {again - self._now()} seconds"
        )
        return {
            "for": about,
            "event": event.kind,
            "failures": count,
            "retry_at": again,
            "error": heard.failed[:500],
            "heard": list(heard.heard),
        }

    # ---- users ----------------------------------------------------------------------------------

    def _show_new(self, event: Event, content: str, shown: bool) -> None:
        """Once for each content, whatever the hooks say of it."""
        name = event.friendly_name
        with self._lock():
            state = self._tree.state(name)
            if state.get("notified") == content:
                return
            self._tree.save_state(name, {**state, "notified": content})
        end = state.get("not_after")
        until = time.strftime("%Y-%m-%d", time.gmtime(end)) if isinstance(end, int) else "further notice"
        note = notify.enrolled(name, until) if event.kind == "enrolled" else notify.renewed(name, until)
        if shown:
            notify.send(self._config, note, self._log)

    def _show_failing(self, name: str, shown: bool) -> None:
        """Once a day; a single failure that may pass is nobody's business yet."""
        state = self._tree.state(name)
        lasting = state.get("refused") or int(state.get("failures", 0)) > 1
        if not state.get("error") or not lasting:
            return
        if self._now() - int(state.get("failed_shown", 0)) < schedule.DAY:
            return
        with self._lock():
            state = self._tree.state(name)
            self._tree.save_state(name, {**state, "failed_shown": self._now()})
        left = int(state.get("not_after", 0)) - self._now()
        days = left // schedule.DAY if left > 0 else None
        if shown:
            text = notify.refused if state.get("refused") else notify.failing
            notify.send(self._config, text(name, days), self._log)
