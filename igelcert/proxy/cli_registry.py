"""ca-proxy device, profile and enrollments."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ConflictError, SettingsError
from . import devices, enrollment_log, inventory, overview, passthrough, profiles, renewals
from .clitools import Output, agree, count, progress, read_file, when
from .context import Context
from .devices import Token
from .importing import Import, token_sheet

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
    found.add_argument("--state", default="", choices=enrollment_log.STATES, help="in this state only")
    found.add_argument(
        "--search", default="", metavar="TEXT", help="in unit ID, names, subject, serial or reason"
    )
    text = "instead, from what devices reported last: when certificates end, and what needs a hand, the most urgent first"
    found.add_argument("--overview", action="store_true", help=text)
    found.add_argument(
        "--limit", type=count, default=100, metavar="N", help="at most N (default 100; 0: all)"
    )
    found.add_argument("--json", action="store_true", help="print JSON")
    found.add_argument("--csv", action="store_true", help="print CSV")
    found.set_defaults(function=_enrollments, opens=True)


def _action(actions: Any, common: argparse.ArgumentParser, name: str, function: Any, text: str) -> Any:
    made = actions.add_parser(name, help=text, description=text, parents=[common])
    made.set_defaults(function=function, opens=True)
    return made


def _device_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "the devices that may ask: add, token, list, move, renew, scep-url, remove, import"
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
        actions, common, "list", _device_list, "devices: directory, host name, state, last contact"
    )
    made.add_argument("--search", default="", metavar="TEXT", help="in unit ID, host name or address")
    made.add_argument("--directory", default="", metavar="/A/B", help="in this directory and below")
    made.add_argument(
        "--state",
        default="",
        choices=list(inventory.STATES),
        metavar="STATE",
        help="; ".join(f"{name}: {text}" for name, text in inventory.STATES.items()),
    )
    made.add_argument("--limit", type=count, default=0, metavar="N", help="at most N (default: all)")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(actions, common, "move", _device_move, "put devices into another directory")
    made.add_argument("directory", metavar="/A/B")
    made.add_argument("--unit-id", required=True, nargs="+", metavar="ID")
    made = _action(actions, common, "renew", _device_renew, "tell a device to renew its certificates now")
    made.add_argument("--unit-id", required=True, metavar="ID")
    made.add_argument("--name", default="", metavar="NAME", help="this certificate alone (its friendly name)")
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
    text = "which certificates devices get: set, show, preview, list, remove, assign, unassign, passthrough"
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
    text = "a profile's settings document, without its passwords; says which of them are set"
    made = _action(actions, common, "show", _profile_show, text)
    made.add_argument("name", metavar="NAME")
    made.add_argument("--json", action="store_true", help="print JSON")
    text = "subject and alternative names that a profile gives to a device"
    made = _action(actions, common, "preview", _profile_preview, text)
    made.add_argument("name", metavar="NAME")
    made.add_argument("--device", required=True, metavar="ID")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(
        actions, common, "list", _profile_list, "profiles, their certificates and where they are assigned"
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(
        actions, common, "remove", _profile_remove,
        "remove a profile; devices then remove its certificates and keys: on a terminal it asks where some have them",
    )  # fmt: skip
    made.add_argument("name", metavar="NAME")
    made.add_argument("--yes", action="store_true", help="do not ask")
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
    found = inventory.search(
        context,
        text=args.search,
        directory=args.directory,
        state=args.state,
        limit=args.limit,
    ).items
    if args.json:
        output.json([each.as_json() for each in found])
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
        text = read_file("the sheet", args.file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(str(args.file), "is not UTF-8") from None
    sheet = Import(text)
    for done in sheet.check():
        progress(f"{done} of {sheet.total} rows")
    if sys.stderr.isatty():
        print(file=sys.stderr)
    made = sheet.write(context)
    if args.json:
        output.json([_token_json(token) for token in made])
        return 0
    print(token_sheet(made), end="")
    print(f"{len(made)} devices added", file=sys.stderr)
    return 0


def _device_move(args: argparse.Namespace, output: Output, context: Context) -> int:
    count = inventory.move(context, args.unit_id, args.directory)
    output.line(f"{count} device{'s' if count != 1 else ''} moved to {args.directory}")
    return 0


def _device_renew(args: argparse.Namespace, output: Output, context: Context) -> int:
    for name in renewals.renew_now(context, args.unit_id, args.name):
        output.line(f"{args.unit_id} renews {name} with its next settings")
    return 0


def _device_scep_url(args: argparse.Namespace, output: Output, context: Context) -> int:
    secret = passthrough.new_secret(context, args.unit_id, revoke=args.revoke)
    if args.json:
        output.json({"unit_id": args.unit_id, "path": f"/scep/LABEL/{secret}" if secret else None})
    elif not secret:
        output.line(f"the SCEP URL of {args.unit_id} works no more")
    else:
        output.line(f"{context.address}/scep/LABEL/{secret}")
        output.line("LABEL: friendly name of the certificate, percent-encoded")
        output.line("whoever knows it can ask the CA as this device: keep it secret")
    return 0


# ---- profiles -----------------------------------------------------------------------------------


def _profile_set(args: argparse.Namespace, output: Output, context: Context) -> int:
    for warning in profiles.store(context, args.name, read_file("--settings", args.settings)):
        print(f"ca-proxy: warning: {warning}", file=sys.stderr)
    output.line(f"profile {args.name} is stored")
    return 0


def _profile_show(args: argparse.Namespace, output: Output, context: Context) -> int:
    found = profiles.must_find(context, args.name)
    if args.json:
        output.json(found.as_json())
        return 0
    output.json(found.document)
    for place in found.secrets:
        print(f"set, and not shown: {place}", file=sys.stderr)
    return 0


def _profile_preview(args: argparse.Namespace, output: Output, context: Context) -> int:
    device = devices.get(context, args.device)
    if device is None:
        raise SettingsError(
            "--device", f"no device {args.device[:80]!r} is known", hint="ca-proxy device list"
        )
    found = profiles.preview(profiles.must_find(context, args.name).document, device)
    if args.json:
        output.json([each.as_json() for each in found])
        return 0
    for each in found:
        output.line(f"{each.friendly_name} ({each.key_type})")
        output.line(
            f"  subject  {each.subject or '-'}" if not each.problem else f"  cannot be: {each.problem}"
        )
        for kind, value in each.names:
            output.line(f"  {kind:<7}  {value}")
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
    try:
        profiles.remove(context, args.name)
    except ConflictError as err:
        if sys.stdin.isatty():
            agree(args, f"{err}.")
        profiles.remove(context, args.name, force=True)
        print(f"ca-proxy: {err}", file=sys.stderr)
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
    if args.overview:
        found_now = overview.collect(context, unit_id=args.unit_id)
        return _overview(args, output, found_now, args.limit if args.limit > 0 else 10_000_000)
    found = enrollment_log.search(
        context, text=args.search, unit_id=args.unit_id, state=args.state, limit=args.limit
    ).items
    if args.csv:
        for line in enrollment_log.sheet(found):
            print(line, end="")
        return 0
    if args.json:
        output.json([enrollment_log.as_json(row) for row in found])
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
