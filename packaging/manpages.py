"""Writes docs/man/*.1 from the commands' own parsers: `python packaging/manpages.py [DIR]`.

The parsers are asked, not their printed help, so that every Python version writes the same bytes. The pages are kept
in the repository because ca-proxy's parser needs the proxy's dependencies, which a package's build does without;
tests/packaging/test_files.py compares them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# command -> module of its parser, what it is in a line, FILES, SEE ALSO
PAGES = {
    "igel-certs": (
        "igelcert.device.cli",
        "keys and certificates of this device, as its settings say",
        {
            "/etc/igelcert/device.toml": "what the image says; every key is commented there",
            "/etc/igelcert/hooks.d": "programs that are told of new certificates",
            "/wfs/igel-certs": "certificates and keys, by friendly name",
            "/etc/ssl/certs": "the OpenSSL store that the CA certificates go to",
        },
        ["rmagent(1)", "openssl(1)"],
    ),
    "rmagent": (
        "igelcert.device.rmagent_cli",
        "agent that speaks with the proxy on behalf of this device",
        {
            "/etc/igelcert/device.toml": "what the image says; every key is commented there",
            "/wfs/igel-rmagent": "the management identity, and the settings that were received last",
        },
        ["igel-certs(1)"],
    ),
    "ca-proxy": (
        "igelcert.proxy.cli",
        "registration authority between devices and a company's PKI",
        {
            "DIR/master.key": "encrypts every secret in the database; see backup and rekey",
            "DIR/proxy.db": "the database",
            "DIR/proxy.toml": "configuration; its comments say what each key does",
            "DIR/trust.pem": "the CA certificate that devices trust",
        },
        ["igel-certs(1)", "rmagent(1)"],
    ),
    "lab-ca": (
        "igelcert.labca.cli",
        "small certification authority to try igelcert with",
        {"DIR/ra.p12, DIR/ra.p12.password": "keystore for ca-proxy ca set-est"},
        ["ca-proxy(1)"],
    ),
}


def escape(text: str) -> str:
    """Text as roff prints it: no escapes, no line that begins as a request, hyphens as they are typed."""
    text = (
        text.replace("\\", r"\e")
        .replace("-", r"\-")
        .replace("…", "...")
        .replace("^", r"\(ha")
        .replace("~", r"\(ti")
    )
    return "\n".join(r"\&" + line if line[:1] in {".", "'"} else line for line in text.split("\n"))


def bold(text: str) -> str:
    return rf"\fB{escape(text)}\fR"


def italic(text: str) -> str:
    return rf"\fI{escape(text)}\fR"


def paragraphs(text: str) -> Iterator[str]:
    for number, part in enumerate(text.strip().split("\n\n")):
        if number:
            yield ".PP"
        yield escape(part)


def block(text: str) -> Iterator[str]:
    """Lines as they stand."""
    yield from (".nf", escape(text), ".fi")


def value_of(action: argparse.Action) -> str:
    """What follows the option, or stands for the argument: a name, or its choices."""
    if action.metavar is None and action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def values(action: argparse.Action) -> str:
    name = italic(value_of(action))
    return {"+": f"{name} ...", "*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options and arguments but --help, in the order of their definition."""
    return [
        action
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
        and action.help != argparse.SUPPRESS
    ]


def children(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, help and parser of each subcommand."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in action.choices.items():
                yield name, said.get(name, ""), child


def usage(parser: argparse.ArgumentParser) -> str:
    words = [bold(parser.prog)]
    for action in shown(parser):
        if not action.option_strings:
            words.append(values(action))
            continue
        word = bold(action.option_strings[-1]) + ("" if action.nargs == 0 else " " + values(action))
        words.append(word if action.required else f"[{word}]")
    return "\n".join(words)


def expanded(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return " ".join(parser._get_formatter()._expand_help(action).split()) if action.help else ""


def command(parser: argparse.ArgumentParser, said: str) -> Iterator[str]:
    """The section of a subcommand and those below it."""
    below = list(children(parser))
    if not below:
        yield f".SS {parser.prog.partition(' ')[2]}"
        text = parser.description or said
        if (own := own_usage(parser)) is not None:
            yield from block(own)
            return
        yield usage(parser)
        yield ".PP"
        yield from paragraphs(text[:1].upper() + text[1:])
        for action in shown(parser):
            yield ".TP"
            option = bold(action.option_strings[-1]) + " " if action.option_strings else ""
            yield (option + ("" if action.nargs == 0 else values(action))).rstrip()
            yield escape(expanded(parser, action))
    for name, text, child in below:
        yield from command(child, text or name)


def own_usage(parser: argparse.ArgumentParser) -> str | None:
    """`igel-certs status` reads its words itself."""
    if parser.prog != "igel-certs status":
        return None
    return str(import_module("igelcert.device.status").USAGE).rstrip()


def epilog(text: str) -> Iterator[str]:
    """Its parts, each with a heading that ends in a colon, as sections."""
    for part in (text or "").strip().split("\n\n"):
        heading, _, rest = part.partition(":")
        yield f".SH {heading.upper()}"
        yield from block(rest.strip("\n"))


def page(name: str) -> str:
    module, line, files, also = PAGES[name]
    parser: argparse.ArgumentParser = import_module(module)._parser()
    version = import_module("igelcert").__version__
    lines = [
        r".\" Written by packaging/manpages.py from the parser of the command; changes belong there.",
        f'.TH {name.upper()} 1 "" "igelcert {version}" "User Commands"',
        ".SH NAME",
        rf"{escape(name)} \- {escape(line)}",
        ".SH SYNOPSIS",
        f"{bold(name)} {italic('COMMAND')} ...",
        ".PP",
        f"{bold(name)} [{italic('COMMAND')}] {bold('--help')}",
        ".PP",
        f"{bold(name)} {bold('--version')}",
        ".SH DESCRIPTION",
        *paragraphs(parser.description or ""),
        ".SH COMMANDS",
    ]
    for child_name, text, child in children(parser):
        lines += command(child, text or child_name)
    lines += epilog(parser.epilog or "")
    lines.append(".SH FILES")
    for path, what in files.items():
        lines += [".TP", italic(path), escape(what)]
    lines += [".SH SEE ALSO", ", ".join(bold(entry[:-3]) + entry[-3:] for entry in also)]
    return "\n".join(lines) + "\n"


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/man"
    directory.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        (directory / f"{name}.1").write_text(page(name), encoding="ascii")


if __name__ == "__main__":
    main()
