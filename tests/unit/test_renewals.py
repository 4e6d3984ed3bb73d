"""Windows and renewals that are asked for, in the database, on each engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from igelcert import crypto
from igelcert.crypto import Key
from igelcert.errors import SettingsError
from igelcert.proxy import certificates, changes, devices, merging, profiles, renewals, windows
from igelcert.proxy.cli import main
from igelcert.proxy.context import Context
from igelcert.proxy.database import now
from igelcert.proxy.schema import certificates as certificate_table
from igelcert.proxy.schema import renewal_slots
from igelcert.proxy.schema import renewals as renewal_table
from igelcert.proxy.upstream.config import CaConfig, EstSettings, load, rate, rate_of, store
from igelcert.settings import EnrollmentSettings

DAY = 86_400
HOUR = 3_600
RULE = EnrollmentSettings(renewal_period=20)


def has(context: Context, unit: str, until: int, name: str = "lan", **more: Any) -> None:
    row = {"unit_id": unit, "friendly_name": name, "serial": f"{unit}0A", "subject": "CN=x", "issued": until}
    row |= {"not_before": until - 90 * DAY, "not_after": until, "issuer": "CA 1", "issuer_sha256": "ab" * 32}
    with context.db.begin() as connection:
        connection.execute(certificate_table.insert().values(**{**row, **more}))


def fleet(context: Context, **places: str) -> None:
    for unit, directory in places.items():
        devices.add(context, unit, directory)


def asked(context: Context) -> dict[str, tuple[int, int]]:
    with context.db.read() as connection:
        rows = connection.execute(sa.select(renewal_table)).all()
    return {row.unit_id: (row.begin, row.until) for row in rows}


def booked(context: Context) -> dict[tuple[int, int], int]:
    with context.db.read() as connection:
        rows = connection.execute(sa.select(renewal_slots)).all()
    return {(row.width, row.number): row.booked for row in rows if row.booked}


def a_certificate(context: Context, unit: str) -> crypto.Certificate:
    key = Key.generate("ec_prime256v1")
    return crypto.parse_certificate(context.management_ca.issue_device(key.spki(), unit))


def issue(
    context: Context, unit: str, per_hour: int = 10_000, cert: crypto.Certificate | None = None
) -> crypto.Certificate:
    cert = cert or a_certificate(context, unit)
    with context.db.begin(alone=False) as connection:
        certificates.note(connection, unit, "lan", cert, issuer="ab" * 32, rate=per_hour, rule=RULE)
    return cert


# ---- windows ------------------------------------------------------------------------------------


def test_a_window_is_booked_with_the_certificate_and_given_back(context: Context) -> None:
    fleet(context, A1="/")
    cert = issue(context, "A1")
    (kept,) = certificates.of_device(context, "A1")
    assert kept.window_from is not None and kept.window_until is not None
    due = cert.not_after - (cert.not_after - cert.not_before) * 20 // 100
    assert now() < kept.window_from < kept.window_until <= due
    assert (kept.issuer, kept.issuer_sha256) == (cert.issuer_cn, "ab" * 32)
    assert booked(context) == {windows.released((kept.window_from, kept.window_until)): 1}
    issue(context, "A1")  # renewed before its time: the old place is free again
    assert sum(booked(context).values()) == 1
    issue(context, "A1", 0)
    assert booked(context) == {}, "no rate, no window"
    assert certificates.told_windows(context, "A1", dict) == []


def test_what_is_booked_is_seen(context: Context) -> None:
    units = [f"U{number}" for number in range(9)]
    fleet(context, **dict.fromkeys(units, "/"))
    for unit in units:
        issue(context, unit)
    assert list(booked(context).values()) == [1] * 9, "there is room for each in a bucket of its own"


def test_many_proxies_book_at_once(context: Context) -> None:
    """Each booking counts, whoever makes it at the same moment, and nobody waits for another in a circle."""
    other = Context.open(context.data)
    units = [f"U{number}" for number in range(12)]
    fleet(context, **dict.fromkeys(units, "/"))
    start = threading.Barrier(4)

    def play(part: int) -> None:
        start.wait()
        for round_ in range(4):
            for unit in units[part::4]:
                issue((context, other)[(part + round_) % 2], unit)

    with ThreadPoolExecutor(4) as pool:
        for work in [pool.submit(play, part) for part in range(4)]:
            work.result(60)
    other.db.close()
    assert sum(booked(context).values()) == len(units)
    assert max(booked(context).values()) <= 5, "four at one moment do not see each other, those after them do"


def test_what_was_issued_before_there_was_a_rate_gets_a_window_with_its_report(context: Context) -> None:
    fleet(context, A1="/")
    has(context, "A1", now() + 60 * DAY)
    rules = {"lan": RULE}
    assert certificates.told_windows(context, "A1", lambda: rules) == [], "no CA, no rate"
    store(context, EstSettings("x", "ca", rate=600), b"", "")
    with context.db.read() as connection:
        assert rate(connection) == 600
    (told,) = certificates.told_windows(context, "A1", lambda: rules)
    assert told["friendly_name"] == "lan" and told["serial"] == "A10A"
    assert now() < told["from"] < told["until"] <= now() + 60 * DAY - 18 * DAY + 60
    assert certificates.told_windows(context, "A1", dict) == [told], "it is kept"
    assert sum(booked(context).values()) == 1
    has(context, "A1", now() + 60 * DAY, "by hand", serial="77")
    never = {"by hand": EnrollmentSettings(auto_renewal=False)}
    assert certificates.told_windows(context, "A1", lambda: never) == [told]


def statements(context: Context, act: Callable[[], object]) -> list[str]:
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement.split()[0])

    sa.event.listen(context.db.engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        sa.event.remove(context.db.engine, "before_cursor_execute", note)
    return found


def test_a_window_costs_one_statement(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is booked is read with what is read anyway; what is given back has not begun, so a renewal in its window gives
    nothing back; and what nobody asked for is not ended."""
    monkeypatch.setattr(windows, "PRUNE", 0)  # which one booking in a hundred does
    fleet(context, A1="/", A2="/")
    issue(context, "A1", 0)
    certs = [a_certificate(context, unit) for unit in ("A1", "A2", "A2")]
    without = statements(context, lambda: issue(context, "A1", 0, certs[0]))
    assert [each for each in without if each != "BEGIN"] == ["SELECT", "INSERT"]
    assert len(statements(context, lambda: issue(context, "A2", cert=certs[1]))) == len(without) + 1
    with context.db.begin() as connection:  # its window has begun
        begun = {"window_from": now() - 5, "window_until": now() + 5}
        connection.execute(certificate_table.update().values(**begun))
    assert len(statements(context, lambda: issue(context, "A2", cert=certs[2]))) == len(without) + 1


