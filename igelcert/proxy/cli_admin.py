"""ca-proxy directory, user and token."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from . import cli_audit, inventory
from .admin import accounts
from .clitools import Output, when
from .context import Context

__all__ = ["add_commands"]


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    _directory_commands(commands, common)
    _user_commands(commands, common)
    _token_commands(commands, common)
    cli_audit.add_command(commands, common)


def _group(commands: Any, name: str, text: str) -> Any:
    made = commands.add_parser(name, help=text, description=text)
    return made.add_subparsers(dest="action", required=True, metavar="ACTION")


def _action(actions: Any, common: argparse.ArgumentParser, name: str, function: Any, text: str) -> Any:
    made = actions.add_parser(name, help=text, description=text, parents=[common])
    made.set_defaults(function=function, opens=True)
    return made


def _directory_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    actions = _group(commands, "directory", "directories of devices: list, add, move, remove")
    text = "every directory, with how many devices are in it and below, and what is assigned to it"
    made = _action(actions, common, "list", _directory_list, text)
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(actions, common, "add", _directory_add, "make an empty directory")
    made.add_argument("path", metavar="/A/B")
    made = _action(actions, common, "move", _directory_move, "move or rename one, with all that is in it")
    made.add_argument("path", metavar="/A/B")
    made.add_argument("to", metavar="/C/D")
    made = _action(actions, common, "remove", _directory_remove, "remove one that holds no device")
    made.add_argument("path", metavar="/A/B")


def _user_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    actions = _group(commands, "user", "who may log in on the pages: list, add, password, role, remove")
    made = _action(actions, common, "list", _user_list, "accounts, their roles and last logins")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(actions, common, "add", _user_add, "a new account; prints its first password")
    made.add_argument("name", metavar="NAME")
    made.add_argument(
        "--role", choices=accounts.ROLES, default="viewer", help="default: viewer, who changes nothing"
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    text = "a new first password, for somebody who forgot it; ends the account's sessions"
    made = _action(actions, common, "password", _user_password, text)
    made.add_argument("name", metavar="NAME")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(actions, common, "role", _user_role, "change what an account may do")
    made.add_argument("name", metavar="NAME")
    made.add_argument("role", choices=accounts.ROLES)
    made = _action(actions, common, "remove", _user_remove, "remove an account; its sessions end")
    made.add_argument("name", metavar="NAME")


def _token_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    actions = _group(commands, "token", "tokens of programs that use the REST interface: list, add, remove")
    made = _action(actions, common, "list", _token_list, "tokens, their roles, expiry and last use")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(actions, common, "add", _token_add, "a new token; it is printed once")
    made.add_argument("name", metavar="NAME")
    made.add_argument(
        "--role", choices=accounts.ROLES, default="viewer", help="default: viewer, who changes nothing"
    )
    made.add_argument("--days", type=int, metavar="N", help="good for N days (default: until it is removed)")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = _action(actions, common, "remove", _token_remove, "end a token")
    made.add_argument("name", metavar="NAME")


# ---- directories --------------------------------------------------------------------------------


def _directory_list(args: argparse.Namespace, output: Output, context: Context) -> int:
    found = inventory.tree(context)
    if args.json:
        output.json([asdict(each) for each in found])
        return 0
    rows = [
        [each.path, str(each.devices), str(each.below), ", ".join(each.profiles) or "-"] for each in found
    ]
    output.table(("DIRECTORY", "DEVICES", "WITH BELOW", "PROFILES"), rows)
    return 0


def _directory_add(args: argparse.Namespace, output: Output, context: Context) -> int:
    output.line(f"{inventory.make_directory(context, args.path)} was made")
    return 0


def _directory_move(args: argparse.Namespace, output: Output, context: Context) -> int:
    count = inventory.move_directory(context, args.path, args.to)
    output.line(f"{args.path} is {args.to} now, with {count} devices")
    return 0


def _directory_remove(args: argparse.Namespace, output: Output, context: Context) -> int:
    inventory.remove_directory(context, args.path)
    output.line(f"{args.path} was removed")
    return 0


# ---- who may ------------------------------------------------------------------------------------


def _user_list(args: argparse.Namespace, output: Output, context: Context) -> int:
    found = accounts.listing(context)
    if args.json:
        output.json([asdict(each) for each in found])
        return 0
    rows = [
        [each.name, each.role, "yes" if each.must_change else "no", when(each.last_login)] for each in found
    ]
    output.table(("NAME", "ROLE", "FIRST PASSWORD", "LAST LOGIN (UTC)"), rows)
    return 0


def _show_password(args: argparse.Namespace, output: Output, password: str) -> int:
    if args.json:
        output.json({"name": args.name, "password": password})
    else:
        output.line(f"first password of {args.name!r}, shown this once: {password}")
    return 0


def _user_add(args: argparse.Namespace, output: Output, context: Context) -> int:
    return _show_password(args, output, accounts.add(context, args.name, args.role))


def _user_password(args: argparse.Namespace, output: Output, context: Context) -> int:
    return _show_password(args, output, accounts.reset_password(context, args.name))


def _user_role(args: argparse.Namespace, output: Output, context: Context) -> int:
    accounts.set_role(context, args.name, args.role)
    output.line(f"{args.name} is {args.role} now")
    return 0


def _user_remove(args: argparse.Namespace, output: Output, context: Context) -> int:
    accounts.remove(context, args.name)
    output.line(f"{args.name} was removed")
    return 0


def _token_list(args: argparse.Namespace, output: Output, context: Context) -> int:
    found = accounts.token_listing(context)
    if args.json:
        output.json(
            [{key: value for key, value in asdict(each).items() if key != "secret"} for each in found]
        )
        return 0
    rows = [[each.name, each.role, when(each.expires), when(each.last_used)] for each in found]
    output.table(("NAME", "ROLE", "EXPIRES (UTC)", "LAST USED (UTC)"), rows)
    return 0


def _token_add(args: argparse.Namespace, output: Output, context: Context) -> int:
    made = accounts.make_token(context, args.name, args.role, args.days)
    if args.json:
        output.json({"name": made.name, "role": made.role, "expires": made.expires, "token": made.secret})
    else:
        output.line(made.secret)
    return 0


def _token_remove(args: argparse.Namespace, output: Output, context: Context) -> int:
    accounts.remove_token(context, args.name)
    output.line(f"token {args.name} was removed")
    return 0
