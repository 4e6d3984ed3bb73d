"""ca-proxy audit: who changed what, for people, as JSON lines, and to syslog."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    position = auditexport.kept_position(args.position) if args.position else 0
    if args.since is not None:
        position = max(position, auditexport.position_at(context, args.since))
    mark = _Mark(args.position, position)

    def follow() -> bool:
        mark.keep()
        return bool(args.follow)

    with mark, auditexport.Syslog(args.syslog) if args.syslog else nullcontext() as syslog:
        for row in auditexport.lines(context, position, follow):
            if syslog is not None:
                syslog.send(row)
            else:
                print(json.dumps(auditexport.as_json(row), ensure_ascii=False), flush=args.follow)
            mark.reached(row.id)
    return 0


class _Mark:
    """How far it came, in a file now and then: after a crash some lines come twice, and none is missing."""

    def __init__(self, path: Path | None, position: int) -> None:
        self._path = path
        self._kept = self._position = position

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.keep()

    def reached(self, position: int) -> None:
        self._position = position
        if position - self._kept >= EVERY:
            self.keep()

    def keep(self) -> None:
        if self._path is not None and self._position != self._kept:
            auditexport.keep_position(self._path, self._position)
            self._kept = self._position
