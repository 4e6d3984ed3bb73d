"""What is noted of a certificate between runs (state.json): pure functions from one state to the next.

Nothing in a state is needed to have a certificate; a state that was lost is derived anew. Keys:

    spec, ips, reason                what the live certificate was made for, with which addresses, and why
    serial, enrolled_at, renew_at    of the live certificate; renew_at None: not automatic
    not_before, not_after            of the live certificate
    window                           {"serial", "from", "until"}: when the proxy wants it renewed
    asked                            [from, until]: the same by an administrator's word, from the settings
    cas_at                           when the CA's certificates were last compared
    error, error_at, failures        the last failure and how many in a row; refused: the CA said no
    tried, try_at                    for which spec, and when the resident agent tries again
    pending, retry_at, retry_spec    what the server said of waiting, for which spec
    address, address_at              {"ips", "since"} of an address that is not in the certificate (yet)
    announced, notified              content of which hooks and users have heard
    hooks                            {"for", "event", "failures", "retry_at", "error", "heard"} when some failed
    failed_told, failed_shown        when hooks and users last heard that it fails
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import schedule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    State = dict[str, Any]
else:
    State = dict

__all__ = [
    "State",
    "address_seen",
    "cas_unknown",
    "dates_of",
    "enrolled",
    "enrolled_at",
    "failed",
    "next_step",
    "pending",
    "planned",
    "put_off",
    "settled",
    "told_to_wait",
    "told_window",
    "waits_until",
    "window_of",
]

_TROUBLE = ("error", "error_at", "failures", "refused", "tried", "try_at", "pending", "retry_at", "retry_spec",
            "failed_told", "failed_shown")  # fmt: skip
WAIT_MAX = schedule.DAY  # no server asks for more


def _without(state: Mapping[str, Any], keys: Iterable[str]) -> State:
    left_out = set(keys)
    return {key: value for key, value in state.items() if key not in left_out}


def enrolled(
    state: Mapping[str, Any],
    *,
    spec: str,
    ips: tuple[str, ...],
    reason: str,
    serial: str,
    dates: tuple[int, int],
    now: int,
    renew_at: int | None,
    warnings: tuple[str, ...] = (),
) -> State:
    """A new certificate is live: no trouble is left."""
    fresh = _without(state, (*_TROUBLE, "address", "hooks", "window", "asked"))
    fresh.update(
        spec=spec,
        ips=list(ips),
        reason=reason,
        serial=serial,
        enrolled_at=now,
        renew_at=renew_at,
        not_before=dates[0],
        not_after=dates[1],
        cas_at=now,
        warnings=list(warnings),
    )
    return fresh


def settled(
    state: Mapping[str, Any],
    *,
    spec: str,
    ips: tuple[str, ...],
    dates: tuple[int, int],
    renew_at: int | None,
    now: int,
    asked: schedule.Window | None = None,
) -> State:
    """Nothing is wrong and nothing is due. The renewal instant follows the settings."""
    fresh = _without(state, (*_TROUBLE, "asked"))
    if asked is not None:
        fresh["asked"] = list(asked)
    trouble = fresh.get("hooks")
    if isinstance(trouble, dict) and trouble.get("event") == "failed":
        del fresh["hooks"]  # that it fails need not be told any more
    fresh.update(renew_at=renew_at, not_before=dates[0], not_after=dates[1])
    fresh.setdefault("spec", spec)
    fresh.setdefault("ips", list(ips))
    fresh.setdefault("cas_at", now)
    return fresh


def pending(state: Mapping[str, Any], *, mark: str, text: str, retry_at: int) -> State:
    fresh = _without(state, ("error", "error_at", "failures", "refused", "tried", "try_at"))
    fresh.update(pending=text, retry_at=retry_at, retry_spec=mark)
    fresh.setdefault("spec", mark)
    return fresh


def failed(
    state: Mapping[str, Any],
    *,
    mark: str,
    text: str,
    now: int,
    refused: bool,
    retry_after: int | None,
    chance: float,
) -> State:
    """retry_after: the server's word in seconds."""
    fresh: State = dict(state)
    failures = int(state.get("failures", 0)) + 1 if state.get("tried", mark) == mark else 1
    fresh.update(error=text, error_at=now, failures=failures, refused=refused, tried=mark)
    fresh["try_at"] = schedule.retry_at(failures, now, *dates_of(state), chance)
    if retry_after is not None:
        fresh.update(retry_at=now + retry_after, retry_spec=mark)
        fresh["try_at"] = max(fresh["try_at"], now + retry_after)
    return fresh


