"""ca-proxy ca: the CA behind the proxy."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .. import crypto
from ..codec.pem import decode_pem
from ..errors import ConflictError, Error
from . import ca, cacerts
from .clitools import Output, UsageError, agree, read_file, read_password, when
from .context import Context
from .database import now
from .keystore import MAX_KEYSTORE, open_keystore
from .upstream import Step
from .upstream.config import CaConfig, EstSettings, ScepSettings, clear, load, rate_of, show

__all__ = ["add_commands"]

YES = "replace a configuration of the other kind without asking; one of the same kind is replaced without any question"
POLL = 60  # seconds
PASSING = {"name", "TCP"}  # steps of a test that may hold another time, with nothing changed here
SET_EST = """\
Configures the CA: an EST server (RFC 7030), reached with a client certificate.

The keystore is PKCS#12 and holds the private key, its certificate with the CA certificates behind it, and the
web certificate of the EST server (or the CA that issued it), which is then what the server is trusted by. The
keystore and its key share one password. The new configuration counts from the next request on; no restart.
"""


SET_SCEP = """\
Configures the CA: a SCEP server (RFC 8894), such as EJBCA or Microsoft's NDES.

The URL is the whole address, as http://pki.example.com/ejbca/publicweb/apply/scep/ALIAS/pkiclient.exe or
http://ndes.example.com/certsrv/mscep/mscep.dll. Without --fingerprint anybody between this machine and the server can
pose as the CA: get it from the CA's operator (MD5, SHA-1 or SHA-256 of the root certificate). Device keys of every
type travel: the proxy signs with an RSA key of its own. A challenge password belongs into the certificate profile,
as the device signs it; NDES's one-time challenges are fetched when --ndes-url is given. The new configuration
counts from the next request on; no restart.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    group = commands.add_parser(
        "ca", help="the CA behind the proxy: set-est, set-scep, show, test, clear", description=__doc__
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")

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
    _add_rate(est)
    est.add_argument("--yes", action="store_true", help=YES)
    est.set_defaults(function=_set_est, opens=True)

    scep = actions.add_parser(
        "set-scep",
        help="configure a SCEP server",
        description=SET_SCEP,
        parents=[common],
        formatter_class=raw,
    )
    scep.add_argument("--name", required=True, metavar="N", help="how you call this configuration")
    scep.add_argument("--url", required=True, metavar="URL", help="address of the SCEP server, http or https")
    scep.add_argument(
        "--profile",
        default="",
        metavar="P",
        help="sent as `message` with GetCACert and GetCACaps (in EJBCA: the CA's name); leave it out if unsure",
    )
    scep.add_argument(
        "--fingerprint",
        default="",
        metavar="HEX",
        help="MD5, SHA-1 or SHA-256 fingerprint of the root CA certificate; colons, blanks and case do not matter",
    )
    scep.add_argument(
        "--certificate",
        type=Path,
        metavar="FILE",
        help="PEM: the certificate of an https server, or of its CA (default: the CAs of this system)",
    )
    scep.add_argument(
        "--renewal",
        choices=("pkcsreq", "renewalreq"),
        default="pkcsreq",
        help="messageType of renewals: PKCSReq (19, the default) or RenewalReq (17)",
    )
    scep.add_argument(
        "--poll",
        type=int,
        metavar="SECONDS",
        help="between two questions after a pending request (default: that of the SCEP configuration that it replaces, "
        f"else {POLL})",
    )
    scep.add_argument(
        "--legacy",
        action="store_true",
        help="speak SHA-1 and triple DES with a server that announces nothing better",
    )
    scep.add_argument(
        "--ndes-url",
        default="",
        metavar="URL",
        help="the page of one-time challenges, .../certsrv/mscep_admin/",
    )
    scep.add_argument(
        "--ndes-user", default="", metavar="NAME", help="the account that may see it (DOMAIN\\NAME)"
    )
    scep.add_argument(
        "--ndes-password-file", type=Path, metavar="F", help="its password is the first line of F"
    )
    _add_rate(scep)
    scep.add_argument("--yes", action="store_true", help=YES)
    scep.set_defaults(function=_set_scep, opens=True)

    text = "show the configuration, never its secrets"
    shown = actions.add_parser("show", help=text, description=text, parents=[common])
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.set_defaults(function=_show, opens=True)

    text = (
        "try every link to the CA and say in words which one fails: "
        "name, TCP, TLS trust, and then for EST client certificate, label, CA answer; "
        "for SCEP capabilities, CA certificates, fingerprint"
    )
    test = actions.add_parser("test", help=text, description=text, parents=[common])
    test.add_argument("--json", action="store_true", help="print JSON")
    test.set_defaults(function=_test, opens=True)

    text = "remove the configuration: devices are told to come back later"
    gone = actions.add_parser("clear", help=text, description=text, parents=[common])
    gone.add_argument("--yes", action="store_true", help="do not ask")
    gone.set_defaults(function=_clear, opens=True)


def _add_rate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate",
        metavar="N/h",
        help="certificates that the CA may be asked for, such as 600/h or 10/min: devices are given windows in which to "
        "renew, below it; 0: none, and each device goes by its own rule (default: that of the configuration of the same "
        "kind that it replaces, else 0)",
    )


