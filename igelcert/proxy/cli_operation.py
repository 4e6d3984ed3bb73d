"""ca-proxy backup, restore, rekey and management-ca: what an operator does over the years, while devices go on."""

from __future__ import annotations

import argparse
import getpass
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from . import cli_database
from .clitools import Output, UsageError, progress, read_password, when
from .context import Context

__all__ = ["add_commands"]

PASSPHRASE_LEAST = 12

REKEY = """\
Changes the master key, under which every secret in the database is sealed, while proxies serve. Run it again
whenever it was cut: it goes on where it stood.

With the embedded database it does all of it. Several proxies on PostgreSQL need the new key before anything is sealed
under it: the first run makes the key, in this proxy's master.key; copy that file to each other proxy's machine
and run `ca-proxy rekey --add FILE` there; then run `ca-proxy rekey` here again. It names the proxies that serve and have
not got the key, and does nothing before. At its end run `ca-proxy rekey --drop` at the others. Backups that were made
before still need the old key: each holds its own.
"""
BACKUP = """\
Writes everything that this proxy needs to come back on another machine into one file, while it serves. Secrets
in the database stay encrypted under the master key.

The master key goes with it, encrypted under a passphrase of at least 12 characters, which is asked for, or is the
first line of --passphrase-file: who has the file and the passphrase has every secret of this proxy. With --without-key it
stays out: keep DIR/master.key elsewhere then, since without it the file is worth nothing. With PostgreSQL the
file holds configuration and key; the database is saved by pg_dump.
"""
RESTORE = """\
Makes the data directory of a backup, which must not be there or be empty. Everything is checked first: that the file is
whole, its schema, that the master key opens the database's secrets. When anything fails, nothing is there.

Devices go on with the names that the old machine had: let these lead to the new one. What was registered, renewed or
enrolled after the backup is unknown here; such a device registers again with a token. With PostgreSQL restore the
database with pg_restore first, and name it with --database.
"""
MANAGEMENT = """\
The proxy's own CA, which vouches for devices towards the proxy and for the proxy towards devices. It has nothing to do
with the company's CA. It is changed in three steps: roll makes a new one, which devices learn to trust; switch lets it
issue, the proxy's certificate and those of the devices; retire ends the old one. show says what is next, and which
devices it waits for.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    made = commands.add_parser(
        "rekey", help="change the master key while proxies serve", description=REKEY, parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--add",
        type=Path,
        metavar="FILE",
        help="take the keys of another proxy's master.key, and do nothing else",
    )
    which.add_argument(
        "--drop", action="store_true",
        help="take keys that nothing needs any more out of this proxy's master.key, and do nothing else",
    )  # fmt: skip
    which.add_argument("--show", action="store_true", help="say how far it is, and do nothing")
    made.set_defaults(function=_rekey, opens=True)
    _backup_commands(commands, common)
    _management_commands(commands, common)


def _backup_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    made = commands.add_parser(
        "backup", help="save everything that this proxy needs into one file, while it serves", description=BACKUP,
        parents=[common], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument(
        "file", type=Path, metavar="FILE", help="that is written; one that is there is never replaced"
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="F",
        help=f"the master key is encrypted under the first line of F, {PASSPHRASE_LEAST} characters or more",
    )
    which.add_argument("--without-key", action="store_true", help="leave the master key out")
    made.set_defaults(function=_backup, opens=True)
    made = commands.add_parser(
        "restore", help="make the data directory of a backup", description=RESTORE,
        parents=[common], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("file", type=Path, metavar="FILE", help="that `ca-proxy backup` wrote")
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--passphrase-file", type=Path, metavar="F", help="the passphrase is the first line of F"
    )
    which.add_argument(
        "--master-key",
        type=Path,
        metavar="KEYFILE",
        help="the master key that was kept apart from the backup",
    )
    cli_database.add_url(
        made, "--database", "the PostgreSQL database into which pg_restore put this proxy's", required=False
    )
    made.set_defaults(function=_restore, opens=False)


def _management_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "the proxy's own CA: show, roll, switch, retire"
    group = commands.add_parser("management-ca", help=text, description=MANAGEMENT)
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, function: Any, text: str) -> Any:
        made = actions.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(function=function, opens=True)
        return made

    made = add("show", _show, "every management CA, how many devices go by it, and what is next")
    made.add_argument("--json", action="store_true", help="print JSON")
    add("roll", _roll, "make the CA that is to follow; devices learn to trust it, nothing else changes")
    made = add(
        "switch", _switch, "let the new CA issue; refused while devices have not said that they trust it"
    )
    made.add_argument(
        "--now", action="store_true",
        help="although some have not: they still know the proxy by the old CA, until that is retired",
    )  # fmt: skip
    made = add("retire", _retire, "end the old CA; refused while devices go by it that have nothing newer")
    made.add_argument(
        "--now",
        action="store_true",
        help="although some do: each needs a new token and the new trust.pem then",
    )


# ---- backups ------------------------------------------------------------------------------------


def _backup(args: argparse.Namespace, output: Output, context: Context) -> int:
    from . import backup

    if str(args.file) == "-":
        raise UsageError("a backup goes into a file, not to stdout")
    passphrase = None if args.without_key else _passphrase(args.passphrase_file, new=True)
    saved = backup.save(context, args.file, passphrase)
    what = f"{saved.devices} devices" if saved.database else "configuration"
    output.line(f"{args.file}: {what}, schema {saved.schema}, checked")
    if not saved.key:
        output.line(f"the master key is not in it: keep {context.data / 'master.key'} in another place")
    if not saved.database:
        output.line("the database is not in it: pg_dump --format=custom --file=proxy.dump URL")
    return 0


def _restore(args: argparse.Namespace, output: Output) -> int:
    from . import backup

    database = cli_database.url_of(args, "--database")
    passphrase = None if args.master_key else _passphrase(args.passphrase_file, new=False)
    saved = backup.restore(args.file, args.data, passphrase, args.master_key, database)
    output.line(f"{args.data}: {saved.devices} devices, as of {when(saved.created)} UTC")
    output.line("start it: ca-proxy serve; the names in its proxy.toml must lead to this machine")
    return 0


def _passphrase(file: Path | None, *, new: bool) -> str | None:
    """From the file, or from whoever sits there; None when nobody does."""
    if file is not None:
        found = read_password("--passphrase-file", file)
    elif sys.stdin.isatty():
        found = getpass.getpass("passphrase for the master key in the backup: ")
        if new and found != getpass.getpass("once more: "):
            raise UsageError("the two are not the same")
    elif new:
        raise UsageError(
            "nothing says what is to become of the master key",
            hint="give --passphrase-file F to encrypt it in the backup, or --without-key and keep it apart",
        )
    else:
        return None
    if new and len(found) < PASSPHRASE_LEAST:
        raise SettingsError("--passphrase-file", f"a passphrase has at least {PASSPHRASE_LEAST} characters")
    return found


# ---- the master key -----------------------------------------------------------------------------


def _rekey(args: argparse.Namespace, output: Output, context: Context) -> int:
    from . import rekeying
    from .secrets import Sealer

    if args.show:
        return _rekey_state(output, rekeying.state(context))
    only_here = args.drop or args.add is not None
    with rekeying.alone(context, None if only_here else args.started):
        if args.add is not None:
            count = rekeying.take_over(context, Sealer.open(args.add))
            output.line(f"{count} new key(s) in {context.data / 'master.key'}")
            return 0
        if not args.drop:
            found = rekeying.state(context)
            # the key of before stands first until it is dropped: then a change is at its last steps
            if found.coming or found.current == found.here[0]:
                rekeying.begin(context)
                if context.db.shared and not found.coming:
                    return _distribute(output, context)
            rekeying.switch(context)
            for done in rekeying.reseal(context):
                progress(f"{done} sealed anew")
        count = rekeying.drop(context)
        output.line(
            f"secrets are under the key {rekeying.state(context).current}; {count} old key(s) dropped here"
        )
        if context.db.shared and not args.drop:
            output.line("run at each other proxy: ca-proxy rekey --drop")
    return 0


def _distribute(output: Output, context: Context) -> int:
    output.line(f"a new key is in {context.data / 'master.key'}; nothing is sealed under it yet")
    output.line("copy that file to the machine of each other proxy, and run there: ca-proxy rekey --add FILE")
    output.line("then run here again: ca-proxy rekey")
    return 0


def _rekey_state(output: Output, found: Any) -> int:
    output.line(f"Key that seals         {found.current}")
    output.line(f"Key that is to follow  {found.coming or '-'}")
    output.line(f"Keys here              {' '.join(found.here)}")
    output.line(f"Still under others     {found.others}")
    if found.lacking:
        output.line(f"Missing at             {' '.join(found.lacking)}")
    return 0


# ---- the management CA --------------------------------------------------------------------------


def _show(args: argparse.Namespace, output: Output, context: Context) -> int:
    from . import rollover

    cas, behind = rollover.cas(context), rollover.lagging(context)
    if args.json:
        output.json({"cas": [asdict(ca) for ca in cas], "waits_for": asdict(behind), "next": _next(cas)})
        return 0
    rows = [
        [str(ca.number), ca.state, when(ca.created), when(ca.not_after), str(ca.devices), ca.sha256]
        for ca in cas
    ]
    output.table(("CA", "STATE", "MADE (UTC)", "ENDS (UTC)", "DEVICES", "SHA-256"), rows)
    step = _next(cas)
    output.line()
    output.line(
        f"Next        ca-proxy management-ca {step}" + (", when it is time" if step == "roll" else "")
    )
    if behind.count:
        output.line(f"It waits for  {behind.named}")
    return 0


def _next(cas: list[Any]) -> str:
    states = {ca.state for ca in cas}
    return "retire" if "leaving" in states else "switch" if "coming" in states else "roll"


def _roll(_args: argparse.Namespace, output: Output, context: Context) -> int:
    from . import rollover

    rollover.roll(context)
    behind = rollover.lagging(context)
    wait = f"{behind} yet to hear of it" if behind.count else "no device has to hear of it"
    output.line(f"a new management CA is trusted beside the old one; {wait}")
    output.line(f"new devices are given the new {context.data / 'trust.pem'}, which holds both CAs;")
    output.line("one that has the old one, or its fingerprint, registers until the old CA is retired")
    output.line("next: ca-proxy management-ca switch")
    return 0


def _switch(args: argparse.Namespace, output: Output, context: Context) -> int:
    from . import rollover

    rollover.switch(context, now_=args.now)
    output.line("the new management CA issues; devices renew their management certificates as they come")
    output.line("next, when all did: ca-proxy management-ca retire")
    return 0


def _retire(args: argparse.Namespace, output: Output, context: Context) -> int:
    from . import rollover

    behind = rollover.retire(context, now_=args.now)
    output.line("the old management CA counts no more")
    if behind.count:
        whom = str(behind.count) + (" devices go" if behind.count != 1 else " device goes")
        output.line(
            f"{whom} by it still, and cannot come any more: each needs a new token and the new trust.pem"
        )
        output.line(f"as {', '.join(behind.units)}{' …' if behind.count > len(behind.units) else ''}")
    return 0
