"""The command igel-certs."""

from __future__ import annotations

import os
import sys

from .. import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["main"]

DESCRIPTION = """\
Makes keys, gets certificates and keeps them current, as the settings say.

/wfs/igel-certs/<FRIENDLY NAME>/ holds cert.pem, cert.pfx, pkey.pem, cacerts.pem and cacerts/<CN>.pem of
each certificate; the CA certificates are installed into the OpenSSL store /etc/ssl/certs.
"""
EPILOG = """\
examples:
  igel-certs apply --settings /etc/igelcert/settings.json
  igel-certs status --json
  igel-certs renew lan --force
  igel-certs keygen --type ec_prime256v1 --out key.pem --password-file password

exit status:
  0 done or nothing to do    1 failed    64 usage
  75 waiting or temporary failure, worth another try    78 bad settings
"""


def _parser() -> argparse.ArgumentParser:
    import argparse

    from ..model import KEY_TYPES

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            self.print_usage(sys.stderr)
            self.exit(64, f"igel-certs: error: {message}\n")

    raw = argparse.RawDescriptionHelpFormatter
    common = Parser(add_help=False)
    common.add_argument("--root", default="", metavar="DIR", help="act inside a root file system")
    common.add_argument("--config", metavar="FILE", help="instead of /etc/igelcert/device.toml")
    common.add_argument("--verbose", action="store_true", help="log lines on the screen as well")
    parser = Parser(prog="igel-certs", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="igel-certs")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, description=help, parents=[common], epilog=EPILOG, formatter_class=raw
        )

    apply = add(
        "apply", "bring the tree in line with the settings: enroll, renew what is due, remove what is gone"
    )
    apply.add_argument("--settings", metavar="FILE", help="instead of the settings that the proxy pushed")
    renew = add("renew", "renew what is due, or now")
    renew.add_argument("names", nargs="*", metavar="NAME", help="friendly names (default: all)")
    renew.add_argument("--force", action="store_true", help="now, whether due or not")
    renew.add_argument("--settings", metavar="FILE", help="instead of the settings that the proxy pushed")
    commands.add_parser(
        "status",
        help="each certificate: state, subject, issuer, expiry, next renewal, last error",
        add_help=False,
    )
    add(
        "install-cas",
        "(re)install the CA certificates into the OpenSSL store; at boot, where /etc is not kept",
    )
    keygen = add("keygen", "make a key by itself: PKCS#8 PEM, encrypted when a password is given")
    keygen.add_argument("--type", required=True, choices=KEY_TYPES, metavar="TYPE", help=" ".join(KEY_TYPES))
    keygen.add_argument("--out", required=True, metavar="FILE", help="must not be there yet")
    keygen.add_argument("--password-file", metavar="FILE", help="file whose first line is the password")
    keygen.add_argument(
        "--iterations", type=int, default=100_000, metavar="N", help="of PBKDF2 (default 100000)"
    )
    keygen.add_argument("--force", action="store_true", help="replace the file")
    doctor = add("doctor", "look at clock, disk, trust, server and keys, and say what to do")
    doctor.add_argument("--json", action="store_true", help="for programs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["status"]:
        from .status import main as status

        try:
            code = status(words[1:])
            if sys.stdout is not None:  # closed by who started us
                sys.stdout.flush()
            return code
        except OSError as err:  # `status | head`; nothing more may go there, at exit neither
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if not isinstance(err, BrokenPipeError):
                print(f"igel-certs: error: cannot write the output: {err.strerror}", file=sys.stderr)
            return 1
    args = _parser().parse_args(words)
    from ..errors import Error
    from . import commands
    from .exits import said
    from .log import Log

    log = Log("igel-certs", screen=args.verbose or sys.stderr.isatty())
    try:
        return commands.run(args, log)
    except Error as err:
        return said(log, err)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
