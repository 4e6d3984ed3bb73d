"""The command lab-ca."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import Error, StorageError
from .authority import Authority
from .est import EstService, Options
from .server import EstServer, run

__all__ = ["main"]

DESCRIPTION = """\
A small certification authority for trying igelcert out and for tests.

On its first start it makes, in DIR: a root and an issuing CA (root.pem, issuing.pem), the certificate
of its own EST server, and ra.p12 with ra.p12.password, the keystore that lets a proxy enroll for
devices. DIR/issued holds a copy of every certificate that it issued, by serial number.
It is no place for real certificates: its keys lie unencrypted in DIR/private.
"""
EPILOG = """\
examples:
  lab-ca serve --dir lab --est 127.0.0.1:8085
  lab-ca serve --dir lab --est 127.0.0.1:0 --validity 10m --pending 30

exit status: 0 ended by a signal, 1 failed, 64 usage
"""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "y": 31_557_600}


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhdy])", text)
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90d, 12h or 10m")
    return int(found[1]) * _UNITS[found[2]]


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(64, f"lab-ca: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="lab-ca", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="serve")
    serve = commands.add_parser(
        "serve",
        help="make the CA on first start, then serve it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=raw,
    )
    serve.add_argument("--dir", type=Path, required=True, metavar="DIR", help="where the CA lives")
    serve.add_argument(
        "--est", type=_address, default=("127.0.0.1", 8085), metavar="HOST:PORT",
        help="where EST listens (default 127.0.0.1:8085; port 0 takes a free one, DIR/run.json names it)",
    )  # fmt: skip
    serve.add_argument(
        "--validity",
        type=_duration,
        default=90 * 86_400,
        metavar="TIME",
        help="life of what is issued: 90d (default), 12h, 10m, 30s",
    )
    serve.add_argument(
        "--pending",
        type=_duration,
        default=0,
        metavar="TIME",
        help="answer 202 to a new request until that time has passed",
    )
    serve.add_argument(
        "--est-user",
        default="",
        metavar="NAME",
        help="devices may enroll straight with this name (HTTP Basic)",
    )
    serve.add_argument("--est-password-file", type=Path, metavar="FILE", help="and the password in this file")
    serve.add_argument(
        "--trust-clients",
        type=Path,
        metavar="FILE",
        help="PEM file of CAs whose client certificates may enroll, too",
    )
    serve.add_argument("--csrattrs", default="", metavar="OID,OID", help="attributes to advise at /csrattrs")
    serve.add_argument("--quiet", action="store_true", help="no line for each request")
    return parser


def _options(args: argparse.Namespace) -> Options:
    if bool(args.est_user) != bool(args.est_password_file):
        raise Error("--est-user and --est-password-file belong together")
    password = ""
    if args.est_password_file:
        try:
            password = args.est_password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as err:
            raise StorageError(f"{args.est_password_file} cannot be read: {err}") from None
    oids = tuple(oid for oid in args.csrattrs.split(",") if oid)
    return Options(args.validity, args.pending, args.est_user, password, oids)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        authority = Authority(args.dir, (args.est[0],))
        (args.dir / "run.json").unlink(missing_ok=True)
        service = EstService(authority, _options(args))
        try:
            server = EstServer(args.est, authority, service, args.trust_clients, args.quiet)
        except OSError as err:
            raise Error(f"cannot listen on {args.est[0]}:{args.est[1]}: {err.strerror or err}") from None
        run(server, args.dir)
    except Error as err:
        print(f"lab-ca: error: {err}", file=sys.stderr)
        if err.hint:
            print(f"lab-ca: hint: {err.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
