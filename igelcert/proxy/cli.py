"""The command ca-proxy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import Error, SettingsError, TransportError
from . import cli_admin, cli_ca, cli_registry
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
    init.add_argument(
        "--listen", default="0.0.0.0:8443", metavar="HOST:PORT", help="for devices (default 0.0.0.0:8443)"
    )
    init.add_argument(
        "--admin-listen",
        default="127.0.0.1:8444",
        metavar="HOST:PORT",
        help="for administration and monitoring (default 127.0.0.1:8444)",
    )
    init.add_argument("--json", action="store_true", help="print JSON")

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

    cli_ca.add_commands(commands, common)
    cli_registry.add_commands(commands, common)
    cli_admin.add_commands(commands, common)
    _command(
        commands, common, "migrate", _migrate, "bring the database up to this version; safe to run again"
    )
    return parser


def _command(
    commands: Any, common: argparse.ArgumentParser, name: str, function: Callable[..., int], text: str
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[common])
    made.set_defaults(function=function, opens=False)
    return made


def _init(args: argparse.Namespace, output: Output) -> int:
    from .initialise import initialise

    data = args.data
    done = initialise(data, args.hostname, args.listen, args.admin_listen)
    if args.json:
        output.json(
            {
                "data": str(data),
                "trust": str(done.trust),
                "sha256": done.fingerprint,
                "admin_password": done.admin_password,
            }
        )
        return 0
    output.line(f"Data directory       {data}  (back up master.key apart from the database)")
    output.line(f"Devices trust        {done.trust}")
    output.line(f"its SHA-256          {done.fingerprint}")
    output.line(
        f"Password of 'admin'  {done.admin_password}  (shown this once; the first login asks for a new one)"
    )
    return 0


def _serve(args: argparse.Namespace, _output: Output) -> int:
    from .serve import serve

    return serve(args.data, args.listen, args.admin_listen)


def _migrate(args: argparse.Namespace, output: Output) -> int:
    Context(args.data).db.migrate()
    output.line("the database is up to date")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    output = Output()
    try:
        if args.data is None:
            named = os.environ.get("CA_PROXY_DATA")
            if not named:
                raise UsageError("no data directory is named", hint="give --data DIR or set CA_PROXY_DATA")
            args.data = Path(named)
        if not args.opens:
            return int(args.function(args, output))
        context = Context.open(args.data)
        try:
            return int(args.function(args, output, context))
        finally:
            context.db.close()
    except Error as err:
        print(f"ca-proxy: error: {err}", file=sys.stderr)
        if err.hint:
            print(f"ca-proxy: hint: {err.hint}", file=sys.stderr)
        return _code(err)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def _code(err: Error) -> int:
    if isinstance(err, UsageError):
        return 64
    if isinstance(err, SettingsError):
        return 78
    return 75 if isinstance(err, TransportError) else 1


if __name__ == "__main__":
    sys.exit(main())
