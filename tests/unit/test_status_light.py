"""`igel-certs status` is run often on small machines: what it loads, what it takes, what it shows."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parents[2]
RSS_KB = 16 * 1024
HEAVY = {
    "cryptography", "urllib3", "sqlalchemy", "flask", "gunicorn", "werkzeug", "alembic", "argon2",
    "igelcert.proxy", "igelcert.labca",
}  # fmt: skip
# of the standard library: each costs more than status itself
SLOW = {
    "ssl",
    "http.client",
    "argparse",
    "tomllib",
    "dataclasses",
    "typing",
    "pathlib",
    "subprocess",
    "asyncio",
    "email",
}
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2036, 1, 1, tzinfo=datetime.UTC)
RENEW = datetime.datetime(2034, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)

# The command without an installation's start-up files: -I -S, and the two places that hold its modules.
SCRIPT = """
import sys
sys.path[1:1] = sys.argv[1:3]
words = sys.argv[3:]
from igelcert.device.cli import main
code = main(words)
sys.stdout.flush()
with open("/proc/self/status") as file:
    peak = next(line.split()[1] for line in file if line.startswith("VmHWM"))
print("\\n".join([peak, *sys.modules]), file=sys.stderr)
sys.exit(code)
"""


def pythons() -> list[str]:
    """The system's own interpreter, which is what an image has, when it can load our modules; else ours."""
    system = "/usr/bin/python3"
    try:
        loads = subprocess.run(
            [system, "-I", "-S", "-c", SCRIPT, *places(), "status", "--help"], capture_output=True
        )
        return [system] if loads.returncode == 0 else [sys.executable]
    except OSError:
        return [sys.executable]


def places() -> list[str]:
    return [str(ROOT), sysconfig.get_path("platlib")]


@pytest.fixture(scope="module")
def python() -> str:
    return pythons()[0]


def certificate(cn: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, cn)])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Example CA")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(0xC0FFEE).not_valid_before(START).not_valid_after(END)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def put(root: Path, name: str, pem: bytes | None, **state: Any) -> None:
    """A certificate as docs and store.py describe the tree."""
    home = root / "wfs/igel-certs/.store" / name
    home.mkdir(parents=True)
    (home / "state.json").write_text(json.dumps({"version": 1, **state}))
    if pem is not None:
        (home / "gen-0001").mkdir()
        (home / "gen-0001/cert.pem").write_bytes(pem)
        (root / "wfs/igel-certs" / name).symlink_to(f".store/{name}/gen-0001")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten certificates in every state, and a device.toml."""
    place = tmp_path_factory.mktemp("status") / "root"
    (place / "etc/igelcert").mkdir(parents=True)
    (place / "etc/igelcert/device.toml").write_text('unit_id = "A"\nserver = "https://proxy.example"\n')
    for number in range(7):
        put(place, f"lan-{number}", certificate(f"tc-{number}"), renew_at=int(RENEW.timestamp()))
    put(place, "manual", certificate("tc-m"), renew_at=None)
    put(place, "due", certificate("tc-d"), renew_at=1_700_000_000)
    put(place, "broken", b"no PEM\n")
    put(place, "new", None, error="the server refused (403): no such right", error_at=1)
    return place


def status(python: str, root: Path, *words: str) -> tuple[int, str, int, set[str]]:
    """Exit code, stdout, peak resident size in KiB, modules."""
    command = [python, "-I", "-S", "-c", SCRIPT, *places(), "status", "--root", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd="/")
    lines = done.stderr.splitlines()
    at = next(number for number, line in enumerate(lines) if line.isdecimal())
    return done.returncode, done.stdout, int(lines[at]), set(lines[at + 1 :])


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_what_it_loads(python: str, root: Path, words: list[str]) -> None:
    code, _, _, modules = status(python, root, *words)
    assert code == 0 and {"igelcert.device.status", "igelcert._core"} <= modules
    found = {
        name
        for name in modules
        if name in HEAVY or name.split(".")[0] in HEAVY or name.startswith(tuple(HEAVY))
    }
    assert not found
    assert not modules & SLOW


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read VmHWM from")
def test_what_it_takes(python: str, root: Path) -> None:
    peaks = [status(python, root)[2] for _ in range(3)]
    assert min(peaks) <= RSS_KB, f"{peaks} KiB at its peak ({python})"


def test_what_it_shows(python: str, root: Path) -> None:
    code, out, _, _ = status(python, root)
    assert code == 0
    assert ("lan-3: valid\n  subject  CN = tc-3\n" in out) or "lan-3: valid\n  subject  CN=tc-3\n" in out
    block = out.partition("lan-3: valid\n")[2].partition("lan-4")[0]
    assert "Example CA" in block and "C0FFEE" in block
    assert "  expires  2036-01-01 00:00:00 UTC\n" in block
    assert "  renewal  2034-01-02 03:04:05 UTC\n" in block
    assert "due: due\n" in out and "broken: damaged\n" in out
    assert "new: missing\n  error    the server refused (403): no such right\n" in out
    assert "  renewal  not automatic\n" in out.partition("manual: valid\n")[2].partition("new:")[0]


def test_json_says_the_same(python: str, root: Path) -> None:
    code, out, _, _ = status(python, root, "--json", "lan-0", "new")
    first, second = json.loads(out)["certificates"]
    assert code == 0
    assert (first["friendly_name"], first["state"], first["serial"]) == ("lan-0", "valid", "C0FFEE")
    assert (first["not_after"], first["renew_at"]) == (int(END.timestamp()), int(RENEW.timestamp()))
    assert first["directory"] == str(root / "wfs/igel-certs/lan-0")
    assert second["state"] == "missing" and "no such right" in second["error"]


def test_a_name_that_is_not_there(python: str, root: Path) -> None:
    code, out, _, _ = status(python, root, "lan-0", "nope")
    assert code == 1 and "lan-0: valid" in out


def test_an_empty_root(python: str, tmp_path: Path) -> None:
    code, out, _, _ = status(python, tmp_path)
    assert (code, out) == (0, "no certificates\n")


def test_it_writes_nothing(python: str, root: Path) -> None:
    def look() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino)
            for path in [root, *root.rglob("*")]
        }  # fmt: skip

    before = look()
    status(python, root)
    assert look() == before


def test_a_configuration_that_moves_the_tree(python: str, tmp_path: Path) -> None:
    """Only then is TOML parsed."""
    (tmp_path / "etc/igelcert").mkdir(parents=True)
    (tmp_path / "etc/igelcert/device.toml").write_text('wfs = "/data"\n')
    put(tmp_path, "lan", certificate("tc-1"))
    os.rename(tmp_path / "wfs", tmp_path / "data")
    code, out, _, modules = status(python, tmp_path)
    assert code == 0 and "lan: valid" in out and "tomllib" in modules
