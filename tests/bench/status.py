"""What a glance at a device costs: `igel-certs status` over twelve certificates beside a bare Python. By scripts/bench."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from igelcert.crypto import Key, Password, parse_certificate, write_pfx
from igelcert.device.store import Tree
from tests.support.badca import make_ca, sign

__all__ = ["measure"]

DER = serialization.Encoding.DER
RATIO = 3.4


def make_tree(root: Path) -> None:
    (root / "wfs").mkdir()
    tree = Tree(str(root / "wfs"))
    tree.prepare()
    authority, issuer = make_ca("Bench CA")
    ca = parse_certificate(issuer.public_bytes(DER))
    for number in range(12):
        key = Key.generate("ec_prime256v1")
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"tc-{number}")])
        public = serialization.load_der_public_key(key.spki())
        der = sign(name, public, issuer.subject, authority).public_bytes(DER)
        tree.put(
            f"cert-{number}",
            lambda fd, key=key: key.write(fd, Password(b"password")),
            lambda fd, key=key, der=der: write_pfx(fd, key, der, [], Password(b"x"), "x"),
            parse_certificate(der).pem(),
            [("Bench CA", ca.pem())],
        )


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - start) * 1000


def measure(runs: int) -> bool:
    """Prints a line; whether it stayed within its aim."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_tree(root)
        paths = ":".join([os.getcwd(), sysconfig.get_path("platlib")])
        code = (
            "import gc, sys; gc.set_threshold(20_000); sys.path[:0] = sys.argv[1].split(':'); "
            "from igelcert.device.cli import main; code = main(sys.argv[2:]); "
        )
        peak = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)"
        python = [sys.executable, "-I", "-S", "-c"]
        ours = [
            *python,
            f"{code} import os; sys.stdout.flush(); os._exit(code)",
            paths,
            "status",
            "--root",
            place,
        ]
        bare = [*python, "pass"]
        timed(ours)
        times = [(timed(bare), timed(ours)) for _ in range(runs)]
        base, mine = (statistics.median(column) for column in zip(*times, strict=True))
        done = subprocess.run([*python, code + peak, *ours[5:]], capture_output=True, text=True, check=True)
        size = int(done.stderr.split()[1]) / 1000
        good = (mine <= 25 or mine / base <= RATIO) and size <= 16
        print(
            f"status   {mine:6.1f} ms   bare python {base:6.1f} ms   ratio {mine / base:5.2f}   "
            f"peak {size:4.1f} MB   {'within' if good else 'MISSES'} its aim"
        )
        return good