def told_to_wait(state: Mapping[str, Any], mark: str, now: int) -> int:
    """Seconds that the server asked us to stay away for this very request."""
    if state.get("retry_spec") != mark:
        return 0
    return _left(state.get("retry_at"), now)


def waits_until(state: Mapping[str, Any], mark: str, now: int) -> int:
    """Seconds until the next try of what failed for that spec."""
    if not state.get("error") or state.get("tried") != mark:
        return 0
    return _left(state.get("try_at"), now)


def _left(moment: object, now: int) -> int:
    # a clock that was set back must not make a wait longer than any server asks for
    wait = moment - now if isinstance(moment, int) else 0
    return wait if 0 < wait <= WAIT_MAX else 0


def address_seen(state: Mapping[str, Any], ips: tuple[str, ...], now: int) -> State:
    """An address that the certificate does not have: since when it stays."""
    seen = state.get("address")
    if isinstance(seen, dict) and seen.get("ips") == list(ips) and int(seen.get("since", now)) <= now:
        return dict(state)
    return {**state, "address": {"ips": list(ips), "since": now}}


def cas_unknown(state: Mapping[str, Any], now: int) -> State:
    """The CA's certificates could not be had: looked for again after an eighth of the usual time."""
    usual = schedule.cas_due(0, *dates_of(state))
    return {**state, "cas_at": now - usual + max(60, usual // 8)}


def dates_of(state: Mapping[str, Any]) -> tuple[int, int]:
    """not_before and not_after of the live certificate, zeros when none is known."""
    return int(state.get("not_before", 0)), int(state.get("not_after", 0))


def told_window(state: Mapping[str, Any], serial: str, window: schedule.Window) -> State:
    """The proxy told a window for the certificate of that serial number."""
    return {**state, "window": {"serial": serial, "from": window[0], "until": window[1]}}


def put_off(state: Mapping[str, Any], now: int, chance: float) -> State:
    """A renewal that is due by time failed, and the proxy told another window: the next try may be in that one."""
    moment, try_at = planned(state, chance), state.get("try_at")
    if moment is None or not isinstance(try_at, int):
        return dict(state)
    return {**state, "try_at": schedule.put_off(try_at, moment, now, *dates_of(state))}


def window_of(state: Mapping[str, Any], serial: str | None = None) -> schedule.Window | None:
    """The window that was told for that certificate; without a serial number, for the one of the state."""
    found = state.get("window")
    if not isinstance(found, dict) or (serial is not None and found.get("serial") != serial):
        return None
    return _pair([found.get("from"), found.get("until")])


def _pair(found: object) -> schedule.Window | None:
    match found:
        case [int(begin), int(end)]:
            return begin, end
    return None


def enrolled_at(state: Mapping[str, Any], not_before: int) -> int:
    """When the live certificate came; its begin when that is not known."""
    found = state.get("enrolled_at")
    return max(found, not_before) if isinstance(found, int) else not_before


def planned(state: Mapping[str, Any], chance: float) -> int | None:
    """When the live certificate is renewed; None when never, or nothing is known of it."""
    dates = dates_of(state)
    due = state.get("renew_at")
    return schedule.planned(
        due if isinstance(due, int) else None,
        enrolled_at(state, dates[0]),
        dates,
        chance,
        window_of(state),
        _pair(state.get("asked")),
    )


def next_step(state: Mapping[str, Any], chance: float) -> int | None:
    """When the resident agent has something to do for this certificate; None when never."""
    dates = dates_of(state)
    moments: list[object] = []
    if state.get("error"):
        moments.append(state.get("try_at"))
    elif state.get("pending"):
        moments.append(state.get("retry_at"))
    else:  # only then the rest is looked at
        moments.append(planned(state, chance))
        if dates[1] and "cas_at" in state:
            moments.append(schedule.cas_due(int(state["cas_at"]), *dates))
        if isinstance(address := state.get("address"), dict):
            moments.append(schedule.address_due(int(address["since"]), int(state.get("address_at", 0))))
    if isinstance(hooks := state.get("hooks"), dict):
        moments.append(hooks.get("retry_at"))
    return min((moment for moment in moments if isinstance(moment, int)), default=None)
