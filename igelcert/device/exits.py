"""The exit codes of the device's commands (sysexits.h), and which error leads to which."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import Error, SettingsError, TransportError
from .log import Log

__all__ = ["EX_CONFIG", "EX_FAILED", "EX_OK", "EX_TEMPFAIL", "code_of", "exit_code", "said"]

EX_OK, EX_FAILED, EX_TEMPFAIL, EX_CONFIG = 0, 1, 75, 78


def exit_code(codes: Sequence[int]) -> int:
    """The worst: failed before bad settings before waiting before done."""
    return next((code for code in (EX_FAILED, EX_CONFIG, EX_TEMPFAIL) if code in codes), EX_OK)


def code_of(err: Error) -> int:
    """The exit code an error leads to."""
    if isinstance(err, SettingsError):
        return EX_CONFIG
    return EX_TEMPFAIL if isinstance(err, TransportError) else EX_FAILED


def said(log: Log, err: Error, where: str = "") -> int:
    """Logs what failed and what to do; the exit code it leads to."""
    log.error(f"{where}{err}")
    log.hint(err.hint)
    return code_of(err)
