"""What `ca test` reports."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain: its name, whether it held, what was seen, what to do if not."""

    name: str
    ok: bool
    text: str
    hint: str = ""