def test_who_misses_a_window_gets_another_one(context: Context) -> None:
    """The CA was away in it: told with the report that says so, or when it is over; not while it is still to come."""
    store(context, EstSettings("x", "ca", rate=600), b"", "")
    fleet(context, A1="/")
    has(context, "A1", now() + 60 * DAY, window_from=now() + HOUR, window_until=now() + 2 * HOUR)
    rules = {"lan": RULE}

    def told(**more: Any) -> tuple[int, int]:
        (found,) = certificates.told_windows(context, "A1", lambda: rules, **more)
        return found["from"], found["until"]

    def window(begin: int, until: int) -> None:
        with context.db.begin() as connection:
            dates = {"window_from": now() + begin, "window_until": now() + until}
            connection.execute(certificate_table.update().values(**dates))

    first = told(failing={"lan"})
    assert first[0] > now(), "it has not begun"
    window(-60, HOUR)
    assert told()[0] < now(), "it has, and the device says nothing of a failure"
    other = told(failing={"lan"})
    assert now() < other[0] < other[1] <= now() + 60 * DAY - 9 * DAY and sum(booked(context).values()) == 1
    assert told(failing={"lan"}) == other
    window(-2 * HOUR, -60)
    assert told()[0] > now()
    window(-2 * HOUR, -60)
    rules["lan"] = EnrollmentSettings(auto_renewal=False)
    assert told()[1] < now(), "it is not renewed by itself: nothing is booked for it"


def test_a_device_of_several_certificates_holds_no_row_while_it_waits_for_another(context: Context) -> None:
    """Windows that reports bring are booked by one transaction each: two devices could wait for each other in a circle."""
    store(context, EstSettings("x", "ca", rate=600), b"", "")
    fleet(context, A1="/")
    for name in ("a", "b", "c"):
        has(context, "A1", now() + 60 * DAY, name, serial=name.encode().hex())
    begun: list[int] = []

    def note(connection: sa.Connection) -> None:
        begun.append(id(connection))

    sa.event.listen(context.db.engine, "commit", note)
    rules = dict.fromkeys(("a", "b", "c"), RULE)
    assert len(certificates.told_windows(context, "A1", lambda: rules)) == 3
    sa.event.remove(context.db.engine, "commit", note)
    assert len(begun) >= 3


def test_a_rate_is_read_and_refused() -> None:
    assert [rate_of(text) for text in ("600", "600/h", " 10/min", "2/s", "0")] == [600, 600, 600, 7200, 0]
    for text in ("", "x", "10/d", "-1", "1.5/h", "99999999/h", "3000/s"):
        with pytest.raises(SettingsError, match="--rate"):
            rate_of(text)
    with pytest.raises(SettingsError, match="--rate"):
        EstSettings("x", "ca", rate=-1)


# ---- renewals that are asked for ----------------------------------------------------------------


