"""When things are done: properties that hold for any dates, failures and places among many."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from igelcert.device import notes, schedule
from igelcert.device.schedule import DAY
from igelcert.settings import EnrollmentSettings

NOW = 1_800_000_000
lives = st.integers(60, 10 * 365 * DAY)
places = st.floats(0, 1, exclude_max=True)


@given(lives, st.integers(1, 99))
def test_percent_is_of_the_life_that_remains(life: int, percent: int) -> None:
    moment = schedule.renew_at(NOW, NOW + life, EnrollmentSettings(renewal_period=percent))
    assert moment is not None and abs((NOW + life - moment) * 100 - life * percent) < 100


@given(lives, st.integers(1, 36_500))
def test_days_never_make_a_fresh_certificate_due(life: int, days: int) -> None:
    settings = EnrollmentSettings(renewal_period_units="days", renewal_period_days=days)
    moment = schedule.renew_at(NOW, NOW + life, settings)
    assert moment is not None and NOW + life // 2 <= moment < NOW + life
    if days * DAY <= life // 2:
        assert NOW + life - moment == days * DAY


@given(lives, st.integers(1, 99))
def test_automatic_renewal_can_be_off(life: int, percent: int) -> None:
    settings = EnrollmentSettings(auto_renewal=False, renewal_period=percent)
    assert schedule.renew_at(NOW, NOW + life, settings) is None


@given(lives, st.integers(1, 99), places)
def test_a_herd_is_spread_and_nobody_is_late(life: int, percent: int, place: float) -> None:
    due = schedule.renew_at(NOW, NOW + life, EnrollmentSettings(renewal_period=percent))
    assert due is not None
    moment = schedule.paced_renewal(due, NOW + life, place)
    assert due <= moment <= due + (NOW + life - due) // 10 + 1


def test_places_are_spread() -> None:
    found = sorted(schedule.place_of(f"00E0C5{number:06X}/lan") for number in range(2_000))
    assert found[0] >= 0 and found[-1] < 1
    tenths = [sum(int(place * 10) == tenth for place in found) for tenth in range(10)]
    assert min(tenths) > 120 and max(tenths) < 280
    assert schedule.place_of("A/lan") == schedule.place_of("A/lan")


@given(lives, st.integers(1, 40), st.floats(0, 1), places)
@example(90 * DAY, 40, 0.0, 0.0)
def test_a_try_is_never_far_off_and_never_too_soon(
    life: int, failures: int, gone: float, place: float
) -> None:
    """At least a hundredth of the life (5 to 60 s) lies between tries; at most an eighth of what is left."""
    now = NOW + int(life * gone)
    wait = schedule.retry_at(failures, now, NOW, NOW + life, place) - now
    least = min(60, max(5, life // 100))
    left = NOW + life - now
    assert 0.74 * least - 1 <= wait
    most = max(least, min(12 * 3600, left // 8)) if left > 0 else max(least, 900)
    assert wait <= 1.25 * most
    assert wait <= 12 * 3600 * 1.25


@given(st.integers(1, 60), places)
def test_without_a_certificate_it_goes_on_trying(failures: int, place: float) -> None:
    assert 45 <= schedule.retry_at(failures, NOW, 0, 0, place) - NOW <= 900 * 1.25


@given(st.integers(DAY, 400 * DAY), st.integers(1, 50), places)
def test_a_sick_ca_is_not_hammered_and_not_given_up(life: int, percent: int, place: float) -> None:
    """All tries from the first failure to the expiry: the first one soon, few in all, the last ones close."""
    now, end = NOW + life - life * percent // 100, NOW + life
    tries: list[int] = []
    while now < end:
        tries.append(now)
        now = schedule.retry_at(len(tries), now, NOW, end, place)
    assert tries[1] - tries[0] <= 75
    # an eighth of what is left each time: the number grows with the logarithm of the time alone, but for the
    # twelve hours that no wait exceeds
    assert len(tries) <= 130 + life * percent // 100 // (8 * 3600)
    assert end - tries[-1] <= 150, "the last try is close to the expiry"


@given(st.integers(1, 80))
def test_hooks_are_run_again_within_the_hour(failures: int) -> None:
    waits = [schedule.hook_retry(count, NOW) - NOW for count in range(1, failures + 1)]
    assert waits == sorted(waits) and waits[0] == 60 and waits[-1] <= 3_600


@given(lives, st.integers(0, 400 * DAY))
def test_the_cas_are_looked_at_weekly_or_oftener(life: int, ago: int) -> None:
    moment = schedule.cas_due(NOW - ago, NOW, NOW + life)
    assert NOW - ago + 60 <= moment <= NOW - ago + 7 * DAY


@given(st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"]), min_size=1, max_size=300))
def test_an_address_that_flaps_is_damped(seen: list[str]) -> None:
    """A new look each 100 seconds, an address of its own each time: how often does it count?"""
    state: notes.State = {"ips": ["192.0.2.9"]}
    counted: list[int] = []
    first = NOW
    for step, address in enumerate(seen):
        now = NOW + 100 * step
        first = now if step == 0 or seen[step - 1] != address else first
        state = notes.address_seen(state, (address,), now)
        since = state["address"]["since"]
        if now >= schedule.address_due(since, state.get("address_at", 0)):
            assert now - first >= schedule.ADDRESS_SETTLE
            counted.append(now)
            state["address_at"] = now
    gaps = [later - earlier for earlier, later in pairwise(counted)]
    assert all(gap >= schedule.ADDRESS_QUIET for gap in gaps)


@given(st.integers(-(10**10), 10**10))
def test_a_clock_that_is_set_back_makes_no_endless_wait(moment: int) -> None:
    state = {"retry_spec": "m", "retry_at": moment, "tried": "m", "try_at": moment, "error": "x"}
    for wait in (notes.told_to_wait(state, "m", NOW), notes.waits_until(state, "m", NOW)):
        assert 0 <= wait <= DAY


@given(st.integers(0, DAY), places)
def test_retry_after_is_obeyed(seconds: int, place: float) -> None:
    state = {"not_before": NOW, "not_after": NOW + 90 * DAY}
    for _ in range(3):
        state = notes.failed(
            state, mark="m", text="busy", now=NOW, refused=False, retry_after=seconds, chance=place
        )
        assert state["try_at"] >= NOW + seconds
        step = notes.next_step(state, place)
        assert step is not None and step >= NOW + seconds
    assert state["failures"] == 3
    other = notes.failed(state, mark="n", text="no", now=NOW, refused=True, retry_after=None, chance=place)
    assert other["failures"] == 1, "another request begins anew"


@given(st.integers(1, 3_000_000_000), st.integers(0, 3_000_000_000))
def test_a_wrong_clock(now: int, floor: int) -> None:
    sane = schedule.clock_is_sane(now, floor)
    assert sane == (now >= schedule.BUILD_TIME - 3600 and now >= floor - 3600)
