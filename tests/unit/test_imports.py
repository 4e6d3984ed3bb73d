"""The table of import directions (docs/design.md), enforced by walking the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "igelcert"
AREAS = {"codec", "device", "proxy", "labca"}
NATIVE = {"igelcert._core": {"igelcert.crypto"}, "igelcert._der": None}

# area -> areas of the package it may import besides errors, model, settings, renewal, crypto
MAY = {
    "errors": set(),
    "words": set(),
    "model": set(),
    "record": set(),
    "settings": set(),
    "renewal": set(),
    "crypto": set(),
    "codec": {"codec"},
    "device": {"codec", "device"},
    "proxy": {"codec", "proxy"},
    "labca": {"codec", "labca"},
}
VALUES = {"errors", "model", "record", "settings", "renewal", "words"}
BASE = {
    "errors": set(),
    "words": set(),
    "record": set(),
    "model": {"errors", "record"},
    "settings": {"errors", "model", "record"},
    "renewal": {"settings"},
    "crypto": {"errors"},
    **{area: VALUES | {"crypto"} for area in AREAS},
}
THIRD_PARTY = {
    "device": set(),
    "codec": set(),
    "proxy": {
        "alembic", "argon2", "cryptography", "flask", "gunicorn", "prometheus_client", "psycopg", "sqlalchemy",
        "urllib3", "werkzeug", "pyspnego", "spnego",
    },
    "labca": {"cryptography"},
}  # fmt: skip
IMPURE = {"os", "socket", "ssl", "time", "random", "secrets", "subprocess", "select", "threading", "datetime"}


def area_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, source: str) -> list[str]:
    """Every module named by an import statement, absolute; `from a import b` gives a and a.b."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                stem = ".".join([*above, stem] if stem else above)
            found += [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
    return found


def violations(path: Path, source: str) -> list[str]:
    area = area_of(module_of(path))
    found = []
    for name in imports_of(path, source):
        top, target = name.split(".")[0], area_of(name)
        if top == "igelcert":
            if target == "_core" and module_of(path) != "igelcert.crypto":
                found.append(f"{name}: only igelcert.crypto imports the native core")
            elif target == "_der" and area not in {"crypto", "codec", "labca"}:
                found.append(f"{name}: DER is for codecs")
            elif target in MAY and target != area and target not in MAY[area] | BASE[area]:
                found.append(f"{area} imports {name}")
        elif area == "codec" and top in IMPURE:
            found.append(f"codec imports {name}: codecs know no I/O, clock or chance")
        elif area in THIRD_PARTY and not is_standard(top) and top not in THIRD_PARTY[area]:
            found.append(f"{area} imports {name}: not a dependency of it")
    return found


def is_standard(top: str) -> bool:
    import sys

    return top in sys.stdlib_module_names


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_directions(path: Path) -> None:
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("device/x.py", "from ..proxy import app"),
        ("device/x.py", "def f():\n    from igelcert.labca import cli"),
        ("device/x.py", "import urllib3"),
        ("proxy/x.py", "from igelcert.device import flow"),
        ("proxy/upstream/x.py", "from ... import labca"),
        ("labca/x.py", "import igelcert.proxy.store"),
        ("labca/x.py", "import flask"),
        ("codec/x.py", "import time"),
        ("codec/x.py", "from ..device import flow"),
        ("device/x.py", "from .. import _core"),
        ("model.py", "from .settings import Settings"),
        ("errors.py", "from . import crypto"),
    ],
)
def test_a_wrong_import_is_found(place: str, source: str) -> None:
    assert violations(ROOT / place, source)


def test_every_area_is_known() -> None:
    places = {area_of(module_of(path)) for path in FILES} - {""}
    assert places <= set(MAY), "a new area needs a row in the table"