def test_a_rate_is_kept_until_another_is_named(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    def set_scep(*more: str) -> str:
        words = ["ca", "set-scep", "--name", "x", "--url", "http://ca.example/", *more]
        assert main([*words, "--data", str(context.data)]) == 0
        return capsys.readouterr().out

    def there() -> tuple[int, int]:
        config = load(context)
        assert config is not None
        return config.settings.rate, config.scep.poll

    assert "kept" not in set_scep() and there() == (0, 60)
    set_scep("--rate", "10/min", "--poll", "7")
    said = set_scep("--profile", "P")
    assert "kept: a rate of 600 certificates an hour" in said and "every 7 seconds" in said
    assert there() == (600, 7)
    assert "rate" not in set_scep("--rate", "0", "--poll", "60") and there() == (0, 60)
    store(context, EstSettings("e", "ca.example", rate=5))
    set_scep("--yes")
    assert there() == (0, 60), "the rate is another CA's"


def test_an_incident_in_the_order_of_expiry(context: Context) -> None:
    fleet(context, A1="/", A2="/a", A3="/b", A4="/b")
    for unit, days in (("A1", 30), ("A2", 10), ("A3", 20)):
        has(context, unit, now() + days * DAY)
    has(context, "A4", now() + DAY, issuer="CA 2", issuer_sha256="cd" * 32)
    seen = changes.newest(context)
    made = renewals.renew(context, issuer="CA 1", within=6 * HOUR)
    assert made.count == 3 and made.until - made.begin == 6 * HOUR and made.warnings == ()
    found = asked(context)
    assert sorted(found, key=lambda unit: found[unit]) == ["A2", "A3", "A1"]
    spans = sorted(found.values())
    assert made.begin <= spans[0][0] and spans[-1][1] <= made.until - 6 * HOUR // 10, "time is left for tries"
    assert all(one[1] <= two[0] for one, two in pairwise(spans)), "one after the other"
    assert [(each.kind, each.target) for each in changes.since(context, seen)] == [("directory", "/")]
    # by its fingerprint, with colons as openssl shows it; and again, in place of the first
    again = renewals.renew(context, issuer=":".join(["AB"] * 32), within=HOUR)
    assert again.count == 3 and max(end for _, end in asked(context).values()) <= again.begin + HOUR
    assert renewals.renew(context, issuer="cd" * 32).count == 1 and asked(context)["A4"] == (0, 0)


def test_a_directory_and_a_device(context: Context) -> None:
    fleet(context, A1="/a", A2="/a/b", A3="/a_b", A4="/c")
    for unit in ("A1", "A2", "A3", "A4"):
        has(context, unit, now() + DAY)
    seen = changes.newest(context)
    assert renewals.renew(context, directory="/a", within=HOUR).count == 2 and set(asked(context)) == {
        "A1",
        "A2",
    }
    assert renewals.renew(context, device="A4", within=HOUR).count == 1
    told = [(each.kind, each.target) for each in changes.since(context, seen)]
    assert told == [("directory", "/a"), ("device", "A4")]
    assert renewals.renew(context, directory="/").count == 4
    for words, sentence in (
        ({"device": "A9"}, "no device 'A9'"),
        ({"directory": "/nope"}, "no certificate in /nope"),
        ({"issuer": "CA 9"}, "no certificate issued by 'CA 9'"),
        ({"device": "A1", "friendly_name": "vpn"}, "no certificate 'vpn'"),
        ({"device": "A1", "issuer": "CA 1"}, "one of"),
        ({}, "one of"),
        ({"device": "A1", "within": -1}, "--within"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            renewals.renew(context, **words)  # type: ignore[arg-type]


def test_the_settings_say_it_and_the_others_stay_as_they_are(context: Context) -> None:
    fleet(context, A1="/", A2="/")
    document = b'{"certs": [{"friendly_name": "lan"}]}'
    profiles.store(context, "p", document)
    profiles.assign(context, "p", directory="/")
    for unit in ("A1", "A2"):
        has(context, unit, now() + 50 * DAY)
    one, two = devices.get(context, "A1"), devices.get(context, "A2")
    assert one is not None and two is not None
    before = merging.effective(context, one).etag
    renewals.renew(context, device="A1", within=HOUR)
    found = merging.effective(context, one)
    begin, until = asked(context)["A1"]
    assert found.document["certs"][0]["enrollment"] == {
        "renew_serial": "A10A",
        "renew_from": begin,
        "renew_until": until,
    }
    assert found.certs[0].enrollment.renew_until == until and found.etag != before
    assert merging.effective(context, two).etag == before
    issue(context, "A1")
    assert merging.effective(context, one).etag == before, "done, and a window of its own changes no tag"


def test_more_than_the_rate_is_said(context: Context) -> None:
    store(context, EstSettings("x", "ca", rate=10), b"", "")
    fleet(context, **{f"A{n}": "/" for n in range(30)})
    for number in range(30):
        has(context, f"A{number}", now() + DAY)
    made = renewals.renew(context, directory="/", within=HOUR)
    assert "within 4h there would be room" in made.warnings[0]
    assert renewals.renew(context, directory="/", within=4 * HOUR).warnings == ()
    assert CaConfig(1, 0, EstSettings("x", "ca")).settings.rate == 0
