"""The commands that deal with the database itself: join, migrate, copy; and how a URL is given to them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import StorageError
from . import postgres
from .clitools import Output, UsageError, progress, read_password
from .context import Context
from .initialise import Initialised

__all__ = ["add_commands", "add_place", "add_url", "show", "url_of"]


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    def add(name: str, function: Any, text: str, **defaults: Any) -> Any:
        made = commands.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(function=function, **{"opens": False, **defaults})
        return made

    more = add("join", _join, "make the data directory of one more proxy on a PostgreSQL database")
    add_url(more, "--database", "the PostgreSQL database that the first proxy was made with", required=True)
    more.add_argument(
        "--master-key", type=Path, required=True, metavar="FILE", help="master.key of the first proxy"
    )
    more.add_argument(
        "--hostname", nargs="+", default=[], metavar="NAME",
        help="names in this proxy's certificate (default: those of the first proxy)",
    )  # fmt: skip
    add_place(more)
    add("migrate", _migrate, "bring the database up to this version; safe to run again")
    away = add(
        "copy",
        _copy,
        "copy the embedded database to an empty PostgreSQL one, whole or not at all; the proxy must not run",
    )
    add_url(away, "--to", "the PostgreSQL database that it goes to", required=True)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options of a data directory that is made."""
    parser.add_argument(
        "--listen", default="0.0.0.0:8443", metavar="HOST:PORT", help="for devices (default 0.0.0.0:8443)"
    )
    parser.add_argument(
        "--admin-listen",
        default="127.0.0.1:8444",
        metavar="HOST:PORT",
        help="for administration and monitoring (default 127.0.0.1:8444)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_url(parser: argparse.ArgumentParser, option: str, text: str, *, required: bool) -> None:
    parser.add_argument(
        option, metavar="URL", required=required,
        help=f"{text}: postgresql://USER@HOST/NAME, without a password",
    )  # fmt: skip
    parser.add_argument(
        f"{option}-password-file", type=Path, metavar="FILE",
        help="its password, in the first line; without, libpq looks for PGPASSWORD and ~/.pgpass",
    )  # fmt: skip


def url_of(args: argparse.Namespace, option: str) -> str:
    """The URL that was given, with its password; "" when none was."""
    name = option.strip("-")
    file: Path | None = getattr(args, f"{name}_password_file")
    if getattr(args, name) is None:
        if file is not None:
            raise UsageError(f"{option}-password-file is of no use without {option}")
        return ""
    password = None if file is None else read_password(f"{option}-password-file", file)
    return postgres.given(option, getattr(args, name), password)


def show(args: argparse.Namespace, output: Output, done: Initialised) -> None:
    """What was made."""
    data = args.data
    if args.json:
        found = {"data": str(data), "trust": str(done.trust), "sha256": done.fingerprint}
        if done.admin_password:
            found["admin_password"] = done.admin_password
        output.json(found)
        return
    output.line(f"Data directory       {data}  (back it up: ca-proxy backup)")
    output.line(f"Devices trust        {done.trust}")
    output.line(f"its SHA-256          {done.fingerprint}")
    if done.admin_password:
        output.line(
            f"Password of 'admin'  {done.admin_password}  (shown this once; the first login asks for a new one)"
        )


def _join(args: argparse.Namespace, output: Output) -> int:
    from .initialise import join

    url = url_of(args, "--database")
    done = join(args.data, url, args.master_key, args.hostname, args.listen, args.admin_listen)
    show(args, output, done)
    return 0


def _migrate(args: argparse.Namespace, output: Output) -> int:
    Context(args.data).db.migrate()
    output.line("the database is up to date")
    return 0


def _copy(args: argparse.Namespace, output: Output) -> int:
    from .copying import copy

    url = url_of(args, "--to")
    _must_rest(args.data)
    context = Context.open(args.data)
    rows = 0
    try:
        for table, done, total in copy(context, url):
            if done == total:
                print(f"{table}: {done} of {total}", file=sys.stderr, flush=True)
            elif done:
                progress(f"{table}: {done} of {total}")
            else:
                rows += total
    finally:
        context.db.close()
    output.line(f"{rows} rows are in {postgres.shown(url)}, each compared with its source")
    output.line("to serve from there, make new data directories with: ca-proxy join --master-key")
    return 0


def _must_rest(data: Path) -> None:
    """What a running proxy would write after the copy was begun would be missing there."""
    try:
        pid = int(json.loads((data / "run.json").read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return
    raise StorageError(f"a proxy serves {data} (process {pid})", hint="stop it first")
