"""`python -m tests.load.unleased serve ...`: ca-proxy with the check of leases switched off, as a control: its tests must
notice. Every proxy then takes the places at the CA for its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from igelcert.proxy import cli, leases


@contextmanager
def _granted(_leases: leases.Leases, _patience: float) -> Iterator[bool]:
    yield True


if __name__ == "__main__":
    leases.Leases.place = _granted  # type: ignore[method-assign]
    sys.exit(cli.main())
