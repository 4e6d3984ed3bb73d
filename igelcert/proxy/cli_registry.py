"""ca-proxy device, profile and enrollments."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from . import devices, enrollments, overview, passthrough, profiles
from .clitools import Output, count, read_file, when
from .context import Context
from .devices import Token

__all__ = ["add_commands"]

PROFILE_SET = """\
Stores a profile: a settings document in JSON, as `igel-certs apply --settings` takes it. It is kept encrypted.

  {"certs": [{"friendly_name": "lan",
              "subject": {"auto_cn": "hostname", "org": "Example"},
              "key": {"type": "ec_prime256v1", "crypt_password": "…"}}]}

A profile that exists is replaced; devices get the change with their next sync.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    _device_commands(commands, common)
    _profile_commands(commands, common)
    text = "who got what, when, until when; failures with reasons; newest first"
    found = commands.add_parser("enrollments", help=text, description=text, parents=[common])
    found.add_argument("--unit-id", default="", metavar="ID", help="of this device only")
    text = "instead, from what devices reported last: when certificates end, and what needs a hand, the most urgent first"
    found.add_argument("--overview", action="store_true", help=text)
    found.add_argument(
        "--limit", type=count, default=100, metavar="N", help="at most N (default 100; 0: all)"
    )
    found.add_argument("--json", action="store_true", help="print JSON")
    found.set_defaults(function=_enrollments, opens=True)


def _action(actions: Any, common: argparse.ArgumentParser, name: str, function: Any, text: str) -> Any:
    made = actions.add_parser(name, help=text, description=text, parents=[common])
    made.set_defaults(function=function, opens=True)
    return made


