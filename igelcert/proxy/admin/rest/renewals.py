"""Renewals that an administrator asks for."""

from __future__ import annotations

from typing import Any

from ... import renewals
from .operations import JSON, Call, Operation

__all__ = ["OPERATIONS"]


def _renew(call: Call) -> Any:
    return renewals.renew(call.context, **call.body).as_json()


OPERATIONS = (
    Operation(
        "POST",
        "/renewals",
        _renew,
        "Have certificates renewed within a time: of a device, of a directory, or all that a CA issued",
        (200, "RenewalsAsked", JSON),
        body="RenewalInput",
    ),
)
