"""Fresh proxies' data directories on either engine, made from one that was initialised once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from igelcert.proxy.context import Context
from igelcert.proxy.initialise import initialise
from tests.support.postgres import Cluster

__all__ = ["ENGINES", "Stores"]

ENGINES = ("sqlite", "postgresql")


@dataclass
class Stores:
    """directory: where blank ones are kept. postgres: gives the cluster. password: of `admin`, by engine."""

    directory: Path
    cluster: Cluster | None = None
    password: dict[str, str] = field(default_factory=dict)
    _template: str = ""

    def _blank(self, engine: str) -> Path:
        place = self.directory / engine
        if not place.exists():
            url = ""
            if engine == "postgresql":
                assert self.cluster is not None
                self._template = self.cluster.create()
                url = self.cluster.url(self._template)
            made = initialise(place, ["localhost"], "127.0.0.1:0", "127.0.0.1:0", url)
            self.password[engine] = made.admin_password
        return place

    @contextmanager
    def fresh(self, engine: str, to: Path) -> Iterator[Context]:
        """A proxy of a test's own in the directory `to`, opened."""
        shutil.copytree(self._blank(engine), to, dirs_exist_ok=True)
        name = ""
        if engine == "postgresql":
            assert self.cluster is not None
            name = self.cluster.create(self._template)
            (to / "database.url").write_text(self.cluster.url(name))
        context = Context.open(to)
        try:
            yield context
        finally:
            if "leases" in vars(context):
                context.leases.close()  # its thread would go on asking a database that is no more
            context.db.close()
            if name and self.cluster is not None:
                self.cluster.drop(name)
