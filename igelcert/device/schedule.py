"""When things are done: pure functions of dates, settings and failures. Times are seconds since 1970.

`chance` is a number from 0 to below 1 that the caller draws: one device's place among many.
"""

from __future__ import annotations

import zlib

from ..renewal import DAY, last_moment, renew_at

__all__ = [
    "BUILD_TIME",
    "DAY",
    "Window",
    "address_due",
    "cas_due",
    "clock_is_sane",
    "hook_retry",
    "paced_renewal",
    "place_of",
    "planned",
    "put_off",
    "renew_at",
    "retry_at",
    "window_counts",
]

# No clock of a device is right before this program was made.
BUILD_TIME = 1_795_000_000  # 2026-11-18
CLOCK_SLACK = 3_600

Window = tuple[int, int]  # its begin and its end
WINDOW_LEAST = (
    600  # seconds from an enrollment to the next one that a window may cause; less for a short life
)
ASKED_LEAST = 10  # the same, where an administrator asked for that very certificate

SOONEST = 60  # seconds to the first new try; less for certificates that live for minutes
PUT_OFF_LEAST = (
    180  # seconds to the next try from which on it may be put off to another window; less for a short life
)
LATEST = 12 * 3_600  # between tries while there is time
LOST_LATEST = 900  # between tries when there is no valid certificate
CAS_EVERY = 7 * DAY
ADDRESS_SETTLE = 120  # seconds for which an address must stay before it counts
ADDRESS_QUIET = 6 * 3_600  # between enrollments that only an address caused
HOOK_SOONEST, HOOK_LATEST = 60, 3_600


def clock_is_sane(now: int, floor: int = 0) -> bool:
    """Is the clock at or after the program's build and `floor` (say, the management certificate's begin)?"""
    return now >= max(BUILD_TIME, floor) - CLOCK_SLACK


def place_of(seed: str) -> float:
    """A `chance` that stays the same for the same text."""
    return zlib.crc32(seed.encode()) / (1 << 32)


def paced_renewal(due: int, not_after: int, chance: float) -> int:
    """When the resident agent renews what is due at `due`: in the first tenth of the time that is left then,
    so that certificates of one hour are not renewed in one second."""
    return due + int(max(0, not_after - due) * chance / 10)


def window_counts(window: Window, due: int, not_before: int, not_after: int) -> bool:
    """Does a window of the proxy come before our own rule, which has the certificate due at `due`?

    Not one that is reversed, or was over before the certificate began, or lasts into the time near the expiry.
    """
    begin, end = window
    return begin <= end and not_before < end <= last_moment(due, not_after)


def planned(
    due: int | None,
    enrolled_at: int,
    dates: tuple[int, int],
    chance: float,
    window: Window | None = None,
    asked: Window | None = None,
) -> int | None:
    """When the live certificate is renewed; None when never.

    due: by our own rule, None when that is not automatic. dates: not_before, not_after. window: the proxy's, in place of
    our own rule while it counts. asked: an administrator's, for this very certificate; the earlier one is taken.
    A window that is over means now, and never sooner after an enrollment than a least time: no proxy makes
    us renew again and again.
    """
    not_before, not_after = dates
    life = max(0, not_after - not_before)
    moments = []
    if due is not None:
        moment = paced_renewal(due, not_after, chance)
        if window is not None and window_counts(window, due, not_before, not_after):
            soonest = enrolled_at + min(WINDOW_LEAST, max(1, life // 100))
            moment = min(_within(window, soonest, chance), last_moment(due, not_after))
        moments.append(moment)
    if asked is not None and asked[0] <= asked[1]:
        moments.append(_within(asked, enrolled_at + min(ASKED_LEAST, max(1, life // 1000)), chance))
    return min(moments, default=None)


def _within(window: Window, soonest: int, chance: float) -> int:
    """Our moment in it, the first one where chance is 0. Another place in each window: those that are issued one after the
    other get the same window, and would crowd in a part of it for ever."""
    begin = max(window[0], soonest)
    return begin + int(max(0, window[1] - begin) * _mixed(chance, window[0]))


def _mixed(chance: float, salt: int) -> float:
    """Another chance, which has nothing in common with those of other salts, nor with one nearby: the last step of
    MurmurHash3. A CRC would not do: those of two salts differ by the same bits for everybody."""
    found = int(chance * (1 << 32))
    if not found:
        return 0.0
    found ^= salt & 0xFFFF_FFFF
    for shift, factor in ((16, 0x85EB_CA6B), (13, 0xC2B2_AE35), (16, 1)):
        found = (found ^ found >> shift) * factor & 0xFFFF_FFFF
    return found / (1 << 32)


def retry_at(failures: int, now: int, not_before: int, not_after: int, chance: float) -> int:
    """The next try after the `failures`th failure in a row. not_before, not_after: of the live certificate,
    0 when there is none.

    Soon at first, then twice as long each time while there is time, but never more than an eighth of what
    is left: tries come closer towards the expiry. Below it all lies a least distance, a hundredth of the
    certificate's life (5 to 60 seconds): a CA that is sick is not hammered. A quarter of jitter each way.
    """
    life = not_after - not_before
    least = min(SOONEST, max(5, life // 100)) if life > 0 else SOONEST
    left = not_after - now
    most = max(least, min(LATEST, left // 8)) if left > 0 else max(least, LOST_LATEST)
    wait = min(least << min(max(failures, 1) - 1, 20), most)
    return now + max(1, int(wait * (0.75 + chance / 2)))


def put_off(try_at: int, planned: int, now: int, not_before: int, not_after: int) -> int:
    """The next try of a renewal that failed, where the proxy told another window since. planned: our place in it.

    The first tries, which are close together, are left as they are: what passes in minutes needs no window. Later ones are
    in the window: who missed theirs while the CA was away do not come back all at once.
    """
    close = now + min(PUT_OFF_LEAST, max(1, (not_after - not_before) // 100))
    return max(planned, close) if try_at >= close and planned > now else try_at


def hook_retry(failures: int, now: int) -> int:
    """When hooks that failed `failures` times in a row are run again."""
    return now + min(HOOK_SOONEST << min(max(failures, 1) - 1, 10), HOOK_LATEST)


def cas_due(looked_at: int, not_before: int, not_after: int) -> int:
    """When the CA's certificates are asked for next: weekly, oftener for certificates of a short life."""
    return looked_at + min(CAS_EVERY, max(60, (not_after - not_before) // 4))


def address_due(since: int, enrolled_for_address: int) -> int:
    """When a new address alone is reason to enroll. since: when it was first seen, and has stayed since.
    enrolled_for_address: when an address was the reason last, 0 for never."""
    quiet = enrolled_for_address + ADDRESS_QUIET if enrolled_for_address else 0
    return max(since + ADDRESS_SETTLE, quiet)
