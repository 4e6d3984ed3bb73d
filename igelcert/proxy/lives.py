"""Which processes that serve a directory live: each has a number, and a lock of it that the kernel takes from who dies.

That says it of processes whose main process died, too, and of those of an earlier start that end only now.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

__all__ = ["Lives"]


class Lives:
    """Of one process. path: of the file, the same for all. OSError. There may be one object of a path in a process: the
    locks of lockf(3) are of processes, and go where one closes the file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.own = secrets.randbits(62)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.own)
        except OSError:  # a file system without locks; whoever tries again is not to run out of descriptors
            os.close(self._file)
            raise

    def has(self, number: int) -> bool:
        """Does the process with that number live? Yes, too, where nothing can be said."""
        if number == self.own:
            return True
        try:
            # shared: two that look at the same time do not take each other for it
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, number)
        except OSError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)
        return False