def _set_est(args: argparse.Namespace, output: Output, context: Context) -> int:
    rate, said = _rate(args, context, "est")
    settings = EstSettings(args.name, args.host, args.port, args.label, rate)
    keystore = read_file("--keystore", args.keystore, MAX_KEYSTORE)
    password = read_password("--keystore-password-file", args.keystore_password_file)
    config = ca.assemble(context, settings, keystore, password)
    _save(args, context, config)
    cert = open_keystore(keystore, password, 0).cert
    output.line(f"{settings.name}: EST on {settings.host}:{settings.port}, {_label(settings)}")
    output.line(f"client certificate: {cert.subject_text}, until {when(cert.not_after)} UTC")
    for line in said:
        output.line(line)
    output.line("try it with: ca-proxy ca test")
    return 0


def _set_scep(args: argparse.Namespace, output: Output, context: Context) -> int:
    if bool(args.ndes_url) != bool(args.ndes_password_file):
        raise UsageError("--ndes-url, --ndes-user and --ndes-password-file belong together")
    certificate = ""
    if args.certificate is not None:
        certificate = ca.certificate_text(read_file("--certificate", args.certificate))
    rate, said = _rate(args, context, "scep")
    poll = args.poll
    if poll is None:
        poll = _kept(context, "scep").get("poll", POLL)
        said += [f"kept: a question every {poll} seconds (--poll)"] if poll != POLL else []
    settings = ScepSettings(
        args.name,
        args.url,
        args.profile,
        args.fingerprint,
        certificate,
        args.renewal,
        args.legacy,
        poll,
        args.ndes_url,
        args.ndes_user,
        rate,
    )
    password = ""
    if args.ndes_password_file is not None:
        password = read_password("--ndes-password-file", args.ndes_password_file)
    _save(args, context, ca.assemble(context, settings, None, password))
    output.line(f"{settings.name}: SCEP on {settings.url}")
    for line in said:
        output.line(line)
    output.line("try it with: ca-proxy ca test")
    return 0


def _kept(context: Context, kind: str) -> dict[str, Any]:
    """Settings of the configuration of that kind that is there."""
    row = show(context)
    return json.loads(row.settings) if row is not None and row.kind == kind else {}


def _rate(args: argparse.Namespace, context: Context, kind: str) -> tuple[int, list[str]]:
    """As given, else as it is; a line where that is kept: it is the CA's pace, and no part of where the CA is."""
    if args.rate is not None:
        return rate_of(args.rate), []
    rate = int(_kept(context, kind).get("rate", 0))
    return rate, [f"kept: a rate of {rate} certificates an hour (--rate 0 ends it)"] if rate else []


