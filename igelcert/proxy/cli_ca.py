"""ca-proxy ca: the CA behind the proxy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .. import crypto
from . import cacerts
from .clitools import Output, UsageError, read_file, read_password, when
from .context import Context
from .database import now
from .keystore import open_keystore
from .upstream import Step
from .upstream.config import CaConfig, EstSettings, clear, load, show, store

__all__ = ["add_commands"]

SET_EST = """\
Configures the CA: an EST server (RFC 7030), reached with a client certificate.

The keystore is PKCS#12 and holds the private key, its certificate with the CA certificates behind it, and the
web certificate of the EST server (or the CA that issued it), which is then what the server is trusted by. The
keystore and its key share one password. The new configuration counts from the next request on; no restart.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    ca = commands.add_parser(
        "ca", help="the CA behind the proxy: set-est, show, test, clear", description=__doc__
    )
    actions = ca.add_subparsers(dest="action", required=True, metavar="ACTION")

    est = actions.add_parser(
        "set-est", help="configure an EST server", description=SET_EST, parents=[common], formatter_class=raw
    )
    est.add_argument("--name", required=True, metavar="N", help="how you call this configuration")
    est.add_argument(
        "--host", required=True, metavar="H", help="host name of the EST server, as its certificate has it"
    )
    est.add_argument("--port", type=int, default=443, metavar="P", help="default 443")
    est.add_argument(
        "--label",
        default="",
        metavar="L",
        help="CA label (in EJBCA: the EST alias); letters, digits, _ and -; case counts",
    )
    est.add_argument("--keystore", type=Path, required=True, metavar="FILE", help="PKCS#12")
    est.add_argument(
        "--keystore-password-file",
        type=Path,
        required=True,
        metavar="F",
        help="its password is the first line of F",
    )
    est.add_argument("--yes", action="store_true", help="replace a configuration without asking")
    est.set_defaults(function=_set_est, opens=True)

    text = "show the configuration, never its secrets"
    shown = actions.add_parser("show", help=text, description=text, parents=[common])
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.set_defaults(function=_show, opens=True)

    text = (
        "try every link to the CA and say in words which one fails: "
        "name, TCP, TLS trust, client certificate, label, CA answer"
    )
    test = actions.add_parser("test", help=text, description=text, parents=[common])
    test.add_argument("--json", action="store_true", help="print JSON")
    test.set_defaults(function=_test, opens=True)

    text = "remove the configuration: devices are told to come back later"
    gone = actions.add_parser("clear", help=text, description=text, parents=[common])
    gone.add_argument("--yes", action="store_true", help="do not ask")
    gone.set_defaults(function=_clear, opens=True)


def _set_est(args: argparse.Namespace, output: Output, context: Context) -> int:
    settings = EstSettings(args.name, args.host, args.port, args.label)
    keystore = read_file("--keystore", args.keystore)
    password = read_password("--keystore-password-file", args.keystore_password_file)
    opened = open_keystore(keystore, password, now())
    old = show(context)
    if old is not None and old.kind != "est":
        _ask(args, f"This replaces the {old.kind.upper()} configuration {old.name!r}.")
    store(context, settings, keystore, password)
    for warning in opened.warnings:
        print(f"ca-proxy: warning: {warning}", file=sys.stderr)
    output.line(f"{settings.name}: EST on {settings.host}:{settings.port}, {_label(settings)}")
    output.line(f"client certificate: {opened.cert.subject_text}, until {when(opened.cert.not_after)}")
    output.line("try it with: ca-proxy ca test")
    return 0


def _label(settings: EstSettings) -> str:
    return f"label {settings.label}" if settings.label else "no label"


def _ask(args: argparse.Namespace, text: str) -> None:
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{text} Nothing was changed", hint="--yes does it without asking")
    if input(f"{text} Go on? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was changed")


def _show(args: argparse.Namespace, output: Output, context: Context) -> int:
    config = load(context)
    if config is None:
        if args.json:
            output.json(None)
        else:
            output.line("no CA is configured; see: ca-proxy ca set-est --help")
        return 0
    opened = open_keystore(config.keystore, config.password, 0)
    certs, fetched = cacerts.known(context, config.version)
    authorities = [crypto.parse_certificate(der) for der in certs]
    if args.json:
        output.json(_as_json(config, opened.cert, authorities, fetched))
        return 0
    est = config.est
    output.line(f"Name                {est.name}")
    output.line("Protocol            EST")
    output.line(f"Server              {est.host}:{est.port}, {_label(est)}")
    output.line(f"Client certificate  {opened.cert.subject_text}")
    output.line(f"  issued by         {opened.cert.issuer_text}")
    output.line(
        f"  until             {when(opened.cert.not_after)}{' EXPIRED' if opened.cert.not_after <= now() else ''}"
    )
    for cert in opened.trust:
        output.line(f"Server trusted by   {cert.subject_text}")
    for cert in authorities:
        output.line(f"CA certificate      {cert.subject_text}, until {when(cert.not_after)}")
    if fetched:
        output.line(f"  asked             {when(fetched)}")
    output.line(f"Changed             {when(config.updated)}")
    return 0


def _as_json(
    config: CaConfig, cert: crypto.Certificate, authorities: list[crypto.Certificate], fetched: int
) -> dict[str, Any]:
    return {
        "kind": "est",
        "name": config.est.name,
        "host": config.est.host,
        "port": config.est.port,
        "label": config.est.label,
        "client_certificate": {
            "subject": cert.subject_text,
            "issuer": cert.issuer_text,
            "serial": cert.serial_hex,
            "not_after": cert.not_after,
        },
        "ca_certificates": [
            {"subject": each.subject_text, "sha256": each.sha256.hex(), "not_after": each.not_after}
            for each in authorities
        ],
        "ca_certificates_fetched": fetched or None,
        "version": config.version,
        "updated": config.updated,
    }


def _test(args: argparse.Namespace, output: Output, context: Context) -> int:
    upstream = context.upstreams.current()
    steps: list[Step] = []
    for step in upstream.test():
        steps.append(step)
        if not args.json:
            output.line(f"{'ok    ' if step.ok else 'FAILED'}  {step.name:<18}  {step.text}")
            if step.hint and not step.ok:
                output.line(f"{'':8}{'':18}  {step.hint}")
            sys.stdout.flush()
    good = bool(steps) and all(step.ok for step in steps)
    if good:
        cacerts.fresh(context, upstream, anew=True)
    if args.json:
        rows = [{"step": s.name, "ok": s.ok, "text": s.text, "hint": s.hint} for s in steps]
        output.json({"ok": good, "steps": rows})
    return 0 if good else 1


def _clear(args: argparse.Namespace, output: Output, context: Context) -> int:
    row = show(context)
    if row is None:
        output.line("no CA was configured")
        return 0
    _ask(args, f"This removes the configuration {row.name!r} and its keystore.")
    clear(context)
    output.line(f"{row.name} was removed")
    return 0
