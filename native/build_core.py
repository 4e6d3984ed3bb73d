"""cffi's API-mode binding of native/include/igc.h: the module igelcert._core.

The declarations are taken from the header itself, so that there is one list of everything. CC and
PKG_CONFIG name other tools for a cross build; without pkg-config plain -lcrypto is used.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent
HEADER = NATIVE / "include" / "igc.h"


def declarations(header: str) -> str:
    """The C declarations of the header, with its list of errors spelled out and no preprocessor."""
    errors = re.findall(r"^\s+X\((\w+), ", header, re.MULTILINE)
    enum = "enum igc_error { " + ", ".join(f"IGC_E_{name}" for name in errors) + ", IGC_E_COUNT };"
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = text.replace("\\\n", " ")
    text = re.sub(r"enum igc_error \{.*?\};", enum, text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def pkg_config(what: str, package: str, fallback: list[str]) -> list[str]:
    tool = os.environ.get("PKG_CONFIG", "pkg-config")
    if shutil.which(tool) is None:
        return fallback
    done = subprocess.run([tool, what, package], capture_output=True, text=True, check=False)  # noqa: S603
    return shlex.split(done.stdout) if done.returncode == 0 else fallback


def sources() -> list[str]:
    """Relative to the repository, as setuptools wants them; sorted, so that builds repeat."""
    return [os.path.relpath(path, NATIVE.parent) for path in sorted((NATIVE / "src").glob("*.c"))]


ffibuilder = FFI()
ffibuilder.cdef(declarations(HEADER.read_text(encoding="utf-8")))
ffibuilder.set_source(
    "igelcert._core",
    '#include "igc.h"',
    sources=sources(),
    include_dirs=["native/include"],
    depends=["native/include/igc.h", "native/src/inner.h", "native/src/cms.h", "native/src/prime.h"],
    extra_compile_args=[
        "-std=gnu11",
        "-Os",
        "-fvisibility=hidden",
        "-pthread",
        *pkg_config("--cflags", "libcrypto", []),
    ],
    extra_link_args=[
        "-Wl,--as-needed",
        "-Wl,-z,now",
        "-pthread",
        *pkg_config("--libs", "libcrypto", ["-lcrypto"]),
    ],
    py_limited_api=False,
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(NATIVE.parent), verbose=True)
