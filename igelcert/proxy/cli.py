"""The command ca-proxy."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import Error, SettingsError, TransportError, UnavailableError
from ..words import is_text
from . import cli_admin, cli_ca, cli_database, cli_operation, cli_registry, cli_renewals
from .clitools import Output, Parser, UsageError
from .context import Context

__all__ = ["main"]

DESCRIPTION = """\
A registration authority between devices and a company's PKI.

It knows the devices, holds the CA's credentials so that no device has them, checks each certificate
request against the profile assigned to its device, and relays it to the CA over EST (RFC 7030) or SCEP (RFC 8894).
"""
EPILOG = """\
first steps:
  ca-proxy init --data /var/lib/ca-proxy --hostname proxy.example
  export CA_PROXY_DATA=/var/lib/ca-proxy
  ca-proxy ca set-est --name Office --host ca.example --label Devices \\
      --keystore ra.p12 --keystore-password-file ra.password
  ca-proxy ca test
  ca-proxy profile set lan --settings lan.json
  ca-proxy profile assign lan --directory /Berlin
  ca-proxy device add --unit-id 00E0C5123456 --directory /Berlin
  ca-proxy serve

environment:
  CA_PROXY_DATA  the data directory, where --data is not given

exit status:
  0 done    1 failed    64 usage    75 temporary failure, worth another try    78 bad settings
"""


def _parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--data", type=Path, metavar="DIR", help="data directory (default: $CA_PROXY_DATA)")
    parser = Parser(
        prog="ca-proxy",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    init = _command(
        commands,
        common,
        "init",
        _init,
        "make the data directory: database, management CA, master key, server certificate",
    )
    init.add_argument(
        "--hostname", nargs="+", required=True, metavar="NAME",
        help="host names or addresses by which devices call this proxy; they stand in its certificate",
    )  # fmt: skip
    cli_database.add_place(init)
    cli_database.add_url(
        init, "--database", "a PostgreSQL database instead of the embedded one", required=False
    )

    run = _command(
        commands, common, "serve", _serve, "serve devices, and administration on a port of its own"
    )
    run.add_argument(
        "--listen",
        default="",
        metavar="HOST:PORT",
        help="for devices; port 0 takes a free one (DIR/run.json)",
    )
    run.add_argument(
        "--admin-listen",
        default="",
        metavar="HOST:PORT",
        help="for the pages, /api/v1, /healthz, /readyz and /metrics",
    )
    run.add_argument(
        "--drain", type=int, metavar="SECONDS",
        help="after SIGTERM: so long /readyz says 503 and requests are still taken, so that a balancer sends them elsewhere",
    )  # fmt: skip

    front = _command(
        commands, common, "front-files", _front_files,
        "write what a front end that ends TLS needs: a certificate of the management CA, and whose devices' are",
    )  # fmt: skip
    front.add_argument(
        "--hostname",
        nargs="+",
        required=True,
        metavar="NAME",
        help="by which devices call the front end, as in their `server`; with another one they say: Hostname mismatch",
    )
    front.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="DIR",
        help="for server.pem (with its key), trust.pem and clients.pem",
    )
    front.set_defaults(opens=True)

    cli_ca.add_commands(commands, common)
    cli_registry.add_commands(commands, common)
    cli_renewals.add_commands(commands, common)
    cli_admin.add_commands(commands, common)
    cli_database.add_commands(commands, common)
    cli_operation.add_commands(commands, common)
    return parser


def _command(
    commands: Any, common: argparse.ArgumentParser, name: str, function: Callable[..., int], text: str
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[common])
    made.set_defaults(function=function, opens=False)
    return made


def _init(args: argparse.Namespace, output: Output) -> int:
    from .initialise import initialise

    database = cli_database.url_of(args, "--database")
    done = initialise(args.data, args.hostname, args.listen, args.admin_listen, database)
    cli_database.show(args, output, done)
    return 0


def _front_files(args: argparse.Namespace, output: Output, context: Context) -> int:
    from .frontfiles import write

    for path in write(context, args.to, args.hostname):
        output.line(str(path))
    return 0


def _serve(args: argparse.Namespace, _output: Output) -> int:
    from .serve import serve

    return serve(args.data, args.listen, args.admin_listen, args.drain)


def _run(args: argparse.Namespace) -> int:
    output = Output()
    if args.data is None:
        named = os.environ.get("CA_PROXY_DATA")
        if not named:
            raise UsageError("no data directory is named", hint="give --data DIR or set CA_PROXY_DATA")
        if not is_text(named):
            raise UsageError("CA_PROXY_DATA: the name of a data directory must be UTF-8")
        args.data = Path(named)
    if not args.opens:
        return int(args.function(args, output))
    context = Context.open(args.data)
    try:
        return int(args.function(args, output, context))
    finally:
        context.db.close()


def main(argv: Sequence[str] | None = None) -> int:
    started = time.time()
    parser = _parser()
    args = parser.parse_args(argv)
    args.started = started
    try:
        code = _run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except Error as err:
        print(f"ca-proxy: error: {_as_typed(err, _placed(parser, args))}", file=sys.stderr)
        if err.hint:
            print(f"ca-proxy: hint: {err.hint}", file=sys.stderr)
        return _code(err)
    except OSError as err:
        # nothing more may go there, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(err, BrokenPipeError):
            what = f"cannot use {err.filename}" if err.filename else "cannot write the output"
            print(f"ca-proxy: error: {what}: {err.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _placed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> set[str]:
    """Names of the command's arguments that are given by their place."""
    found: set[str] = set()
    while True:
        commands = next(
            (each for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None
        )
        found |= {each.dest for each in parser._actions if not each.option_strings and each is not commands}
        if commands is None:
            return found
        parser = commands.choices[getattr(args, commands.dest)]


def _as_typed(err: Error, placed: set[str]) -> str:
    """The error's text; the functions below name options, and some of these are given by their place here."""
    if isinstance(err, SettingsError) and err.path == "friendly_name":
        return f"--name: {err.reason}"
    if isinstance(err, SettingsError) and err.path.removeprefix("--").replace("-", "_") in placed:
        return f"{err.path.removeprefix('--')}: {err.reason}"
    return str(err)


def _code(err: Error) -> int:
    if isinstance(err, UsageError):
        return 64
    if isinstance(err, SettingsError):
        return 78
    return 75 if isinstance(err, TransportError | UnavailableError) else 1


if __name__ == "__main__":
    sys.exit(main())
