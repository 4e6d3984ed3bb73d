"""`igel-certs status` runs often on a small device: what it loads and how large it gets."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from igelcert.crypto import Key, parse_certificate, write_pfx
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
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

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
            write_pfx(fd, key, der, [], b"x", "x")

        def plain(fd: int, key: Key = key) -> None:
            key.write(fd, b"password")

        writers: tuple[Callable[[int], None], Callable[[int], None]] = (plain, pfx)
        made.put(
            f"cert-{number}",
            *writers,
            parse_certificate(der).pem(),
            [("Test CA", parse_certificate(ca).pem())],
        )
    return root


def status(tree: Path, *options: str) -> tuple[dict[str, object], str]:
    paths = ":".join([str(ROOT), sysconfig.get_path("platlib")])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CODE, paths, "status", "--root", str(tree), *options],
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
