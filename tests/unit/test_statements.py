"""Statements that modules of the proxy keep are compiled once: one that SQLAlchemy cannot name is compiled each time."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import sqlalchemy as sa

import igelcert.proxy


def kept() -> Iterator[tuple[str, sa.ClauseElement]]:
    for module in pkgutil.walk_packages(igelcert.proxy.__path__, "igelcert.proxy."):
        if ".migrations" in module.name:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, sa.sql.base.Executable) and not isinstance(value, type):
                yield f"{module.name}.{name}", value


def test_each_has_a_name_in_the_cache() -> None:
    found = dict(kept())
    assert len(found) > 15, "they are where this looks for them"
    assert not [name for name, statement in found.items() if statement._generate_cache_key() is None]
