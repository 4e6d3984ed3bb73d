"""Errors as programs get them."""

from __future__ import annotations

from ....codec.http import plain_line
from ....errors import ConflictError, SettingsError

__all__ = ["failure", "field_of"]


def field_of(path: str) -> str:
    """The field that an error is about, as forms and bodies name it: "--keystore-password-file" is keystore_password."""
    if path.startswith("--"):
        return path[2:].removesuffix("-file").replace("-", "_")
    return path


def failure(err: SettingsError | ConflictError) -> dict[str, str]:
    """An error for programs. What to do is left out where it is a command of this machine."""
    found = {"error": plain_line(err.reason if err.path else str(err), 1000)}
    if err.path:
        found["field"] = field_of(err.path)
        found["error"] = f"{found['field']}: {found['error']}"
    if err.hint and "ca-proxy " not in err.hint:
        found["hint"] = plain_line(err.hint, 1000)
    return found
