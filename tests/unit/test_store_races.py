"""Two proxies do the same at the same moment: on either engine it comes out as if one had come after the other."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from igelcert import crypto
from igelcert.codec import pkcs10
from igelcert.crypto import Key
from igelcert.errors import Error, RemoteProtocolError, SettingsError, UnavailableError
from igelcert.model import CsrSpec, Subject
from igelcert.proxy import certificates, challenges, changes, devices, enrollments, registration
from igelcert.proxy.admin import accounts
from igelcert.proxy.context import Context
from igelcert.proxy.upstream.config import CaConfig, EstSettings, ScepSettings, current_version, store

ROUNDS = 6
NDES = ScepSettings("x", "http://ca/", ndes_url="http://ca/admin", ndes_user="u")


@pytest.fixture
def other(context: Context) -> Iterator[Context]:
    """Another process on the same database."""
    made = Context.open(context.data)
    yield made
    made.leases.close()
    context.leases.close()
    made.db.close()


def race(*acts: Callable[[], Any]) -> list[Any]:
    """What they return, or the error that they end with; all begin at once."""
    start = threading.Barrier(len(acts))

    def run(act: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return act()
        except Error as err:
            return err

    with ThreadPoolExecutor(len(acts)) as pool:
        return [work.result() for work in [pool.submit(run, act) for act in acts]]


def request(name: str, key_type: str = "ec_prime256v1") -> pkcs10.CertificationRequest:
    return pkcs10.parse(pkcs10.build(CsrSpec(key_type, Subject(cn=name)), Key.generate(key_type)))


def split(found: list[Any], kind: type[Error]) -> tuple[int, int]:
    """How many were done, and how many refused in words."""
    bad = [each for each in found if isinstance(each, Error)]
    assert all(isinstance(each, kind) for each in bad), bad
    return len(found) - len(bad), len(bad)


def test_a_name_is_given_once(context: Context, other: Context) -> None:
    for number in range(ROUNDS):
        both = (context, other, context, other)
        acts = [lambda each=each, n=number: accounts.make_token(each, f"t{n}", "viewer") for each in both]
        assert split(race(*acts), SettingsError) == (1, 3)
        acts = [lambda each=each, n=number: devices.add(each, f"U{n}") for each in both]
        assert split(race(*acts), SettingsError) == (1, 3)


def test_one_administrator_stays(context: Context, other: Context) -> None:
    for number in range(3):
        accounts.add(context, f"a{number}", "admin")
    names = ("admin", "a0", "a1", "a2")
    acts = [
        lambda each=each, name=name: accounts.remove(each, name)
        for each, name in zip((context, other, context, other), names, strict=True)
    ]
    assert split(race(*acts), SettingsError) == (3, 1)


def test_two_devices_do_not_get_one_host_name(context: Context, other: Context) -> None:
    for number in range(ROUNDS):
        units = [f"A{number}", f"B{number}", f"C{number}"]
        for unit in units:
            devices.add(context, unit)
        known = [devices.get(context, unit) for unit in units]
        body = {"hostname": f"tc-{number}", "certs": []}
        acts = [
            lambda each=each, device=device, body=body: registration.report(each, device, body)  # type: ignore[arg-type]
            for each, device in zip((context, other, context), known, strict=True)
        ]
        assert split(race(*acts), RemoteProtocolError) == (1, 2)


def test_a_registration_token_is_good_once(context: Context, other: Context) -> None:
    for number in range(ROUNDS):
        token = devices.add(context, f"R{number}")
        bodies = [
            {
                "token": token.token,
                "unit_id": token.unit_id,
                "csr": base64.b64encode(request(token.unit_id).der).decode(),
            }
            for _ in range(3)
        ]
        acts = [
            lambda each=each, body=body: registration.register(each, body)
            for each, body in zip((context, other, context), bodies, strict=True)
        ]
        assert split(race(*acts), RemoteProtocolError) == (1, 2)


def test_versions_and_changes_are_counted_without_a_gap(context: Context, other: Context) -> None:
    before, first = current_version(context), changes.newest(context)
    acts = [
        lambda each=each, n=n: store(each, ScepSettings(f"n{n}", "http://ca/"))
        for n, each in enumerate((context, other) * 4)
    ]
    assert sorted(race(*acts)) == list(range(before + 1, before + 9))

    def note(each: Context, name: str) -> None:
        with each.db.begin() as connection:
            changes.note(connection, [("device", name)])

    race(*(lambda each=each, n=n: note(each, f"d{n}") for n, each in enumerate((context, other) * 4)))
    found = changes.since(context, first)
    assert [each.id for each in found] == list(range(first + 1, first + 9))


def test_a_setting_that_both_write(context: Context, other: Context) -> None:
    def put(each: Context, value: str) -> None:
        with each.db.begin(alone=False) as connection:
            each.db.put_meta(connection, "both", value)

    for number in range(ROUNDS):
        race(*(lambda each=each, n=number: put(each, str(n)) for each in (context, other, context, other)))
        assert context.db.meta("both") == str(number)


def test_a_request_is_carried_by_one(context: Context, other: Context) -> None:
    for number in range(ROUNDS):
        ask = enrollments.Ask("UNIT", "lan", request(f"r{number}"), "simpleenroll")
        acts = [lambda each=each, ask=ask: enrollments.claim(each, ask, 1) for each in (context, other) * 3]
        found = race(*acts)
        assert sum(isinstance(each, enrollments.Ticket) for each in found) == 1
        fresh = enrollments.Ask("UNIT", "lan", request(f"x{number}"), "simpleenroll")
        for it in (ask, fresh):
            acts = [
                lambda each=each, it=it: enrollments.refuse(each, it, "refused", "no")
                for each in (context, other, context)
            ]
            assert race(*acts) == [None, None, None]


def test_certificates_of_a_device_that_goes(context: Context, other: Context) -> None:
    """One is recorded while the device is removed: afterwards the device has none, whoever came first."""
    cert = crypto.parse_certificate(
        context.management_ca.issue_device(Key.generate("ec_prime256v1").spki(), "G")
    )

    def note(each: Context, unit: str) -> None:
        with each.db.begin(alone=False) as connection:
            certificates.note(connection, unit, "lan", cert)

    for number in range(ROUNDS):
        unit = f"G{number}"
        devices.add(context, unit)
        found = race(
            lambda unit=unit: note(context, unit),
            lambda unit=unit: note(other, unit),
            lambda unit=unit: devices.remove(other, unit),
        )
        assert found == [None, None, None]
        assert certificates.of_device(context, unit) == []


def test_no_more_challenges_than_ndes_keeps(context: Context, other: Context) -> None:
    config = CaConfig(1, 0, NDES, b"", "secret")
    for number in range(9):
        devices.add(context, f"N{number}")
    acts = [
        lambda each=each, n=n: challenges._reserve(each, config, f"N{n}", "lan")
        for n, each in zip(range(9), (context, other) * 5, strict=False)
    ]
    assert sum(race(*acts)) == challenges.CACHE


def test_a_certificate_authority_is_replaced_by_one_of_two(context: Context, other: Context) -> None:
    """Both editors saw the same version: one is told of the other."""
    for _ in range(ROUNDS):
        seen = current_version(context)
        acts = [
            lambda each=each, n=n, seen=seen: store(each, EstSettings(f"e{n}", "ca"), expected=seen)
            for n, each in enumerate((context, other, context))
        ]
        assert split(race(*acts), Error) == (1, 2)


@pytest.mark.parametrize("skew", [-90, 90])
def test_clocks_that_differ_change_nothing_about_who_carries_a_request(
    context: Context, other: Context, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    ask = enrollments.Ask("UNIT", "lan", request("skewed"), "simpleenroll")
    assert isinstance(enrollments.claim(context, ask, 1), enrollments.Ticket)
    real = enrollments.now
    age = enrollments._stale(context) - 45
    for module in (enrollments, changes, devices):
        monkeypatch.setattr(module, "now", lambda: real() + skew)
    with context.db.begin() as connection:
        connection.execute(
            enrollments.enrollments.update().values(updated=enrollments.enrollments.c.updated - age)
        )
    row = enrollments.claim(other, ask, 1)
    assert not isinstance(row, enrollments.Ticket) and row.state == "running"


@pytest.mark.parametrize("alone", [True, False])
def test_who_stands_still_in_a_transaction_holds_nobody_up_for_long(
    context: Context, other: Context, alone: bool
) -> None:
    """A proxy that is cut off in the middle of one holds its locks: others get them before they give up waiting."""
    if not context.db.shared:
        pytest.skip("SQLite has no proxies that could be cut off")
    devices.add(context, "STILL")
    held, going_on = threading.Event(), threading.Event()
    table = devices.devices

    def stand_still() -> Any:
        with other.db.begin(alone=alone) as connection:
            connection.execute(table.update().where(table.c.unit_id == "STILL").values(directory="/Lost"))
            held.set()
            going_on.wait(30)
            connection.execute(table.update().where(table.c.unit_id == "STILL").values(directory="/Lost"))

    def act() -> None:
        assert held.wait(10)
        try:
            with context.db.begin(alone=alone) as connection:
                connection.execute(table.update().where(table.c.unit_id == "STILL").values(directory="/Kept"))
        finally:
            going_on.set()

    lost, done = race(stand_still, act)
    assert isinstance(lost, UnavailableError) and done is None, (lost, done)
    found = devices.get(context, "STILL")
    assert found is not None and found.directory == "/Kept"
