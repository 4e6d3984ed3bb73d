"""The certificate tree: one directory a generation, swapped by one rename.

    <wfs>/igel-certs/<FRIENDLY NAME>                 link to .store/<FRIENDLY NAME>/gen-0007
    <wfs>/igel-certs/.store/<FRIENDLY NAME>/
        gen-0007/{cert.pem,cert.pfx,pkey.pem,cacerts.pem,cacerts/<CN>.pem}
        state.json                                   what `status` shows, last error, next renewal
        pending/{pkey.pem,csr.der,pending.json}      a request that the CA has not answered yet

Paths never change between renewals. The generation before the live one stays until the next swap, for
readers that have it open. `status` imports this module: it stays small.
"""

from __future__ import annotations

import json
import os

from ..errors import StorageError
from . import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["Busy", "Lock", "Tree", "safe_name"]

TREE = "igel-certs"
STORE = ".store"
VERSION = 1


class Tree:
    """The tree below a /wfs. `owner` (uid, gid) may read the keys. The directories stay root's: whoever could
    rename in them could lead root's next run elsewhere."""

    def __init__(self, wfs: str, owner: files.Owner = None) -> None:
        self.wfs = wfs
        self.path = os.path.join(wfs, TREE)
        self.store = os.path.join(self.path, STORE)
        self.owner = owner
        self.dir_owner = (os.geteuid(), owner[1]) if owner else None
        uid, gid = owner or (os.geteuid(), os.getegid())
        # a group may look around; an owner, who need not be in it, may pass
        self.dir_mode = 0o700 | (0o050 if gid != os.getegid() else 0) | (0o011 if uid != os.geteuid() else 0)
        self.key_mode = 0o640 if owner else 0o600

    # ---- reading --------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Friendly names that the store knows, sorted."""
        try:
            entries = os.listdir(self.store)
        except FileNotFoundError:
            return []
        except OSError as err:
            raise files.failure(err, "read", self.store) from None
        return sorted(
            name
            for name in entries
            if not name.startswith(".") and os.path.isdir(os.path.join(self.store, name))
        )

    def live(self, name: str) -> str | None:
        """The directory that readers see, or None."""
        path = os.path.join(self.path, name)
        return path if os.path.islink(path) and os.path.isdir(path) else None

    def read(self, name: str, file: str) -> bytes | None:
        """A file of the live generation; None when it is not there."""
        try:
            return files.read(os.path.join(self.path, name, file))
        except FileNotFoundError:
            return None

    def singles(self, name: str) -> list[bytes]:
        """The files of cacerts/ of the live generation."""
        home = os.path.join(self.path, name, "cacerts")
        try:
            return [files.read(os.path.join(home, entry)) for entry in sorted(os.listdir(home))]
        except OSError:
            return []

    def state(self, name: str) -> dict[str, Any]:
        """The certificate's state; empty when there is none or it is damaged (it can be derived anew)."""
        try:
            found = json.loads(files.read(os.path.join(self.store, name, "state.json")))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("version") == VERSION else {}

    # ---- writing --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """The tree's own directories, with their modes."""
        files.make_lasting_dir(self.path, self.dir_mode, self.dir_owner)
        files.make_lasting_dir(self.store, self.dir_mode, self.dir_owner)

    def tidy(self) -> None:
        """Removes what runs left that were cut. Under the lock."""
        files.sweep(self.path, lambda name, _path: name.startswith("."))
        files.sweep(self.store)
        for name in self.names():
            live = _number(self._live_generation(name))
            home = os.path.join(self.store, name)
            for entry in self._entries(home):
                # what lies before the live generation stays until the next swap
                if ".new" in entry or _number(entry) > live:
                    files.remove_tree(os.path.join(home, entry))
            if self.pending(name) is None:
                self.drop_pending(name)

    def lock(self, seconds: float) -> Lock:
        """Keeps a second run out; waits so long for another to end."""
        self.prepare()
        return Lock(os.path.join(self.path, ".lock"), seconds)

    def save_state(self, name: str, state: dict[str, Any]) -> None:
        self._home(name)
        text = json.dumps({**state, "version": VERSION}, sort_keys=True, indent=1)
        files.replace(os.path.join(self.store, name, "state.json"), text.encode(), 0o644, self.owner)

    def _home(self, name: str) -> str:
        home = os.path.join(self.store, name)
        if os.path.isdir(home):
            files.settle(home, self.dir_mode, self.dir_owner)
        else:
            # not what is above it: who has the lock has prepared that, and a /wfs that went away is not made again
            files.make_lasting_dir(home, self.dir_mode, self.dir_owner)
        return home

    def share(self, name: str) -> None:
        """Owners and modes of what is there already: the image may say anew who reads it."""
        home = self._home(name)
        for generation in self._generations(home):
            for place, _, entries in os.walk(os.path.join(home, generation)):
                files.settle(place, self.dir_mode, self.dir_owner)
                for entry in entries:
                    secret = entry in {"pkey.pem", "cert.pfx"}
                    files.settle(os.path.join(place, entry), self.key_mode if secret else 0o644, self.owner)

    def place(self, name: str) -> str:
        """Where readers find it: nothing, or a link of ours; StorageError when something else stands there."""
        link = os.path.join(self.path, name)
        if os.path.lexists(link) and not os.path.islink(link):
            raise StorageError(
                f"{link} is there and is not ours", hint="move it away; igel-certs puts a link there"
            )
        return link

    def put(
        self,
        name: str,
        write_key: Callable[[int], None],
        write_pfx: Callable[[int], None],
        cert: str,
        cas: Iterable[tuple[str, str]],
    ) -> None:
        """A new generation, then the swap. `cas`: (common name, PEM) in the order of cacerts.pem."""
        link = self.place(name)
        home = self._home(name)
        self.sweep(name)
        generation = self._next(home)
        work = os.path.join(home, ".new")
        files.make_dir(work, self.dir_mode, self.dir_owner)
        certs = list(cas)
        files.write_new(os.path.join(work, "pkey.pem"), write_key, self.key_mode, self.owner)
        files.write_new(os.path.join(work, "cert.pem"), cert.encode(), 0o644, self.owner)
        files.write_new(os.path.join(work, "cert.pfx"), write_pfx, self.key_mode, self.owner)
        every = "".join(pem for _, pem in certs).encode()
        files.write_new(os.path.join(work, "cacerts.pem"), every, 0o644, self.owner)
        singles = os.path.join(work, "cacerts")
        files.make_dir(singles, self.dir_mode, self.dir_owner)
        taken: set[str] = set()
        for common_name, pem in certs:
            file = unique(safe_name(common_name), taken)
            files.write_new(os.path.join(singles, f"{file}.pem"), pem.encode(), 0o644, self.owner)
        files.fsync_dir(singles)
        files.fsync_dir(work)
        files.rename(work, os.path.join(home, generation))
        files.symlink(os.path.join(STORE, name, generation), link)

    def _generations(self, home: str) -> list[str]:
        return sorted((entry for entry in self._entries(home) if entry.startswith("gen-")), key=_number)

    def _entries(self, home: str) -> list[str]:
        try:
            return os.listdir(home)
        except OSError as err:
            raise files.failure(err, "read", home) from None

    def _live_generation(self, name: str) -> str:
        try:
            return os.path.basename(os.readlink(os.path.join(self.path, name)))
        except OSError:
            return ""

    def _next(self, home: str) -> str:
        found = self._generations(home)
        return f"gen-{(_number(found[-1]) if found else 0) + 1:04d}"

    def sweep(self, name: str) -> None:
        """Removes what cut-off runs left, and generations before the live one."""
        home = os.path.join(self.store, name)
        live = self._live_generation(name)
        for entry in self._entries(home):
            stale = entry.startswith("gen-") and entry != live
            if stale or ".new" in entry:
                files.remove_tree(os.path.join(home, entry))

    def remove(self, name: str) -> None:
        """All of a certificate that left the settings: first what readers see, then the store."""
        link = os.path.join(self.path, name)
        if os.path.islink(link):
            files.remove_tree(link)
            files.fsync_dir(self.path)
        files.remove_tree(os.path.join(self.store, name))

    # ---- pending requests -----------------------------------------------------------------------

    def pending_dir(self, name: str) -> str:
        return os.path.join(self.store, name, "pending")

    def pending(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """(what was noted, CSR) of a request under way, or None; a damaged one counts as none."""
        home = self.pending_dir(name)
        try:
            note = json.loads(files.read(os.path.join(home, "pending.json")))
            csr = files.read(os.path.join(home, "csr.der"))
        except (FileNotFoundError, ValueError):
            return None
        return (note, csr) if isinstance(note, dict) else None

    def put_pending(
        self, name: str, note: dict[str, Any], csr: bytes, write_key: Callable[[int], None]
    ) -> None:
        """Key, CSR and note, on disk before the request leaves; renamed into place as a whole."""
        home = self._home(name)
        self.drop_pending(name)
        work = os.path.join(home, ".new-pending")
        files.remove_tree(work)
        files.make_dir(work, 0o700)
        files.write_new(os.path.join(work, "pkey.pem"), write_key, 0o600)
        files.write_new(os.path.join(work, "csr.der"), csr, 0o600)
        files.write_new(os.path.join(work, "pending.json"), json.dumps(note).encode(), 0o600)
        files.fsync_dir(work)
        files.rename(work, self.pending_dir(name))

    def drop_pending(self, name: str) -> None:
        files.remove_tree(self.pending_dir(name))


class Busy(StorageError):
    """Somebody else holds the lock."""


class Lock:
    """An flock that waits; a context manager. program: who else would hold it."""

    def __init__(self, path: str, seconds: float, program: str = "igel-certs") -> None:
        self._path = path
        self._seconds = seconds
        self._program = program
        self._handle = -1

    def __enter__(self) -> Lock:
        import fcntl
        import time

        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise files.failure(err, "lock", self._path) from None
        end = time.monotonic() + self._seconds
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except BlockingIOError:
                if time.monotonic() >= end:
                    os.close(self._handle)
                    raise Busy(
                        f"another {self._program} is at work on this tree",
                        hint="wait for it, or look what holds it up",
                    ) from None
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._handle)


def _number(generation: str) -> int:
    digits = generation[4:]
    return int(digits) if generation.startswith("gen-") and digits.isdecimal() else 0


def safe_name(common_name: str, limit: int = 100) -> str:
    """A common name as a file name: no separators, control characters, leading dots; at most `limit` bytes."""
    kept = "".join("_" if char in "/\\" or not char.isprintable() else char for char in common_name).strip()
    kept = kept.lstrip(".").strip() or "ca"
    return kept.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def unique(name: str, taken: set[str]) -> str:
    """name, name-2, name-3 ...: the first that is not taken; takes it."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}-{count}"
    taken.add(found)
    return found
