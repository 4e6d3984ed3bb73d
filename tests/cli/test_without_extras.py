"""On a device the package is there without what the proxy needs: its commands say so."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("area", "name"), [("proxy", "ca-proxy"), ("labca", "lab-ca")])
def test_a_plain_sentence(area: str, name: str, tmp_path: Path) -> None:
    backend = next(Path(sysconfig.get_path("platlib")).glob("_cffi_backend*"))
    (tmp_path / backend.name).symlink_to(backend)
    code = (
        f"import sys; sys.path[:0] = sys.argv[1:]; from igelcert.{area}.start import main; sys.exit(main())"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: error: the Python package ") and "igelcert[proxy]" in done.stderr
    assert "Traceback" not in done.stderr
