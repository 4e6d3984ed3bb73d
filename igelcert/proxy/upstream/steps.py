"""Values between an upstream and those who use it: what `ca test` reports, what is kept of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Step", "Ticket"]


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain: its name, whether it held, what was seen, what to do if not."""

    name: str
    ok: bool
    text: str
    hint: str = ""


class Ticket(Protocol):
    """What an upstream must know again of a request whose answer it has not seen: it survives a restart.

    value: as it was kept last, "" at first. renewal: the request is for a certificate that exists.
    """

    value: str
    renewal: bool

    def keep(self, value: str) -> None:
        """On disk when this returns."""
