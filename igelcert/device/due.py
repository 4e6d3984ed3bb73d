"""Is a new certificate due, and why? Answered from the tree, the settings and the facts; no I/O of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import crypto
from ..model import DeviceFacts
from ..settings import CertSettings
from . import keys, schedule

__all__ = ["address_alone", "by_time", "reason"]


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
    those that renew at one time, None to renew the moment it is due.
    """
    if live.cert is None:
        return live.problem or "new"
    if live.problem:
        return live.problem
    if state.get("spec", mark) != mark:
        return "settings, host name or address changed"
    if under_way:
        return "a request is under way"
    if live.cert.serial_hex == cert.enrollment.renew_serial:
        return "the proxy asks for it"
    return by_time(live.cert, cert, now, chance)


def by_time(live: crypto.Certificate, cert: CertSettings, now: int, chance: float | None) -> str:
    """Is the live certificate due for renewal by its dates?"""
    moment = schedule.renew_at(live.not_before, live.not_after, cert.enrollment)
    if moment is None:
        return ""
    if chance is not None:
        moment = schedule.paced_renewal(moment, live.not_after, chance)
    if now < moment:
        return ""
    return "expired" if now >= live.not_after else "due for renewal"


def address_alone(cert: CertSettings, facts: DeviceFacts, state: Mapping[str, Any]) -> bool:
    """Does nothing but a completed address differ from what the live certificate was made for?"""
    if not cert.auto_ip or not isinstance(state.get("ips"), list):
        return False
    before = DeviceFacts(facts.hostname, facts.unit_id, tuple(map(str, state["ips"])))
    return keys.fingerprint(cert, cert.csr_spec(before)) == state.get("spec")
