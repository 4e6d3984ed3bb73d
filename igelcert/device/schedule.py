"""When a certificate is renewed: pure functions of its dates and the settings."""

from __future__ import annotations

from ..settings import EnrollmentSettings

__all__ = ["DAY", "clock_is_sane", "renew_at"]

DAY = 86_400
# No clock of a device is right before this program was made.
BUILD_TIME = 1_795_000_000  # 2026-11-18
CLOCK_SLACK = 3_600


def clock_is_sane(now: int, floor: int = 0) -> bool:
    """Is the clock at or after the program's build and `floor` (say, the management certificate's begin)?"""
    return now >= max(BUILD_TIME, floor) - CLOCK_SLACK


def renew_at(not_before: int, not_after: int, enrollment: EnrollmentSettings) -> int | None:
    """The instant (seconds since 1970) from which renewal is due; None when it is not automatic.

    Percent means the remaining validity. Where the days asked for are half of the certificate's whole
    life or more, half of its life counts: else a fresh certificate would be due at once, for ever.
    """
    if not enrollment.auto_renewal:
        return None
    life = max(0, not_after - not_before)
    if enrollment.renewal_period_units == "percent":
        return not_after - life * enrollment.renewal_period // 100
    return not_after - min(enrollment.renewal_period_days * DAY, life // 2)
