"""ca-proxy audit: who changed what, for people, as JSON lines, and to syslog."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import Error, StorageError
from . import audit, auditexport
from .clitools import Output, UsageError, count, when
from .context import Context

__all__ = ["add_command"]

EVERY = 100  # lines between two notes of how far it came

TEXT = """\
Who changed what, the newest first. Nothing is ever changed or removed in this log: the database refuses it.

With --lines or --syslog it is given to other programs, the oldest line first: all of it, from --since on, or from where
the file of --position says that the last run ended. --follow goes on with what is written from then on, until it is ended.
"""


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    made = commands.add_parser(
        "audit", help="who changed what, the newest first", description=TEXT, parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--search", default="", metavar="TEXT", help="in actor, action or detail")
    made.add_argument("--limit", type=count, default=100, metavar="N", help="at most N (default 100; 0: all)")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--lines", action="store_true", help="print JSON lines, one for each")
    form.add_argument(
        "--syslog", default="", metavar="TARGET",
        help="send to syslog (RFC 5424): the path of its socket, as /dev/log; udp:HOST:PORT or tcp:HOST:PORT",
    )  # fmt: skip
    made.add_argument(
        "--since", type=_moment, metavar="WHEN", help="from then on: 2026-01-31, or 2026-01-31T12:00:00Z; UTC"
    )
    made.add_argument("--follow", action="store_true", help="go on with what is written from now on")
    made.add_argument(
        "--position",
        type=Path,
        metavar="FILE",
        help="begin where this file says, and keep there how far it came",
    )
    made.set_defaults(function=_audit, opens=True)


def _moment(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def _audit(args: argparse.Namespace, output: Output, context: Context) -> int:
    if args.lines or args.syslog:
        return _export(args, context)
    if args.follow or args.position:
        raise UsageError("--follow and --position are for --lines and --syslog")
    found = audit.listing(context, search=args.search, limit=args.limit, since=args.since or 0).items
    if args.json:
        keys = ("at", "actor", "action", "detail")
        output.json([{key: getattr(row, key) for key in keys} for row in found])
        return 0
    output.table(
        ("WHEN (UTC)", "WHO", "WHAT", "DETAIL"),
        [[when(row.at), row.actor, row.action, row.detail] for row in found],
    )
    return 0


def _export(args: argparse.Namespace, context: Context) -> int:
    marks = _marks(args.position, context) if args.position else []
    position = marks[0].id if marks else 0
    if args.since is not None:
        position = max(position, auditexport.position_at(context, args.since))
    file = auditexport.file_of(context)
    with closing(
        auditexport.Syslog(args.syslog) if args.syslog else auditexport.Printed(at_once=args.follow)
    ) as target:
        trail = _Trail(args.position, marks, target)

        def follow() -> bool:
            trail.keep()
            if auditexport.file_of(context) != file:
                raise StorageError("the database was replaced meanwhile", hint="start this command again")
            return bool(args.follow)

        try:
            for row in auditexport.lines(context, position, follow):
                target.send(row)
                trail.reached(row)
        except BaseException:
            trail.leave()
            raise
        trail.finish()
    return 0


def _marks(path: Path, context: Context) -> list[auditexport.Mark]:
    """Where it goes on. What is no line of this log is said, and no reason to pass over others."""
    noted = auditexport.kept_marks(path)
    found = auditexport.still_true(context, noted)
    if noted and found[:1] != noted[:1]:
        where = f"what comes after line {found[0].id}" if found else "all of it"
        print(
            f"ca-proxy: warning: {path} says line {noted[0].id}, which this audit log does not have, or not so: "
            f"was the database restored? {where} is given, some of it perhaps once more",
            file=sys.stderr,
        )
    return found


class _Trail:
    """How far it came, in a file now and then: after a crash some lines come twice, and none is missing."""

    def __init__(
        self,
        path: Path | None,
        marks: list[auditexport.Mark],
        target: auditexport.Syslog | auditexport.Printed,
    ) -> None:
        self._path = path
        self._marks = marks
        self._target = target
        self._count = 0
        self._row: Any = None  # the last one that was sent
        self._settled: Any = None  # the last one that was sent before the target was known to be there

    def reached(self, row: Any) -> None:
        self._row = row
        self._count += 1
        if self._count >= EVERY:
            self.keep()

    def keep(self) -> None:
        self._target.settle()
        self._note(self._settled if self._target.lags else self._row)
        self._settled, self._count = self._row, 0

    def finish(self) -> None:
        self._target.finish()
        self._note(self._row)

    def leave(self) -> None:
        """It failed or is ended: notes what is certain."""
        if not self._target.lags:
            with suppress(Error, OSError):
                self.keep()

    def _note(self, row: Any) -> None:
        if self._path is None or row is None or (self._marks and self._marks[0].id == row.id):
            return
        self._marks = auditexport.with_mark(self._marks, row)
        auditexport.keep_marks(self._path, self._marks)
