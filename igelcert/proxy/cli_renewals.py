"""ca-proxy renew: certificates that are to be renewed before their time."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import renewals
from .clitools import Output, duration, when
from .context import Context

__all__ = ["add_commands"]

RENEW = """\
Has certificates renewed before their time: of one device, of all devices in and below a directory, or all that
a CA issued, as after a CA incident. Each certificate gets a window of its own within the time that is given, those
that expire first before the others; devices that wait for their settings hear of it within seconds. A certificate that
was renewed meanwhile is left alone.

  ca-proxy renew --issuer "Issuing CA 1" --within 6h
  ca-proxy renew --directory /Berlin --within 2d
  ca-proxy renew --device 00E0C5123456
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    made = commands.add_parser(
        "renew",
        help="have certificates renewed within a time: of a device, a directory, an issuer",
        description=RENEW,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--device", default="", metavar="ID", help="of this device")
    which.add_argument(
        "--directory", default="", metavar="/A/B", help="of all devices in it and below; / for all"
    )
    which.add_argument(
        "--issuer",
        default="",
        metavar="CN|SHA-256",
        help="that this CA issued: its common name, or the SHA-256 of its certificate",
    )
    made.add_argument("--name", default="", metavar="NAME", help="certificates of this friendly name alone")
    made.add_argument(
        "--within",
        type=duration,
        default=0,
        metavar="6h",
        help="spread over that time: 90s, 30m, 6h, 2d (default: at once)",
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    made.set_defaults(function=_renew, opens=True)


def _renew(args: argparse.Namespace, output: Output, context: Context) -> int:
    asked = renewals.renew(
        context,
        device=args.device,
        directory=args.directory,
        issuer=args.issuer,
        friendly_name=args.name,
        within=args.within,
    )
    for warning in asked.warnings:
        print(f"ca-proxy: warning: {warning}", file=sys.stderr)
    if args.json:
        output.json(asked.as_json())
        return 0
    many = f"{asked.count} certificate{'s' if asked.count != 1 else ''}"
    output.line(f"{many}: renewed {f'until {when(asked.until)} UTC' if asked.until else 'at once'}")
    return 0
