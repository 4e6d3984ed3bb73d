"""Log lines: syslog under the program's name, and stderr for people. One event, one line, no secrets."""

from __future__ import annotations

import sys
import syslog

__all__ = ["LEVELS", "Log"]

LEVELS = {
    "debug": syslog.LOG_DEBUG,
    "info": syslog.LOG_INFO,
    "warning": syslog.LOG_WARNING,
    "error": syslog.LOG_ERR,
}


class Log:
    """`screen`: write to stderr as well. `quiet`: nothing there, not even errors: somebody else's stderr goes
    to the journal, too. Lines below `level` go nowhere."""

    _opened = ""  # syslog has one identifier for the process

    def __init__(self, program: str, *, screen: bool, level: str = "info", quiet: bool = False) -> None:
        self._program = program
        self._screen = screen
        self._quiet = quiet
        self._name = level
        self._level = LEVELS[level]

    def named(self, program: str) -> Log:
        """The same under another identifier."""
        return Log(program, screen=self._screen, level=self._name, quiet=self._quiet)

    def _write(self, level: str, text: str) -> None:
        if LEVELS[level] > self._level:
            return
        line = "".join(char if char.isprintable() else " " for char in text)[:1000]
        if Log._opened != self._program:
            syslog.openlog(self._program, syslog.LOG_PID, syslog.LOG_DAEMON)
            Log._opened = self._program
        syslog.syslog(LEVELS[level], line)
        if self._quiet:
            return
        if self._screen or level == "error" or (level == "warning" and sys.stderr.isatty()):
            shown = f"{level}: {line}" if level in {"warning", "error"} else line
            print(f"{self._program}: {shown}", file=sys.stderr, flush=True)

    def debug(self, text: str) -> None:
        self._write("debug", text)

    def info(self, text: str) -> None:
        self._write("info", text)

    def warning(self, text: str) -> None:
        self._write("warning", text)

    def error(self, text: str) -> None:
        self._write("error", text)

    def hint(self, text: str) -> None:
        """What to do about the error before; for people only."""
        if text and not self._quiet:
            print(f"{self._program}: hint: {text}", file=sys.stderr, flush=True)
