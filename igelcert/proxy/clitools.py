"""What the commands of ca-proxy share: their parser, their output, reading files that hold secrets."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..codec.http import plain_line
from ..errors import Error, SettingsError, StorageError
from ..words import is_text, shown

__all__ = [
    "Output",
    "Parser",
    "UsageError",
    "agree",
    "count",
    "duration",
    "progress",
    "read_file",
    "read_password",
    "when",
]

MAX_FILE = 4 << 20


class UsageError(Error):
    """The command line does not say what is needed."""


# options whose empty value says something: anything, none, as the CA has it
EMPTY = {"search", "label", "profile", "fingerprint", "ndes_url", "ndes_user"}


class Parser(argparse.ArgumentParser):
    """It refuses octets that are no text where text is wanted, and an empty value, as of a variable that is not set:
    it must not pass for an option that was not given, nor for the file name "."."""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if not isinstance(action, argparse._SubParsersAction):
            for word in arg_strings:
                self._look_at(action, word)
        return super()._get_values(action, arg_strings)

    @staticmethod
    def _look_at(action: argparse.Action, word: str) -> None:
        is_file = action.type is Path
        if not word and (
            is_file or (action.option_strings and not action.required and action.dest not in EMPTY)
        ):
            raise argparse.ArgumentError(action, "is empty")
        if is_text(word):
            return
        if not is_file:
            raise argparse.ArgumentError(action, f"'{plain_line(shown(word), 80)}' is not UTF-8")
        if action.dest == "data":
            raise argparse.ArgumentError(action, "the name of a data directory must be UTF-8")

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: error: {message}\n")


class Output:
    """stdout. Foreign text loses its control characters."""

    def line(self, text: str = "") -> None:
        print("".join(char if char.isprintable() else "?" for char in text))

    def json(self, value: Any) -> None:
        print(json.dumps(value, indent=2, ensure_ascii=False))

    def table(self, heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        clean = [[plain_line(cell, 200) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [list(heading), *clean]) for i in range(len(heading))]
        for row in [list(heading), *clean]:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def agree(args: argparse.Namespace, text: str) -> None:
    """Asks on a terminal before something is gone for good; UsageError where nobody agrees. args.yes: agreed to."""
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{text} Nothing was changed", hint="--yes does it without asking")
    if input(f"{text} Go on? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was changed")


def when(moment: int | None) -> str:
    """A time for people, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment)) if moment else "-"


def count(text: str) -> int:
    """An argument that is 0 or more."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def duration(text: str) -> int:
    """An argument such as 90s, 30m, 6h or 2d, in seconds."""
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3_600, "d": 86_400}.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdecimal()) or len(number) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 30m, 6h or 2d")
    return int(number) * unit


def read_file(option: str, path: Path, most: int = MAX_FILE) -> bytes:
    """most: octets that it may have."""
    try:
        with path.open("rb") as file:
            found = file.read(most + 1)  # a device has no size, and may have no end
    except OSError as err:
        raise StorageError(f"{option}: cannot read {path}: {err.strerror}") from None
    if len(found) > most:
        raise SettingsError(option, f"{path} is larger than {most >> 20} MiB")
    return found


def progress(text: str) -> None:
    """How far it is, on a terminal alone: one line, over which the next one is written."""
    if sys.stderr.isatty():
        print(text, end="\r", file=sys.stderr, flush=True)


def read_password(option: str, path: Path) -> str:
    """The first line of a file, without its line end."""
    try:
        text = read_file(option, path).decode("utf-8")
    except UnicodeDecodeError:
        raise SettingsError(option, f"{path} is not UTF-8") from None
    return text.partition("\n")[0].rstrip("\r")