def _device_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "the devices that may ask: add, token, list, scep-url, remove, import"
    device = commands.add_parser("device", help=text, description=text)
    actions = device.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = _action(
        actions, common, "add", _device_add, "make a device known; prints its one-time registration token"
    )
    made.add_argument(
        "--unit-id",
        required=True,
        metavar="ID",
        help="as the device has it: mostly its MAC address, 00E0C5123456",
    )
    made.add_argument(
        "--directory",
        default="/",
        metavar="/A/B",
        help="where it stands; profiles of directories are inherited",
    )
    made.add_argument(
        "--hostname",
        default="",
        metavar="NAME",
        help="fix its host name; otherwise the device reports it, first come first served",
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(
        actions,
        common,
        "token",
        _device_token,
        "a new registration token, for a device that lost its identity",
    )
    made.add_argument("--unit-id", required=True, metavar="ID")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(
        actions, common, "list", _device_list, "all devices: directory, host name, state, last contact"
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    text = (
        "a secret URL for a SCEP client of this device that cannot authenticate by TLS; an older one ends. "
        "It works only for profiles that allow pass-through"
    )
    made = _action(actions, common, "scep-url", _device_scep_url, text)
    made.add_argument("--unit-id", required=True, metavar="ID")
    made.add_argument("--revoke", action="store_true", help="end it, and make no new one")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(actions, common, "remove", _device_remove, "forget a device; its next request is refused")
    made.add_argument("--unit-id", required=True, metavar="ID")
    made = _action(
        actions, common, "import", _device_import,
        "add devices from a CSV file with the heading unit_id,directory,hostname; prints unit_id,token,expires; all or none",
    )  # fmt: skip
    made.add_argument("file", type=Path, metavar="FILE.csv")
    made.add_argument("--json", action="store_true", help="print JSON instead of CSV")


def _profile_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "which certificates devices get: set, list, remove, assign, unassign, passthrough"
    profile = commands.add_parser("profile", help=text, description=text)
    actions = profile.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = actions.add_parser(
        "set",
        help="store a settings document under a name",
        description=PROFILE_SET,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(function=_profile_set, opens=True)
    made.add_argument("name", metavar="NAME")
    made.add_argument("--settings", type=Path, required=True, metavar="FILE")
    made = _action(
        actions, common, "list", _profile_list, "profiles, their certificates and where they are assigned"
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(
        actions, common, "remove", _profile_remove, "remove a profile; devices then remove its certificates"
    )
    made.add_argument("name", metavar="NAME")
    text = (
        "let SCEP clients of the devices through to a SCEP CA, for the certificates of this profile (off by default): "
        "the proxy cannot look into requests that are encrypted for the CA, so what they ask for is up to the CA"
    )
    made = _action(actions, common, "passthrough", _profile_passthrough, text)
    made.add_argument("name", metavar="NAME")
    made.add_argument("switch", choices=("on", "off"))
    for name, function, text in (
        ("assign", _profile_assign, "give a profile to a device, or to all devices in and below a directory"),
        ("unassign", _profile_unassign, "take it back"),
    ):
        made = _action(actions, common, name, function, text)
        made.add_argument("name", metavar="NAME")
        target = made.add_mutually_exclusive_group(required=True)
        target.add_argument("--device", default="", metavar="ID")
        target.add_argument("--directory", default="", metavar="/A/B")


# ---- devices ------------------------------------------------------------------------------------


def _token_json(token: Token) -> dict[str, Any]:
    return {"unit_id": token.unit_id, "token": token.token, "expires": token.expires}


def _show_token(args: argparse.Namespace, output: Output, token: Token) -> int:
    if args.json:
        output.json(_token_json(token))
    else:
        print(f"token for {token.unit_id}, good once and until {when(token.expires)} UTC:", file=sys.stderr)
        output.line(token.token)
    return 0


def _device_add(args: argparse.Namespace, output: Output, context: Context) -> int:
    return _show_token(args, output, devices.add(context, args.unit_id, args.directory, args.hostname))


def _device_token(args: argparse.Namespace, output: Output, context: Context) -> int:
    return _show_token(args, output, devices.new_token(context, args.unit_id))


def _device_list(args: argparse.Namespace, output: Output, context: Context) -> int:
    found = devices.listing(context)
    if args.json:
        output.json(
            [
                {
                    "unit_id": each.unit_id,
                    "directory": each.directory,
                    "hostname": each.hostname,
                    "ips": list(each.ips),
                    "state": each.state,
                    "created": each.created,
                    "registered_at": each.registered_at,
                    "last_seen": each.last_seen,
                }
                for each in found
            ]
        )
        return 0
    rows = [
        [each.unit_id, each.directory, each.hostname or "-", each.state, when(each.last_seen)]
        for each in found
    ]
    output.table(("UNIT ID", "DIRECTORY", "HOST NAME", "STATE", "LAST SEEN (UTC)"), rows)
    return 0


def _device_remove(args: argparse.Namespace, output: Output, context: Context) -> int:
    devices.remove(context, args.unit_id)
    output.line(f"{args.unit_id} was removed")
    return 0


def _device_import(args: argparse.Namespace, output: Output, context: Context) -> int:
    try:
        text = read_file("FILE.csv", args.file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(str(args.file), "is not UTF-8") from None
    made = devices.import_csv(context, text)
    if args.json:
        output.json([_token_json(token) for token in made])
        return 0
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(("unit_id", "token", "expires"))
    writer.writerows((token.unit_id, token.token, token.expires) for token in made)
    print(sheet.getvalue(), end="")
    print(f"{len(made)} devices added", file=sys.stderr)
    return 0


def _device_scep_url(args: argparse.Namespace, output: Output, context: Context) -> int:
    secret = passthrough.new_secret(context, args.unit_id, revoke=args.revoke)
    if args.json:
        output.json({"unit_id": args.unit_id, "path": f"/scep/LABEL/{secret}" if secret else None})
    elif not secret:
        output.line(f"the SCEP URL of {args.unit_id} works no more")
    else:
        output.line(f"https://PROXY/scep/LABEL/{secret}")
        output.line(
            "PROXY: host and port of this proxy; LABEL: friendly name of the certificate, percent-encoded"
        )
        output.line("whoever knows it can ask the CA as this device: keep it secret")
    return 0


# ---- profiles -----------------------------------------------------------------------------------


def _profile_set(args: argparse.Namespace, output: Output, context: Context) -> int:
    for warning in profiles.store(context, args.name, read_file("--settings", args.settings)):
        print(f"ca-proxy: warning: {warning}", file=sys.stderr)
    output.line(f"profile {args.name} is stored")
    return 0


def _profile_list(args: argparse.Namespace, output: Output, context: Context) -> int:
    found = profiles.listing(context)
    if args.json:
        output.json(
            [
                {
                    "name": each.name,
                    "certs": [{"friendly_name": name, "key_type": kind} for name, kind in each.certs],
                    "assigned": [{"kind": kind, "target": target} for kind, target in each.assigned],
                    "passthrough": each.passthrough,
                    "updated": each.updated,
                }
                for each in found
            ]
        )
        return 0
    rows = [
        [
            each.name,
            ", ".join(f"{name} ({kind})" for name, kind in each.certs) or "-",
            ", ".join(target for _, target in each.assigned) or "-",
            "on" if each.passthrough else "off",
        ]
        for each in found
    ]
    output.table(("PROFILE", "CERTIFICATES", "ASSIGNED TO", "PASS-THROUGH"), rows)
    return 0


def _profile_remove(args: argparse.Namespace, output: Output, context: Context) -> int:
    profiles.remove(context, args.name)
    output.line(f"profile {args.name} was removed")
    return 0


def _profile_passthrough(args: argparse.Namespace, output: Output, context: Context) -> int:
    profiles.allow_passthrough(context, args.name, args.switch == "on")
    output.line(f"pass-through is {args.switch} for profile {args.name}")
    if args.switch == "on":
        output.line(
            "its requests go to the CA as they are: the proxy checks who sends them, not what they ask for"
        )
    return 0


def _profile_assign(args: argparse.Namespace, output: Output, context: Context) -> int:
    profiles.assign(context, args.name, device=args.device, directory=args.directory)
    output.line(f"profile {args.name} is assigned to {args.device or args.directory}")
    return 0


def _profile_unassign(args: argparse.Namespace, output: Output, context: Context) -> int:
    profiles.unassign(context, args.name, device=args.device, directory=args.directory)
    output.line(f"profile {args.name} is no longer assigned to {args.device or args.directory}")
    return 0


# ---- enrollments --------------------------------------------------------------------------------


def _enrollments(args: argparse.Namespace, output: Output, context: Context) -> int:
    limit = args.limit if args.limit > 0 else 10_000_000
    if args.overview:
        return _overview(args, output, overview.collect(context, unit_id=args.unit_id), limit)
    found = enrollments.listing(context, unit_id=args.unit_id, limit=limit)
    if args.json:
        keys = ("unit_id", "friendly_name", "operation", "state", "reason", "subject", "serial", "not_before", "not_after",
                "created", "updated")  # fmt: skip
        rows = [
            {**{key: getattr(row, key) for key in keys}, "warnings": row.warnings.splitlines()}
            for row in found
        ]
        output.json(rows)
        return 0
    table = [
        [
            when(row.updated),
            row.unit_id,
            row.friendly_name or "-",
            row.state,
            row.serial or "-",
            when(row.not_after),
            "; ".join([row.reason, *row.warnings.splitlines()]).strip("; ") or row.subject,
        ]
        for row in found
    ]
    output.table(("WHEN (UTC)", "UNIT ID", "NAME", "STATE", "SERIAL", "UNTIL", "REASON OR SUBJECT"), table)
    return 0


def _overview(args: argparse.Namespace, output: Output, found: overview.Overview, limit: int) -> int:
    shown = found.trouble[:limit]
    if args.json:
        output.json({"certificates": found.counts, "trouble": [asdict(each) for each in shown]})
        return 0
    names = [name.replace("under_", "< ").replace("_", " ").upper() for name in found.counts]
    output.table(names, [[str(count) for count in found.counts.values()]])
    if not found.trouble:
        return 0
    rows = [
        [
            each.unit_id,
            each.friendly_name,
            each.state,
            when(each.not_after),
            when(each.last_seen),
            "; ".join(
                part for part in (each.error, f"hooks: {each.hooks}" if each.hooks else "") if part
            ) or "-",
        ]
        for each in shown
    ]  # fmt: skip
    output.line()
    output.table(("UNIT ID", "NAME", "STATE", "UNTIL (UTC)", "LAST SEEN (UTC)", "ERROR"), rows)
    if len(shown) < len(found.trouble):
        output.line(f"… and {len(found.trouble) - len(shown)} more (--limit 0: all)")
    return 0
