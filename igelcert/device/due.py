"""Is a new certificate due, and why? Answered from the tree, the settings and the facts; no I/O of its own."""

from __future__ import annotations

from collections.abc import Mapping

from .. import crypto
from ..model import DeviceFacts
from ..settings import CertSettings
from . import keys, notes, schedule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BY_TIME", "address_alone", "asked", "by_time", "reason"]

BY_TIME = "due for renewal"


def reason(
    cert: CertSettings,
    live: keys.Live,
    state: Mapping[str, Any],
    mark: str,
    now: int,
    *,
    under_way: bool,
    chance: float | None,
) -> str:
    """Why a new certificate is needed, "" when none is. mark: of what the settings and facts ask for now.

    under_way: the request for that mark was begun and has no certificate yet. chance: this device's place among
    those that renew at one time, None to renew the moment it is due, or the first one of a window.
    """
    if live.cert is None:
        return live.problem or "new"
    if live.problem:
        return live.problem
    if state.get("spec", mark) != mark:
        return "settings, host name or address changed"
    if under_way:
        return "a request is under way"
    if live.cert.serial_hex == cert.enrollment.renew_serial and not cert.enrollment.renew_until:
        return "the proxy asks for it"
    return by_time(live.cert, cert, state, now, chance)


def asked(live: crypto.Certificate, cert: CertSettings) -> schedule.Window | None:
    """The window in which an administrator wants the live certificate renewed."""
    enrollment = cert.enrollment
    if live.serial_hex != enrollment.renew_serial or not enrollment.renew_until:
        return None
    return enrollment.renew_from, enrollment.renew_until


def by_time(
    live: crypto.Certificate, cert: CertSettings, state: Mapping[str, Any], now: int, chance: float | None
) -> str:
    """Is the live certificate due for renewal, by its dates or a window?"""
    dates = live.not_before, live.not_after
    wanted = asked(live, cert)
    moment = schedule.planned(
        schedule.renew_at(*dates, cert.enrollment),
        notes.enrolled_at(state, live.not_before),
        dates,
        chance or 0.0,
        notes.window_of(state, live.serial_hex),
        wanted,
    )
    if moment is None or now < moment:
        return ""
    if now >= live.not_after:
        return "expired"
    return "the proxy asks for it" if wanted else BY_TIME


def address_alone(cert: CertSettings, facts: DeviceFacts, state: Mapping[str, Any]) -> bool:
    """Does nothing but a completed address differ from what the live certificate was made for?"""
    if not cert.auto_ip or not isinstance(state.get("ips"), list):
        return False
    before = DeviceFacts(facts.hostname, facts.unit_id, tuple(map(str, state["ips"])))
    return keys.fingerprint(cert, cert.csr_spec(before)) == state.get("spec")
