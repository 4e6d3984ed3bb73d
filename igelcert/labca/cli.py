"""The command lab-ca."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import Error, StorageError
from ..words import is_text
from .authority import Authority
from .est import EstService, Options
from .scep import MODES, ScepOptions, ScepService
from .server import Server, run, tls_context

__all__ = ["main"]

DESCRIPTION = """\
A small certification authority for trying igelcert out and for tests.

On its first start it makes, in DIR: a root and an issuing CA (root.pem, issuing.pem), the certificate
of its own EST server, and ra.p12 with ra.p12.password, the keystore that lets a proxy enroll for
devices. DIR/issued holds a copy of every certificate that it issued, by serial number, and DIR/issued.log
a line for each: the request's SHA-256, and how many requests were worked on at once at most.
It is no place for real certificates: its keys lie unencrypted in DIR/private.
"""
EPILOG = """\
examples:
  lab-ca serve --dir lab                        EST on 127.0.0.1:8085, SCEP on 127.0.0.1:8086
  lab-ca serve --dir lab --scep 127.0.0.1:0 --scep-mode ndes --scep-challenge-file secret
  lab-ca serve --dir lab --est 127.0.0.1:0 --validity 10m --pending 30s

exit status: 0 ended by a signal, 1 failed, 64 usage
"""
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "y": 31_557_600}


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})(ms|[smhdy])", text)
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
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
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
        "--est", type=_address, metavar="HOST:PORT",
        help="where EST listens; port 0 takes a free one, DIR/run.json names it "
        "(default 127.0.0.1:8085 when no listener is named)",
    )  # fmt: skip
    serve.add_argument(
        "--scep", type=_address, metavar="HOST:PORT",
        help="where SCEP listens, plain HTTP (default 127.0.0.1:8086 when no listener is named)",
    )  # fmt: skip
    serve.add_argument("--scep-https", type=_address, metavar="HOST:PORT", help="where SCEP listens over TLS")
    serve.add_argument(
        "--scep-mode",
        choices=MODES,
        default="standard",
        help="standard: as RFC 8894 has it; ejbca, ndes: like those products, as far as they are described",
    )
    serve.add_argument(
        "--scep-challenge-file",
        type=Path,
        metavar="FILE",
        help="the challenge password (first line) that each SCEP request must carry",
    )
    serve.add_argument(
        "--scep-users",
        type=Path,
        metavar="FILE",
        help="CA mode: lines of a common name, a blank and its challenge password, each good for one certificate",
    )
    serve.add_argument(
        "--ndes-user",
        default="",
        metavar="NAME",
        help="who may see the page of one-time challenges (mode ndes)",
    )
    serve.add_argument("--ndes-password-file", type=Path, metavar="FILE", help="and the password for it")
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
        "--delay",
        type=_duration,
        default=0,
        metavar="TIME",
        help="what each request to enroll takes: 200ms, 3s",
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


def _first_line(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as err:
        raise StorageError(f"{path} cannot be read: {err}") from None


def _options(args: argparse.Namespace) -> Options:
    if bool(args.est_user) != bool(args.est_password_file):
        raise Error("--est-user and --est-password-file belong together")
    oids = tuple(oid for oid in args.csrattrs.split(",") if oid)
    return Options(
        args.validity, args.pending, args.est_user, _first_line(args.est_password_file), oids, args.delay
    )


def _scep_options(args: argparse.Namespace) -> ScepOptions:
    if bool(args.ndes_user) != bool(args.ndes_password_file):
        raise Error("--ndes-user and --ndes-password-file belong together")
    users = []
    if args.scep_users:
        try:
            lines = args.scep_users.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise StorageError(f"{args.scep_users} cannot be read: {err}") from None
        for line in filter(str.strip, lines):
            name, blank, password = line.rpartition(" ")
            if not blank:
                raise Error(f"{args.scep_users}: a line is no name with a password")
            users.append((name.strip(), password))
    return ScepOptions(
        args.scep_mode,
        args.validity,
        args.pending,
        _first_line(args.scep_challenge_file),
        tuple(users),
        args.ndes_user,
        _first_line(args.ndes_password_file),
        args.delay,
    )


def _log(line: str) -> None:
    print(f"lab-ca: {line}", file=sys.stderr, flush=True)


def _servers(args: argparse.Namespace) -> list[Server]:
    if not (args.est or args.scep or args.scep_https):
        args.est, args.scep = ("127.0.0.1", 8085), ("127.0.0.1", 8086)
    hosts = [address[0] for address in (args.est, args.scep_https) if address]
    authority = Authority(args.dir, tuple(hosts))
    (args.dir / "run.json").unlink(missing_ok=True)
    servers = []
    if args.est:
        context = tls_context(authority, args.trust_clients)
        servers.append(Server("est", args.est, EstService(authority, _options(args)), context, args.quiet))
    if args.scep or args.scep_https:
        service = ScepService(authority, _scep_options(args), (lambda _: None) if args.quiet else _log)
        if args.scep:
            servers.append(Server("scep", args.scep, service, None, args.quiet))
        if args.scep_https:
            servers.append(Server("scep_https", args.scep_https, service, tls_context(authority), args.quiet))
    return servers


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        words = [value] if isinstance(value, str) else [value[0]] if isinstance(value, tuple) else []
        if not all(map(is_text, words)):
            parser.error(f"--{name.replace('_', '-')} is not UTF-8")
    try:
        run(_servers(args), args.dir)
    except Error as err:
        print(f"lab-ca: error: {err}", file=sys.stderr)
        if err.hint:
            print(f"lab-ca: hint: {err.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
