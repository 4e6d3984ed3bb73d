"""What every command looks at in the words of its command line, before anything is done with them."""

from __future__ import annotations

__all__ = ["is_text", "shown"]


def is_text(word: str) -> bool:
    """Python hands over octets that are not UTF-8 as lone surrogates: file names bear them, and nothing else does."""
    return not any("\ud800" <= char <= "\udfff" for char in word)


def shown(name: str) -> str:
    """A file name for a place that takes text alone: octets that are not UTF-8 as \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