def _save(args: argparse.Namespace, context: Context, config: CaConfig) -> None:
    try:
        ca.save(context, config)
    except ConflictError as err:
        agree(args, str(err))
        ca.save(context, config, replace=True)
    for warning in ca.warnings(config):
        print(f"ca-proxy: warning: {warning}", file=sys.stderr)


def _label(settings: EstSettings) -> str:
    return f"label {settings.label}" if settings.label else "no label"


def _show(args: argparse.Namespace, output: Output, context: Context) -> int:
    if args.json:
        output.json(ca.describe(context))
        return 0
    config = load(context)
    if config is None:
        output.line("no CA is configured; see: ca-proxy ca set-est --help, ca-proxy ca set-scep --help")
        return 0
    certs, fetched = cacerts.known(context, config.version)
    authorities = [crypto.parse_certificate(der) for der in certs]
    output.line(f"Name                {config.settings.name}")
    if isinstance(config.settings, ScepSettings):
        _show_scep(config.settings, output)
    else:
        _show_est(config, output)
    rate = config.settings.rate
    output.line(
        f"Rate                {f'{rate} certificates an hour' if rate else 'none: devices go by their own rule'}"
    )
    for cert in authorities:
        output.line(f"CA certificate      {cert.subject_text}, until {when(cert.not_after)} UTC")
    if fetched:
        output.line(f"  asked             {when(fetched)} UTC")
    output.line(f"Changed             {when(config.updated)} UTC")
    return 0


def _show_est(config: CaConfig, output: Output) -> None:
    opened = open_keystore(config.keystore, config.password, 0)
    est = config.est
    output.line("Protocol            EST")
    output.line(f"Server              {est.host}:{est.port}, {_label(est)}")
    output.line(f"Client certificate  {opened.cert.subject_text}")
    output.line(f"  issued by         {opened.cert.issuer_text}")
    output.line(
        f"  until             {when(opened.cert.not_after)} UTC{' EXPIRED' if opened.cert.not_after <= now() else ''}"
    )
    for cert in opened.trust:
        output.line(f"Server trusted by   {cert.subject_text}")


def _show_scep(scep: ScepSettings, output: Output) -> None:
    output.line("Protocol            SCEP")
    output.line(f"Server              {scep.url}{f', profile {scep.profile}' if scep.profile else ''}")
    output.line(f"Fingerprint         {scep.fingerprint or 'none: whoever answers is taken for the CA'}")
    output.line(f"Renewals            {'PKCSReq' if scep.renewal == 'pkcsreq' else 'RenewalReq'}")
    if scep.legacy:
        output.line("Legacy              SHA-1 and triple DES are allowed")
    if scep.ndes_url:
        output.line(f"Challenges          {scep.ndes_url} as {scep.ndes_user}")
    for der in decode_pem(scep.certificate.encode()):
        output.line(f"Server trusted by   {crypto.parse_certificate(der).subject_text}")


def _test(args: argparse.Namespace, output: Output, context: Context) -> int:
    if show(context) is None:
        raise Error("no CA is configured", hint="ca-proxy ca set-est, ca-proxy ca set-scep")
    steps: list[Step] = []
    for step in ca.test(context):
        steps.append(step)
        if not args.json:
            output.line(f"{'ok    ' if step.ok else 'FAILED'}  {step.name:<18}  {step.text}")
            if step.hint and not step.ok:
                output.line(f"{'':8}{'':18}  {step.hint}")
            sys.stdout.flush()
    good = bool(steps) and all(step.ok for step in steps)
    if args.json:
        rows = [{"step": s.name, "ok": s.ok, "text": s.text, "hint": s.hint} for s in steps]
        output.json({"ok": good, "steps": rows})
    if good:
        return 0
    return 75 if steps and steps[-1].name in PASSING else 1


def _clear(args: argparse.Namespace, output: Output, context: Context) -> int:
    row = show(context)
    if row is None:
        output.line("no CA was configured")
        return 0
    agree(args, f"This removes the configuration {row.name!r} and its secrets.")
    clear(context)
    output.line(f"{row.name} was removed")
    return 0
