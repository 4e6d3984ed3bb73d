"""Windows for renewals: what the proxy chooses, and that no word of a proxy costs a device its certificate."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from igelcert.device import agent, notes, schedule
from igelcert.proxy import windows
from igelcert.renewal import DAY, last_moment, renew_at
from igelcert.settings import EnrollmentSettings

NOW = 1_800_000_000
lives = st.integers(min_value=60, max_value=30 * 365 * DAY)
percents = st.integers(min_value=1, max_value=99)
places = st.floats(min_value=0, max_value=1, exclude_max=True)
moments = st.one_of(
    st.integers(min_value=-(10**20), max_value=10**20),
    st.integers(min_value=NOW - 400 * DAY, max_value=NOW + 400 * DAY),
)
pairs = st.tuples(moments, moments)


# ---- on the device ------------------------------------------------------------------------------


def own_rule(life: int, percent: int, place: float) -> tuple[int, int, int]:
    """Of a certificate from now on: its end, when it is due, and when the device renews it that is told nothing."""
    end = NOW + life
    due = renew_at(NOW, end, EnrollmentSettings(renewal_period=percent))
    assert due is not None
    return end, due, schedule.paced_renewal(due, end, place)


@given(lives, percents, st.one_of(st.none(), pairs), places)
def test_no_window_lets_a_certificate_expire(
    life: int, percent: int, window: tuple[int, int] | None, place: float
) -> None:
    """Whatever a proxy says: renewed before the time near the expiry, or when the own rule says."""
    end, due, own = own_rule(life, percent, place)
    moment = schedule.planned(due, NOW, (NOW, end), place, window)
    assert moment is not None and moment <= max(own, last_moment(due, end)) <= end
    if window is None or not schedule.window_counts(window, due, NOW, end):
        assert moment == own


@given(lives, percents, pairs, pairs, places)
def test_no_window_makes_a_device_hammer(
    life: int, percent: int, window: tuple[int, int], asked: tuple[int, int], place: float
) -> None:
    """A certificate that has just come stays for a least time, unless the own rule has it due."""
    end, due, own = own_rule(life, percent, place)
    moment = schedule.planned(due, NOW, (NOW, end), place, window)
    least = min(schedule.WINDOW_LEAST, max(1, life // 100))
    assert moment is not None and moment >= min(own, NOW + least, last_moment(due, end))
    moment = schedule.planned(due, NOW, (NOW, end), place, None, asked)
    assert moment is not None
    assert min(own, NOW + min(schedule.ASKED_LEAST, max(1, life // 1000))) <= moment <= own


@given(lives, percents, pairs, places)
def test_a_window_counts_only_while_it_ends_in_time(
    life: int, percent: int, window: tuple[int, int], place: float
) -> None:
    end = NOW + life
    due = renew_at(NOW, end, EnrollmentSettings(renewal_period=percent))
    assert due is not None
    if schedule.window_counts(window, due, NOW, end):
        assert window[0] <= window[1] and NOW < window[1] <= last_moment(due, end)
        moment = schedule.planned(due, NOW, (NOW, end), place, window)
        least = NOW + min(schedule.WINDOW_LEAST, max(1, life // 100))
        assert moment is not None and moment <= max(window[1], least)
        assert moment >= min(max(window[0], least), last_moment(due, end))


def test_a_window_beats_the_own_rule_both_ways() -> None:
    end = NOW + 100 * DAY
    due = NOW + 80 * DAY
    early, late = (NOW + 40 * DAY, NOW + 41 * DAY), (NOW + 85 * DAY, NOW + 86 * DAY)
    assert early[0] < schedule.planned(due, NOW, (NOW, end), 0.5, early) < early[1]  # type: ignore[operator]
    assert late[0] < schedule.planned(due, NOW, (NOW, end), 0.5, late) < late[1]  # type: ignore[operator]
    assert schedule.planned(due, NOW, (NOW, end), 0.0, early) == early[0], (
        "who does not pace itself takes the first moment"
    )
    near = (NOW + 89 * DAY, NOW + 91 * DAY)  # the last half of what is left is not the proxy's
    assert schedule.planned(due, NOW, (NOW, end), 0.5, near) == schedule.paced_renewal(due, end, 0.5)
    assert schedule.planned(None, NOW, (NOW, end), 0.5, early) is None, "it is not renewed by itself"
    assert early[0] < schedule.planned(None, NOW, (NOW, end), 0.5, None, early) < early[1]  # type: ignore[operator]


@given(lives, percents, pairs, places, st.floats(min_value=0, max_value=1), st.integers(1, 40))
def test_another_window_puts_a_try_off_but_never_beyond_its_bound(
    life: int, percent: int, window: tuple[int, int], place: float, spent: float, failures: int
) -> None:
    """The first tries stay close together; later ones are in the window that counts, never sooner than the first ones are
    apart, and never later than the bound of windows or the own pace."""
    now, end = NOW + int(life * spent), NOW + life
    due = renew_at(NOW, end, EnrollmentSettings(renewal_period=percent))
    assert due is not None
    state = {"renew_at": due, "enrolled_at": NOW, "not_before": NOW, "not_after": end, "serial": "01"}
    state["try_at"] = own = schedule.retry_at(failures, now, NOW, end, place)
    state = notes.told_window(state, "01", window)
    found = notes.put_off(state, now, place)["try_at"]
    close = min(schedule.PUT_OFF_LEAST, max(1, life // 100))
    assert min(own, now + close) <= found <= max(own, now + close, last_moment(due, end), due)
    if own < now + close:
        assert found == own
    moment = schedule.planned(due, NOW, (NOW, end), place, window)
    if own >= now + close and moment is not None and moment > now + close:
        assert found == moment


def test_a_missed_window_is_put_off_in_a_device_that_fails_for_hours() -> None:
    end, due = NOW + 90 * DAY, NOW + 72 * DAY
    state = {"renew_at": due, "enrolled_at": NOW, "not_before": NOW, "not_after": end, "serial": "01"}
    now = NOW + 60 * DAY
    state |= notes.failed(state, mark="m", text="away", now=now, refused=False, retry_after=None, chance=0.5)
    told = notes.told_window(state, "01", (now + 4 * DAY, now + 5 * DAY))
    assert notes.put_off(told, now, 0.5)["try_at"] == state["try_at"] == now + 60, "again in a minute"
    told |= {"failures": 9, "try_at": now + 8 * 3600}
    assert now + 4 * DAY <= notes.put_off(told, now, 0.5)["try_at"] < now + 5 * DAY


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["windows", "friendly_name", "serial", "from", "until"]), inner, max_size=5
        ),
    ),
    max_leaves=12,
)


@given(
    st.one_of(st.binary(max_size=60), json_values.map(lambda value: json.dumps(value).encode())), json_values
)
def test_an_answer_that_is_none_tells_no_window(body: bytes, value: object) -> None:
    """What a report is answered, and what lies in the notes, may be anything."""
    for name, (serial, window) in agent.windows_of(body).items():
        assert (
            isinstance(name, str)
            and isinstance(serial, str)
            and all(isinstance(each, int) for each in window)
        )
    state = {"window": value, "asked": value, "renew_at": NOW, "not_before": NOW - 9, "not_after": NOW + 99}
    moment = notes.planned(state, 0.5)
    assert moment is not None and moment <= NOW + 99


# ---- at the proxy -------------------------------------------------------------------------------


@given(
    lives,
    percents,
    st.floats(min_value=0, max_value=1.1),
    st.integers(min_value=1, max_value=1_000_000),
    st.lists(
        st.tuples(st.integers(min_value=-5, max_value=3000), st.integers(min_value=0, max_value=50)),
        max_size=40,
    ),
    places,
)
def test_a_window_lies_in_the_validity_and_the_device_takes_it(
    life: int, percent: int, spent: float, rate: int, taken: list[tuple[int, int]], place: float
) -> None:
    """At any time of its life, whatever is booked: after now, before the time near its expiry, and not in the past."""
    rule = EnrollmentSettings(renewal_period=percent)
    now = NOW + int(life * spent)
    span = windows.span_of(now, NOW, NOW + life, rule)
    if span is None:
        return
    booked = {span.now + offset: count for offset, count in taken}
    number = windows.choose(span, booked, rate, place)
    window = number * span.width, (number + 1) * span.width
    due = renew_at(NOW, NOW + life, rule)
    assert due is not None
    assert now < window[0] < window[1] <= last_moment(due, NOW + life) <= NOW + life
    assert schedule.window_counts(window, due, NOW, NOW + life)
    assert windows.released(window) == (span.width, number)


@given(st.integers(min_value=1, max_value=3000), st.integers(min_value=600, max_value=100 * DAY), percents)
@settings(max_examples=40)
def test_a_herd_is_flat(count: int, life: int, percent: int) -> None:
    """All in one second: no bucket of the span has more than one more than another, and none more than the rate allows,
    where the rate allows all of them."""
    span = windows.span_of(NOW, NOW, NOW + life, EnrollmentSettings(renewal_period=percent))
    if span is None:
        return
    buckets = span.last - span.first + 1
    rate = 1 + int(2 * count * 3600 / (buckets * span.width * windows.ROOM))
    booked: Counter[int] = Counter()
    for number in range(count):
        booked[windows.choose(span, booked, rate, number * 0.618 % 1)] += 1
    most = max(booked.values())
    assert most <= -(-count // buckets) * windows.ABOVE + 1
    assert most <= max(1.0, rate * windows.ROOM * span.width / 3600)


def test_those_of_one_window_do_not_crowd_in_a_part_of_it() -> None:
    """Certificates that were issued one after the other get the same window next, whatever their places were before."""
    windows_of = [(NOW + day * DAY, NOW + (day + 1) * DAY) for day in (40, 41)]

    def at(place: float, window: tuple[int, int]) -> int:
        moment = schedule.planned(NOW + 72 * DAY, NOW, (NOW, NOW + 90 * DAY), place, window)
        assert moment is not None
        return moment - window[0]

    places = [schedule.place_of(f"U{number}/lan") for number in range(8000)]
    first = sorted(places, key=lambda place: at(place, windows_of[0]))
    for some in (sorted(places)[3000:4000], first[:1000], first[5000:6000]):
        parts = Counter(at(place, windows_of[1]) * 8 // DAY for place in some)
        assert min(parts[part] for part in range(8)) > 90 and max(parts.values()) < 165


def test_more_than_the_rate_goes_beyond_the_own_rule() -> None:
    """A CA that cannot do it before the rule has certificates due: the time after it is used, up to the last moment."""
    span = windows.span_of(NOW, NOW, NOW + 90 * DAY, EnrollmentSettings(renewal_period=20))
    assert span is not None and span.width == 14_400
    rate = 100
    capacity = int(rate * windows.ROOM * span.width / 3600)
    booked = Counter(dict.fromkeys(range(span.first, span.last + 1), capacity))
    number = windows.choose(span, booked, rate, 0.5)
    assert span.last < number <= span.over
    booked.update(dict.fromkeys(range(span.last + 1, span.over + 1), capacity))
    booked[span.first + 7] -= 1
    assert windows.choose(span, booked, rate, 0.5) == span.first + 7


def test_who_is_late_is_renewed_as_soon_as_there_is_room() -> None:
    rule = EnrollmentSettings(renewal_period=20)
    late = windows.span_of(NOW + 75 * DAY, NOW, NOW + 90 * DAY, rule)
    assert late is not None and late.late
    assert windows.choose(late, {}, 1000, 0.0) == late.now + 1
    soon = windows.span_of(NOW + 70 * DAY, NOW, NOW + 90 * DAY, rule)
    assert soon is not None and soon.late and soon.last == soon.over, (
        "two days are no measure of what is fair"
    )
    early = windows.span_of(NOW + 50 * DAY, NOW, NOW + 90 * DAY, rule)
    assert early is not None and not early.late
    assert windows.span_of(NOW + 85 * DAY, NOW, NOW + 90 * DAY, rule) is None, "there is no time for windows"
    assert windows.span_of(NOW, NOW, NOW + 90 * DAY, EnrollmentSettings(auto_renewal=False)) is None
