"""When a certificate is renewed by the rule of its settings, and the bounds of that rule: device and proxy reckon alike.

Times are seconds since 1970. The resident agent imports this: it stays small.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .settings import EnrollmentSettings

__all__ = ["DAY", "last_moment", "renew_at"]

DAY = 86_400


def renew_at(not_before: int, not_after: int, enrollment: EnrollmentSettings) -> int | None:
    """The instant from which renewal is due; None when it is not automatic.

    Percent means the remaining validity. Where the days asked for are half of the certificate's whole
    life or more, half of its life counts: else a fresh certificate would be due at once, for ever.
    """
    if not enrollment.auto_renewal:
        return None
    life = max(0, not_after - not_before)
    if enrollment.renewal_period_units == "percent":
        return not_after - life * enrollment.renewal_period // 100
    return not_after - min(enrollment.renewal_period_days * DAY, life // 2)


def last_moment(due: int, not_after: int) -> int:
    """The latest that a window of the proxy may end: half of the time from the rule's instant to the expiry is kept for
    what may fail."""
    return due + max(0, not_after - due) // 2
