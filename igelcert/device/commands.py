"""What the igel-certs commands do."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from .. import crypto
from ..codec.http import Request, plain_reason
from ..errors import Error, SettingsError, StorageError
from ..settings import Settings
from . import files, keys, schedule
from .agent import Agent, load_settings
from .config import Config, load
from .log import Log
from .store import Tree

__all__ = ["read_secret", "run"]

MIN_FREE = 1 << 20  # bytes


def run(args: argparse.Namespace, log: Log) -> int:
    config = load(args.root, args.config)
    log = Log("igel-certs", screen=args.verbose or log._screen, level=config.log_level)
    if args.command == "keygen":
        return _keygen(args, config, log)
    with Agent(config, log) as agent:
        if args.command == "apply":
            return agent.run().apply(_settings(args, agent), lambda: _settings(args, agent))
        if args.command == "renew":
            settings = _settings(args, agent)
            return agent.run().renew(settings, args.names, args.force, lambda: _settings(args, agent))
        if args.command == "install-cas":
            return agent.run().install_cas()
        return _doctor(agent, args.json)


def _settings(args: argparse.Namespace, agent: Agent) -> Settings:
    """Those that were given, else the stored ones."""
    if not args.settings:
        return _stored(agent)
    if not os.path.exists(args.settings):
        raise StorageError(f"cannot read {args.settings}: it is not there")
    return load_settings(args.settings)


def _stored(agent: Agent) -> Settings:
    path = os.path.join(agent.dir, "settings.json")
    try:
        return load_settings(path)
    except SettingsError as err:
        if err.path == path:
            raise
        hint = "they are the proxy's; rmagent sync fetches them anew when they are damaged"
        raise SettingsError(f"{path}: {err.path}" if err.path else path, err.reason, hint=hint) from None


def read_secret(path: str) -> str:
    """The first line of a file, without its end."""
    try:
        text = files.read(path, 65_536).decode("utf-8")
    except FileNotFoundError:
        raise StorageError(f"cannot read {path}: it is not there") from None
    except UnicodeDecodeError:
        raise StorageError(f"{path} is not UTF-8 text") from None
    line = text.split("\n", 1)[0].rstrip("\r")
    if not line:
        raise StorageError(f"{path} is empty")
    return line


def _show_progress(tested: int, primes: int) -> None:
    """One line of the terminal, written over again and again."""
    line = f"{min(primes, 2)} of 2 primes found, {tested} candidates tested"
    print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)


def _generate(kind: str, generator: str) -> crypto.Key:
    """The key; on a terminal with a line that shows how far it is. Ctrl-C ends it at once."""
    if not (kind.startswith("rsa_") and sys.stderr.isatty()):
        return crypto.Key.generate(kind, generator=generator, progress=lambda tested, primes: None)
    try:
        return crypto.Key.generate(kind, generator=generator, progress=_show_progress)
    finally:
        print(f"\r{'':60}\r", end="", file=sys.stderr, flush=True)


def _keygen(args: argparse.Namespace, config: Config, log: Log) -> int:
    password = read_secret(args.password_file).encode() if args.password_file else None
    if not 1000 <= args.iterations <= 10_000_000:
        raise SettingsError("--iterations", "is not between 1000 and 10000000")
    if os.path.lexists(args.out) and not args.force:
        raise StorageError(f"{args.out} is there already", hint="name another file, or give --force")
    key = _generate(args.type, config.key_generator)
    secret = crypto.Password(password, args.iterations) if password else None
    files.replace(os.path.abspath(args.out), lambda fd: key.write(fd, secret), 0o600)
    log.info(f"{args.out}: a key of type {args.type}, {'encrypted' if password else 'not encrypted'}")
    return 0


# ---- doctor -------------------------------------------------------------------------------------


def _doctor(agent: Agent, as_json: bool) -> int:
    """Each check in turn; a failed one does not stop the others."""
    checks = (
        ("clock", _clock),
        ("disk", _disk),
        ("identity", _identity),
        ("server", _server),
        ("keys", _keys),
        ("hooks", _hooks),
    )
    results = []
    for name, check in checks:
        try:
            results.append({"check": name, "ok": True, "text": check(agent), "hint": ""})
        except Error as err:
            results.append({"check": name, "ok": False, "text": str(err), "hint": err.hint})
    if as_json:
        print(json.dumps({"checks": results}, indent=1))
    else:
        for result in results:
            print(f"{'ok    ' if result['ok'] else 'FAILED'}  {result['check']:<9} {result['text']}")
            if result["hint"]:
                print(f"{'':18}{result['hint']}")
    return 0 if all(result["ok"] for result in results) else 1


def _clock(agent: Agent) -> str:
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if not schedule.clock_is_sane(int(time.time()), agent.clock_floor()):
        raise StorageError(f"the clock says {shown}, which cannot be", hint="set the clock")
    return shown


def _disk(agent: Agent) -> str:
    config: Config = agent.config
    try:
        room = os.statvfs(config.tree_root)
        free = room.f_bavail * room.f_frsize
        if not os.access(config.tree_root, os.W_OK):
            raise StorageError(f"{config.tree_root} cannot be written", hint="mount it writable")
    except OSError as err:
        raise files.failure(err, "look at", config.tree_root) from None
    if free < MIN_FREE:
        raise StorageError(f"{config.tree_root} has only {free} bytes left", hint="make room")
    return f"{config.tree_root} has {free >> 20} MiB left"


def _identity(agent: Agent) -> str:
    cert = agent.identity.certificate()
    if cert is None:
        raise SettingsError("", "this device is not registered", hint="run: rmagent register")
    left = cert.not_after - int(time.time())
    if left <= 0:
        raise StorageError(
            "the management certificate has expired",
            hint="run: rmagent register with a new token; but first look whether the clock is right",
        )
    return f"{cert.subject_text}, {left // 86_400} days left"


def _server(agent: Agent) -> str:
    with agent.identity.link() as link:
        answer = link.send(Request("GET", "/rmagent/settings"))
    if answer.status not in {200, 304}:
        reason = plain_reason(answer)
        raise StorageError(
            f"{agent.identity.server} answers {answer.status}{f': {reason}' if reason else ''}",
            hint="run: rmagent register with a new token"
            if answer.status in {401, 403}
            else "the proxy's log says more",
        )
    return f"{agent.identity.server} answers, and knows this device"


def _keys(agent: Agent) -> str:
    tree: Tree = agent.run().tree
    settings = _stored(agent)
    bad = []
    for cert in settings.certs:
        live = keys.live(tree, cert.friendly_name, cert.key.password)
        if live.cert is None or live.problem:
            bad.append(f"{cert.friendly_name}: {live.problem or 'no certificate'}")
        elif live.cert.not_after <= time.time():
            bad.append(f"{cert.friendly_name}: the certificate has expired")
    if bad:
        raise StorageError("; ".join(bad), hint="run: igel-certs apply")
    return f"{len(settings.certs)} certificate(s), each with its key"


def _hooks(agent: Agent) -> str:
    tree = agent.run().tree
    troubled = [
        f"{name}: {trouble.get('error')}"
        for name in tree.names()
        if isinstance(trouble := tree.state(name).get("hooks"), dict)
    ]
    if troubled:
        raise StorageError(
            "; ".join(troubled), hint="look into the hook and the log; hooks are run again by themselves"
        )
    return "every hook has heard of every certificate"
