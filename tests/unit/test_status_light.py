"""`igel-certs status` runs often on a small device: what it loads, how large it gets, what it shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from igelcert.crypto import Key, Password, parse_certificate, write_pfx
from igelcert.device.store import Tree
from tests.support.badca import make_ca, sign

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"cryptography", "urllib3", "sqlalchemy", "flask", "gunicorn", "alembic", "werkzeug", "asn1crypto", "pyasn1",
         "ssl", "socket", "http", "logging", "email", "argparse", "pathlib"}  # fmt: skip
RSS_KB = 16_000

# As on a device: no site-packages of others, no user's environment.
CODE = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from igelcert.device.cli import main
code = main(sys.argv[2:])
modules = sorted(sys.modules)
import json
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("@" + json.dumps({"code": code, "modules": modules, "peak": int(peak.split()[1])}))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve certificates, as many as the key types."""
    root = tmp_path_factory.mktemp("root")
    (root / "wfs").mkdir()
    made = Tree(str(root / "wfs"))
    made.prepare()
    authority, issuer = make_ca("Test CA")
    for number in range(12):
        key = Key.generate("ec_prime256v1")
        public = serialization.load_der_public_key(key.spki())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"tc-{number}")])
        der = sign(name, public, issuer.subject, authority).public_bytes(serialization.Encoding.DER)
        ca = issuer.public_bytes(serialization.Encoding.DER)

        def pfx(fd: int, key: Key = key, der: bytes = der) -> None:
            write_pfx(fd, key, der, [], Password(b"x"), "x")

        def plain(fd: int, key: Key = key) -> None:
            key.write(fd, Password(b"password"))

        writers: tuple[Callable[[int], None], Callable[[int], None]] = (plain, pfx)
        made.put(
            f"cert-{number}",
            *writers,
            parse_certificate(der).pem(),
            [("Test CA", parse_certificate(ca).pem())],
        )
    return root


def _python() -> str:
    """The system's interpreter, as on a device, when the native modules fit it; else ours."""
    system = "/usr/bin/python3"
    script = "import sys; sys.path[:0] = sys.argv[1:]; import igelcert.crypto"
    command = [system, "-I", "-S", "-c", script, str(ROOT), sysconfig.get_path("platlib")]
    if os.access(system, os.X_OK) and subprocess.run(command, capture_output=True).returncode == 0:
        return system
    return sys.executable


PYTHON = _python()


def status(tree: Path, *options: str) -> tuple[dict[str, object], str]:
    paths = ":".join([str(ROOT), sysconfig.get_path("platlib")])
    done = subprocess.run(
        [PYTHON, "-I", "-S", "-c", CODE, paths, "status", "--root", str(tree), *options],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    shown, _, figures = done.stdout.rpartition("@")
    return json.loads(figures), shown


def test_what_it_imports(tree: Path) -> None:
    figures, shown = status(tree)
    modules = figures["modules"]
    assert isinstance(modules, list)
    assert figures["code"] == 0 and shown.count(": valid\n") == 12
    assert "igelcert._core" in modules, "or it did not look at the certificates"
    assert {name.split(".")[0] for name in modules} & HEAVY == set()
    assert [name for name in modules if name.startswith(("igelcert.proxy", "igelcert.labca"))] == []


def test_how_large_it_gets(tree: Path) -> None:
    figures, _ = status(tree, "--json")
    assert figures["code"] == 0
    peak = figures["peak"]
    assert isinstance(peak, int) and peak <= RSS_KB


def test_what_it_shows(tree: Path) -> None:
    _, shown = status(tree, "cert-3")
    for part in (
        "cert-3: valid",
        "subject  CN=tc-3",
        "issuer   CN=Test CA",
        "serial ",
        "expires ",
        "renewal ",
    ):
        assert part in shown


def _note(tree: Path, name: str, **state: object) -> None:
    (tree / "wfs/igel-certs/.store" / name).mkdir(parents=True, exist_ok=True)
    (tree / "wfs/igel-certs/.store" / name / "state.json").write_text(json.dumps({"version": 1, **state}))


@pytest.fixture
def states(tree: Path, tmp_path: Path) -> Path:
    """A certificate in each state."""
    root = tmp_path / "root"
    shutil.copytree(tree, root, symlinks=True)
    certs = root / "wfs/igel-certs"
    _note(root, "cert-0", renew_at=2_000_000_000)
    _note(root, "cert-1", renew_at=1_700_000_000)
    _note(root, "cert-2", renew_at=None)
    (certs / "cert-3/cert.pem").write_text("no PEM")
    (certs / ".store/cert-4/state.json").write_text('{"version"')
    _note(root, "new", error="the server refused (403): no such right")
    _note(root, "waiting", pending="the CA has not decided yet", retry_at=1_900_000_000)
    return root


def _look(place: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in [place, *place.rglob("*")]}


def test_every_state(states: Path) -> None:
    before = _look(states)
    figures, shown = status(states)
    assert figures["code"] == 0 and _look(states) == before, "it only looks"
    blocks = {name: status(states, name)[1] for name in ("cert-0", "cert-1", "cert-2", "cert-3", "cert-4")}
    assert "cert-0: valid\n" in blocks["cert-0"] and "renewal  2033-05-18 03:33:20 UTC" in blocks["cert-0"]
    assert "cert-1: due\n" in blocks["cert-1"] and "renewal  2023-11-14 22:13:20 UTC" in blocks["cert-1"]
    assert "cert-2: valid\n" in blocks["cert-2"] and "renewal  not automatic" in blocks["cert-2"]
    assert blocks["cert-3"] == "cert-3: damaged\n"
    assert "cert-4: valid\n" in blocks["cert-4"], "damaged notes are no reason to show nothing"
    assert "new: missing\n  error    the server refused (403): no such right\n" in shown
    assert "waiting: pending\n  retry    2030-03-17 17:46:40 UTC\n" in shown


def test_json_says_the_same(states: Path) -> None:
    figures, shown = status(states, "cert-0", "new", "--json")
    first, second = json.loads(shown)["certificates"]
    pem = (states / "wfs/igel-certs/cert-0/cert.pem").read_bytes()
    cert = x509.load_pem_x509_certificate(pem)
    assert figures["code"] == 0
    assert (first["state"], first["subject"], first["issuer"]) == ("valid", "CN=tc-0", "CN=Test CA")
    assert (int(first["serial"], 16), first["renew_at"]) == (cert.serial_number, 2_000_000_000)
    assert first["not_after"] == int(cert.not_valid_after_utc.timestamp())
    assert first["directory"] == str(states / "wfs/igel-certs/cert-0")
    assert (second["state"], second["error"]) == ("missing", "the server refused (403): no such right")


def test_names_and_places(states: Path, tmp_path: Path) -> None:
    figures, shown = status(states, "cert-0", "nope")
    assert figures["code"] == 1 and "cert-0: valid" in shown
    figures, shown = status(tmp_path / "nowhere")
    assert (figures["code"], shown) == (0, "no certificates\n")


def test_a_configuration_that_moves_the_tree(states: Path) -> None:
    """Only then is TOML parsed, which takes longer than all the rest."""
    (states / "etc/igelcert").mkdir(parents=True)
    (states / "etc/igelcert/device.toml").write_text('unit_id = "A"\n')
    assert "tomllib" not in str(status(states)[0]["modules"])
    (states / "etc/igelcert/device.toml").write_text('wfs = "/data"\n')
    (states / "wfs").rename(states / "data")
    figures, shown = status(states)
    assert "cert-0: valid" in shown and "tomllib" in str(figures["modules"])
