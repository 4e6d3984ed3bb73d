"""The command rmagent."""

from __future__ import annotations

import sys

from .. import __version__
from ..errors import Error, SettingsError
from .config import load
from .log import Log
from .residence import become_resident, wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import NoReturn

__all__ = ["main"]

DESCRIPTION = """\
Speaks with the proxy: makes this device known, fetches its settings, applies them, reports. As resident
agent it does so as soon as the settings change, and renews what is due.

The management identity lies in /wfs/igel-rmagent: cert.pem, key.pem, trust-store/cacerts.pem. It is apart
from the certificates that are enrolled, and is renewed by itself.
"""
EPILOG = """\
examples:
  rmagent register --server https://proxy.example:8443 --token-file token --ca-file trust.pem
  rmagent sync
  rmagent run

signals to the resident agent:
  SIGHUP  look at settings, certificates and addresses now    SIGTERM  end

exit status:
  0 done or nothing to do    1 failed    64 usage
  75 waiting or temporary failure, worth another try    78 bad settings
"""


WAIT = 240  # seconds


def _parser() -> argparse.ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            self.print_usage(sys.stderr)
            self.exit(64, f"rmagent: error: {message}\n")

    raw = argparse.RawDescriptionHelpFormatter
    common = Parser(add_help=False)
    common.add_argument("--root", default="", metavar="DIR", help="act inside a root file system")
    common.add_argument("--config", metavar="FILE", help="instead of /etc/igelcert/device.toml")
    common.add_argument("--verbose", action="store_true", help="log lines on the screen as well")
    parser = Parser(prog="rmagent", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="rmagent")
    help_register = "become known to the proxy with a one-time token: management key and certificate"
    register = commands.add_parser(
        "register",
        help=help_register,
        description=help_register,
        parents=[common],
        epilog=EPILOG,
        formatter_class=raw,
    )
    register.add_argument(
        "--server", metavar="URL", help="https://HOST[:PORT] of the proxy (default: device.toml)"
    )
    register.add_argument(
        "--token-file", required=True, metavar="F", help="file with the token of `ca-proxy device add`"
    )
    trust = register.add_mutually_exclusive_group()
    trust.add_argument(
        "--ca-file", default="", metavar="F", help="the CA certificate to trust (the proxy's trust.pem)"
    )
    trust.add_argument("--ca-fingerprint", default="", metavar="SHA256", help="or its SHA-256")
    help_sync = "fetch the settings, bring the certificates in line with them, report; once, for init scripts and cron"
    sync = commands.add_parser(
        "sync", help=help_sync, description=help_sync, parents=[common], epilog=EPILOG, formatter_class=raw
    )
    sync.add_argument(
        "--paced",
        action="store_true",
        help="as the resident agent does it: what failed waits for its next try, nothing is written to stderr",
    )
    help_run = (
        "the resident agent: settings as soon as they change, renewals when due; stays in the foreground"
    )
    run = commands.add_parser(
        "run", help=help_run, description=help_run, parents=[common], epilog=EPILOG, formatter_class=raw
    )
    run.add_argument(
        "--wait",
        type=int,
        default=WAIT,
        metavar="SECONDS",
        help=f"how long the proxy holds a question for settings (default {WAIT}, 1 to 600)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["run"]:  # as it is started at boot, when a parser would take longer to load than all else
        return _guarded(lambda: _run("", None, WAIT, verbose=False), verbose=False)
    args = _parser().parse_args(words)
    if args.command == "run":
        return _guarded(
            lambda: _run(args.root, args.config, args.wait, verbose=args.verbose), verbose=args.verbose
        )
    return _guarded(lambda: _act(args), verbose=args.verbose)


def _guarded(work: Callable[[], int], *, verbose: bool) -> int:
    """Errors become a sentence, and the exit status."""
    try:
        return work()
    except Error as err:
        from .exits import said

        return said(Log("rmagent", screen=verbose or sys.stderr.isatty()), err)
    except KeyboardInterrupt:
        return 130


def _run(root: str, config_file: str | None, wait: int, *, verbose: bool) -> NoReturn:
    config = load(root, config_file)
    if not 1 <= wait <= 600:
        raise SettingsError("--wait", "is not a number of seconds from 1 to 600")
    become_resident(config, root, config_file, wait, verbose=verbose)


def _act(args: argparse.Namespace) -> int:
    """`register` and `sync`. What they need is imported here: `run` needs none of it, at each boot."""
    from . import paced
    from .agent import Agent
    from .commands import read_secret
    from .transport import split_url

    if args.command == "sync" and args.paced:
        return paced.main(args.root, args.config)
    config = load(args.root, args.config)
    log = Log("rmagent", screen=args.verbose or sys.stderr.isatty(), level=config.log_level)
    if args.command == "sync":
        with Agent(config, log) as agent:
            return agent.sync()
    server = args.server or config.server
    if not server:
        raise SettingsError("server", "is not given", hint="rmagent register --server https://HOST:PORT")
    split_url(server)
    given = bool(args.ca_file or args.ca_fingerprint)
    ca_file = args.ca_file if given else (config.at(config.ca_file) if config.ca_file else "")
    fingerprint = args.ca_fingerprint if given else config.ca_fingerprint
    Agent(config, log).register(server, read_secret(args.token_file), ca_file, fingerprint)
    wake(config.agent_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
