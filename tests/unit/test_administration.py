"""What administrators do, as functions over a real database: devices, directories, profiles, accounts, records."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from igelcert import crypto
from igelcert.errors import ConflictError, SettingsError
from igelcert.proxy import (
    audit,
    ca,
    cahealth,
    certificates,
    changes,
    devices,
    enrollment_log,
    importing,
    inventory,
    merging,
    overview,
    profiles,
    registration,
    renewals,
)
from igelcert.proxy.admin import accounts, sessions
from igelcert.proxy.app import make_admin_app
from igelcert.proxy.context import Context
from igelcert.proxy.database import Database, now
from igelcert.proxy.schema import certificates as certificate_table
from igelcert.proxy.schema import enrollments as enrollment_table
from igelcert.proxy.schema import metadata
from igelcert.proxy.schema import sessions as session_table
from igelcert.proxy.upstream.config import ScepSettings
from tests.support.stores import Stores

DAY = 86_400


@pytest.fixture
def password(context: Context, stores: Stores) -> str:
    """Of the account `admin`."""
    return stores.password[context.db.engine.dialect.name]


def everything(context: Context) -> str:
    """All that is in the database."""
    with context.db.read() as connection:
        return "".join(str(connection.execute(table.select()).all()) for table in metadata.sorted_tables)


def document(*names: str, **key: str) -> bytes:
    return json.dumps({"certs": [{"friendly_name": name, "key": key} for name in names]}).encode()


def has_certificate(context: Context, unit_id: str, name: str, until: int, serial: str = "0A") -> None:
    row = {"unit_id": unit_id, "friendly_name": name, "serial": serial, "subject": "CN=x"}
    dates = {"not_before": until - 365 * DAY, "not_after": until, "issued": until - 365 * DAY}
    with context.db.begin() as connection:
        connection.execute(certificate_table.insert().values(**row, **dates))


def has_request(context: Context, unit_id: str, name: str, state: str, updated: int, **more: Any) -> None:
    row = {"unit_id": unit_id, "friendly_name": name, "operation": "simpleenroll", "state": state}
    row |= {
        "csr_sha256": f"{updated}{state}",
        "config_version": 1,
        "reason": "",
        "warnings": "",
        "subject": "",
    }
    with context.db.begin() as connection:
        connection.execute(
            enrollment_table.insert().values(**{**row, "created": updated, "updated": updated, **more})
        )


# ---- directories and devices --------------------------------------------------------------------


def test_the_tree_of_directories(context: Context) -> None:
    devices.add(context, "A1", "/Berlin/Floor 2")
    devices.add(context, "A2", "/Berlin")
    inventory.make_directory(context, "/Ulm/empty")
    profiles.store(context, "lan", document("lan"))
    profiles.assign(context, "lan", directory="/Berlin")
    found = {each.path: each for each in inventory.tree(context)}
    assert list(found) == ["/", "/Berlin", "/Berlin/Floor 2", "/Ulm", "/Ulm/empty"]
    assert [(found["/Berlin"].devices, found["/Berlin"].below), found["/"].below] == [(1, 2), 2]
    assert found["/Berlin"].profiles == ("lan",) and found["/Ulm"].below == 0
    with pytest.raises(SettingsError, match="is there already"):
        inventory.make_directory(context, "/Ulm/empty")


def test_a_directory_moves_with_all_that_is_in_it(context: Context) -> None:
    devices.add(context, "A1", "/Berlin/Floor 2")
    devices.add(context, "A2", "/Berlin_2")  # not below /Berlin, and _ is no wildcard
    profiles.store(context, "lan", document("lan"))
    profiles.assign(context, "lan", directory="/Berlin")
    assert inventory.move_directory(context, "/Berlin", "/Munich/East") == 1
    moved = devices.get(context, "A1")
    assert moved is not None and moved.directory == "/Munich/East/Floor 2"
    assert [cert.friendly_name for cert in merging.effective(context, moved).certs] == ["lan"]
    other = devices.get(context, "A2")
    assert other is not None and other.directory == "/Berlin_2"
    for path, to, sentence in (
        ("/Munich", "/Munich/x", "is the directory itself"),
        ("/Munich", "/Berlin_2", "is there already"),
        ("/nowhere", "/x", "no directory"),
        ("/", "/x", "the root stays"),
        ("/Munich", "/" + "x" * 508, "more than 512"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            inventory.move_directory(context, path, to)


def test_only_an_empty_directory_is_removed(context: Context) -> None:
    devices.add(context, "A1", "/Berlin/Floor 2")
    profiles.store(context, "lan", document("lan"))
    profiles.assign(context, "lan", directory="/Berlin")
    with pytest.raises(SettingsError, match="1 devices are in it"):
        inventory.remove_directory(context, "/Berlin")
    inventory.move(context, ["A1"], "/Ulm")
    inventory.remove_directory(context, "/Berlin")
    assert [each.path for each in inventory.tree(context)] == ["/", "/Ulm"]
    assert profiles.listing(context)[0].assigned == ()
    with pytest.raises(SettingsError, match="no directory"):
        inventory.remove_directory(context, "/Berlin")


def test_searching_in_pages(context: Context) -> None:
    for index in range(25):
        devices.add(context, f"unit-{index:02}", f"/d{index % 5}", f"host-{index}")
    page = inventory.search(context, text="HOST-1", limit=5, offset=10)
    assert (page.total, len(page.items)) == (11, 1)
    assert inventory.search(context, text="t_-0").total == 0  # _ and % are no wildcards
    assert inventory.search(context, text="%").total == 0
    assert inventory.search(context, directory="/d1").total == 5
    assert inventory.search(context, directory="/", below=False).total == 0
    assert [each.unit_id for each in inventory.search(context, limit=2).items] == ["unit-00", "unit-05"]


def test_states_of_devices(context: Context) -> None:
    moment = now()
    for name in ("new", "soon", "over", "bad", "mended"):
        devices.add(context, name)
    has_certificate(context, "soon", "lan", moment + 3 * DAY)
    has_certificate(context, "over", "lan", moment - DAY)
    has_request(context, "bad", "lan", "issued", moment - 30)
    has_request(context, "bad", "lan", "refused", moment - 20)
    has_request(context, "mended", "lan", "failed", moment - 30)
    has_request(context, "mended", "lan", "issued", moment - 10)

    def units(state: str) -> list[str]:
        return [each.unit_id for each in inventory.search(context, state=state).items]

    assert units("expiring") == ["soon"] and units("expired") == ["over"] and units("failing") == ["bad"]
    assert len(units("added")) == 5 and units("registered") == units("silent") == []
    assert inventory.counts(context) == {state: len(units(state)) for state in inventory.STATES}
    with pytest.raises(SettingsError, match="is no state"):
        inventory.search(context, state="odd")


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ({}, False),
        ({"state": "due", "error": None}, False),
        ({"error": "the CA file is missing"}, True),
        ({"error": '"'}, True),
        ({"hooks": "90-radius ended with 1"}, True),
        ({"state": "damaged"}, True),
        ({"state": "expired"}, True),
        ({"friendly_name": 'a", "error": "x'}, False),
        ({"friendly_name": 'error": "', "serial": '"hooks": "y'}, False),
    ],
)
def test_a_device_that_reports_trouble_is_failing(
    context: Context, said: dict[str, Any], trouble: bool
) -> None:
    """As the overview counts it."""
    devices.add(context, "A1")
    device = devices.get(context, "A1")
    assert device is not None
    good = {"friendly_name": "lan", "state": "valid", "error": "", "not_after": now() + DAY}
    registration.report(context, device, {"certs": [good, {**good, "friendly_name": "vpn", **said}]})
    found = [each.unit_id for each in inventory.search(context, state="failing").items]
    assert found == (["A1"] if trouble else []) and bool(overview.collect(context).trouble) is trouble
    registration.report(context, device, {"certs": [good]})
    assert not inventory.search(context, state="failing").items


def test_two_administrators_change_one_device(context: Context) -> None:
    devices.add(context, "A1", "/a")
    inventory.change(context, "A1", directory="/b", hostname="pc1", seen=("/a", ""))
    with pytest.raises(ConflictError, match="somebody else"):
        inventory.change(context, "A1", directory="/c", seen=("/a", ""))
    again = inventory.change(context, "A1", hostname="", seen=("/b", "pc1"))
    assert (again.directory, again.hostname, again.hostname_fixed) == ("/b", "pc1", False)
    devices.add(context, "A2", hostname="pc2")
    with pytest.raises(SettingsError, match="is the host name of device A2"):
        inventory.change(context, "A1", hostname="PC2")


def test_everything_about_one_device(context: Context) -> None:
    devices.add(context, "A1", "/a/b")
    profiles.store(context, "near", document("lan"))
    profiles.store(context, "far", document("lan", "vpn"))
    profiles.assign(context, "far", directory="/")
    profiles.assign(context, "near", device="A1")
    has_certificate(context, "A1", "lan", now() + DAY)
    has_request(context, "A1", "vpn", "refused", now(), reason="the CA refused")
    found = inventory.detail(context, "A1")
    assert found is not None and inventory.detail(context, "A2") is None
    assert found.profiles == (("near", "device", "A1"), ("far", "directory", "/"))
    assert [cert.friendly_name for cert in found.certs] == ["lan"]
    assert found.last["vpn"].reason == "the CA refused"
    assert found.token_until is not None and found.token_until > now()


def test_import_is_all_or_nothing_and_tells_how_far_it_is(context: Context) -> None:
    lines = [f"u{index},/d{index % 7},h{index}" for index in range(1200)]
    sheet = importing.Import("unit_id,directory,hostname\n" + "\n".join(lines))
    assert list(sheet.check()) == [500, 1000, 1200] and sheet.total == 1200
    made = sheet.write(context)
    assert len({token.token for token in made}) == 1200 and inventory.search(context).total == 1200
    for text, sentence in (
        ("unit_id\nn1\nn1\n", "line 3: unit-id: n1 is in this file twice"),
        ("unit_id\nn1\nu7\n", "line 3: unit-id: u7 is known already"),
        ("unit_id,hostname\nn1,H3\n", "line 2: hostname: H3 is the host name of device u3"),
        ("unit_id,hostname\nn1,x\nn2,X\n", "line 3: hostname: X is the host name of device n1"),
        ("unit_id,directory\nn1,berlin\n", "line 2: directory: 'berlin' does not begin with a slash"),
        ("unit_id\nn1,x\n", "line 2: has more fields"),
        ("name\nn1\n", "line 1: is not the heading"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            devices.import_csv(context, text)
    assert inventory.search(context).total == 1200


# ---- renew now ----------------------------------------------------------------------------------


def test_renew_now_is_in_the_settings_until_it_is_done(context: Context) -> None:
    devices.add(context, "A1")
    profiles.store(context, "lan", document("lan", "vpn"))
    profiles.assign(context, "lan", device="A1")
    device = devices.get(context, "A1")
    assert device is not None
    with pytest.raises(SettingsError, match="no certificate yet"):
        renewals.renew_now(context, "A1")
    has_certificate(context, "A1", "lan", now() + 100 * DAY, serial="0BAD")
    before = merging.effective(context, device)
    assert renewals.renew_now(context, "A1") == ["lan"]
    asked = merging.effective(context, device)
    assert asked.etag != before.etag
    assert [cert.enrollment.renew_serial for cert in asked.certs] == ["0BAD", ""]
    assert asked.document["certs"][0]["enrollment"]["renew_serial"] == "0BAD"
    assert [cert.asked is not None for cert in certificates.of_device(context, "A1")] == [True]
    with context.db.begin() as connection:
        certificates.note(connection, "A1", "lan", crypto.parse_certificate(_a_certificate(context)))
    assert merging.effective(context, device).etag == before.etag


def _a_certificate(context: Context) -> bytes:
    from igelcert.codec.pem import decode_pem

    return decode_pem(context.management_ca.pem.encode())[0]


def test_a_certificate_that_the_device_no_longer_has_is_forgotten(context: Context) -> None:
    devices.add(context, "A1")
    has_certificate(context, "A1", "old", now() + DAY)
    has_certificate(context, "A1", "lan", now() + DAY)
    device = devices.get(context, "A1")
    assert device is not None
    registration.report(context, device, {"certs": [{"friendly_name": "lan", "state": "ok"}]})
    assert [cert.friendly_name for cert in certificates.of_device(context, "A1")] == ["lan"]


def test_who_is_concerned_is_told(context: Context) -> None:
    """Devices wait for changes of their settings: each change of what they get says whom it concerns."""
    for name in ("A1", "A2"):
        devices.add(context, name, "/a")
    has_certificate(context, "A1", "lan", now() + DAY)
    seen = changes.newest(context)

    def told() -> set[tuple[str, str]]:
        nonlocal seen
        found = changes.since(context, seen)
        seen = changes.newest(context)
        return {(each.kind, each.target) for each in found}

    renewals.renew_now(context, "A1")
    assert told() == {("device", "A1")}
    inventory.move(context, ["A1", "A2"], "/b")
    assert told() == {("device", "A1"), ("device", "A2")}
    inventory.change(context, "A1", directory="/c")
    assert told() == {("device", "A1")}
    inventory.move_directory(context, "/b", "/d")
    assert ("directory", "/b") in told()
    profiles.store(context, "p", document("lan"))
    assert told() == set()
    profiles.assign(context, "p", directory="/d")
    profiles.store(context, "p", document("lan", "vpn"))
    assert told() == {("directory", "/d")}


# ---- profiles -----------------------------------------------------------------------------------


def test_passwords_go_in_and_never_out(context: Context) -> None:
    profiles.store(context, "lan", document("lan", crypt_password="geheim-1"))
    shown = profiles.must_find(context, "lan")
    assert "geheim-1" not in json.dumps(shown.as_json()) and shown.secrets == ("certs[0].key.crypt_password",)

    def password() -> str:
        devices.add(context, f"u{time.monotonic_ns()}", "/")
        device = inventory.search(context, limit=1).items[0]
        return merging.effective(context, device).certs[0].key.crypt_password

    profiles.assign(context, "lan", directory="/")
    fresh = {**shown.document}
    fresh["certs"][0]["subject"] = {"org": "Example"}
    profiles.store(context, "lan", json.dumps(fresh).encode(), keep_secrets=True)
    assert password() == "geheim-1"
    profiles.store(context, "lan", document("other"), keep_secrets=True)
    assert password() == ""
    profiles.store(context, "lan", document("lan", crypt_password="x"))
    profiles.store(context, "lan", document("lan", crypt_password=""), keep_secrets=True)
    assert password() == "" and profiles.must_find(context, "lan").secrets == ()


def test_two_administrators_edit_one_profile(context: Context) -> None:
    profiles.store(context, "lan", document("lan"), expected=0)
    with pytest.raises(ConflictError, match="changed by somebody else"):
        profiles.store(context, "lan", document("other"), expected=0)
    profiles.store(context, "lan", document("lan"), expected=0)  # the same button pressed twice
    assert profiles.must_find(context, "lan").version == 1
    profiles.store(context, "lan", document("lan", "vpn"), expected=1)
    profiles.remove(context, "lan")
    with pytest.raises(ConflictError, match="removed by somebody else"):
        profiles.store(context, "lan", document("lan"), expected=2)


def test_what_is_lost_with_a_profile(context: Context) -> None:
    profiles.store(context, "p", document("lan", "vpn"))
    profiles.assign(context, "p", directory="/Berlin")
    devices.add(context, "B1", "/Berlin/2")
    profiles.assign(context, "p", device="B1")  # reached twice, counted once
    devices.add(context, "B2", "/Berlin_2")  # not below /Berlin, and _ is no wildcard
    assert str(profiles.loss(context, "p")) == "1 device loses the certificates lan, vpn, and their keys"
    devices.add(context, "B3", "/Berlin")
    with pytest.raises(ConflictError, match="2 devices lose the certificates lan, vpn, and their keys"):
        profiles.remove(context, "p")
    assert profiles.get(context, "p") is not None
    profiles.store(context, "p", document("lan"))
    assert str(profiles.loss(context, "p")) == "2 devices lose the certificate lan, and their keys"
    profiles.remove(context, "p", force=True)
    profiles.store(context, "q", document("lan"))
    profiles.assign(context, "q", directory="/Ulm")
    profiles.remove(context, "q")  # where no device is, nothing is lost
    with pytest.raises(SettingsError, match="there is no profile"):
        profiles.remove(context, "q")


def test_preview_and_clashes(context: Context) -> None:
    devices.add(context, "A1", "/a/b", "pc1")
    device = devices.get(context, "A1")
    assert device is not None
    settings = {"certs": [{"friendly_name": "lan", "subject": {"org": "Example", "country": "de"},
                           "subjaltname": {"ip": ["192.0.2.1"], "uri": ["urn:x:y"]}},
                          {"friendly_name": "vpn", "subject": {"auto_cn": "unitid"},
                           "subjaltname": {"auto_hostname": False}}]}  # fmt: skip
    lan, vpn = profiles.preview(settings, device)
    assert lan.subject == "C=DE, O=Example, CN=pc1" and vpn.subject == "CN=A1" and vpn.names == ()
    assert lan.names == (("DNS", "pc1"), ("IP", "192.0.2.1"), ("URI", "urn:x:y"))
    devices.add(context, "A2")
    nameless = devices.get(context, "A2")
    assert nameless is not None and "has no hostname" in profiles.preview(settings, nameless)[0].problem

    for name, directory in (("one", "/a"), ("two", "/a/b"), ("three", "/c")):
        profiles.store(context, name, document("lan"))
        profiles.assign(context, name, directory=directory)
    found = profiles.clashes(context, "one", settings)
    assert len(found) == 1 and "profile 'two'" in found[0]


# ---- the CA -------------------------------------------------------------------------------------


def test_two_administrators_configure_the_ca(context: Context) -> None:
    one = ca.assemble(context, ScepSettings("one", "http://ca.example/scep"))
    two = ca.assemble(context, ScepSettings("two", "http://ca.example/scep"))
    first = ca.save(context, one, expected=0)
    with pytest.raises(ConflictError, match="somebody else"):
        ca.save(context, two, expected=0)
    assert ca.save(context, one, expected=0) == first  # pressed twice
    second = ca.save(context, two, expected=first)
    assert second > first
    cahealth.note(context, second, False, "no answer")
    shown = ca.describe(context)
    assert shown is not None and shown["last_exchange"]["text"] == "no answer" and len(shown["warnings"]) == 1
    assert cahealth.last(context, first) is None


def test_a_password_of_ndes_goes_to_no_other_server(context: Context) -> None:
    def settings(user: str) -> ScepSettings:
        page = "https://ndes.example/certsrv/mscep_admin/"
        return ScepSettings("n", "https://ndes.example/x", ndes_url=page, ndes_user=user)

    with pytest.raises(SettingsError, match="is missing"):
        ca.assemble(context, settings("a"))
    ca.save(context, ca.assemble(context, settings("a"), None, "geheim"))
    assert ca.assemble(context, settings("a")).password == "geheim"
    with pytest.raises(SettingsError, match="is missing"):
        ca.assemble(context, settings("b"))


# ---- records ------------------------------------------------------------------------------------


def test_enrollments_are_searched_and_exported(context: Context) -> None:
    moment = now()
    for index in range(30):
        has_request(context, f"u{index}", "lan", "issued" if index % 3 else "refused", moment - index * DAY)
    has_request(context, "evil", "=cmd()", "failed", moment + 1, reason='a,b"c\nd')
    assert enrollment_log.search(context, state="refused").total == 10
    assert enrollment_log.search(context, since=moment - 5 * DAY, until=moment).total == 5
    assert enrollment_log.search(context, text="EVIL").items[0].reason.startswith("a,b")
    rows = list(
        csv.DictReader(
            io.StringIO("".join(enrollment_log.sheet(enrollment_log.search(context, limit=0).items)))
        )
    )
    assert len(rows) == 31 and rows[0]["friendly_name"] == "'=cmd()" and rows[0]["reason"] == 'a,b"c; d'
    days = enrollment_log.by_day(context, 7)
    assert len(days) == 7 and sum(sum(states.values()) for _, states in days) in {7, 8}


def test_expiries_by_week_and_by_age(context: Context) -> None:
    devices.add(context, "A1")
    moment = now()
    for name, days in (("a", -3), ("b", 0.5), ("c", 5), ("d", 20), ("e", 80), ("f", 400)):
        has_certificate(context, "A1", name, moment + int(days * DAY))
    with context.db.read() as connection:
        ages = certificates.by_age(connection, moment)
    assert ages == {"expired": 1, "0-1": 1, "1-7": 1, "7-14": 0, "14-30": 1, "30-90": 1, "90+": 1}
    weeks = certificates.by_week(context, 26)
    assert all(time.gmtime(begin).tm_wday == 0 for begin, _ in weeks) and weeks[0][0] <= moment < weeks[1][0]
    assert sum(count for _, count in weeks) in {4, 5}  # the one of three days ago may be of this week


def test_the_audit_log_names_who_did_it(context: Context) -> None:
    devices.add(context, "A1")
    with audit.acts("alice"):
        devices.remove(context, "A1")
    newest = audit.listing(context, action="device").items
    assert [(row.actor, row.action) for row in newest] == [
        ("alice", "device remove"),
        ("ca-proxy", "device add"),
    ]
    assert audit.listing(context, search="ALICE").total == 1
    assert audit.listing(context, limit=1, offset=1).items[0].action == "device add"


# ---- accounts -----------------------------------------------------------------------------------


def test_the_first_login_must_change_the_password(context: Context, password: str) -> None:
    account = accounts.log_in(context, "admin", password, "192.0.2.1")
    assert account.must_change and account.role == "admin"
    for new, sentence in (
        ("short", "less than 12"),
        ("admin-123456", "little more than"),
        ("aaaaaaaaaaaaaa", "repeats"),
        (password, "is the present"),
        ("x" * 1001, "more than 1000"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            accounts.change_password(context, "admin", password, new)
    with pytest.raises(SettingsError, match="is not the present password"):
        accounts.change_password(context, "admin", "wrong", "correct horse battery")
    accounts.change_password(context, "admin", password, "correct horse battery")
    assert not accounts.log_in(context, "admin", "correct horse battery", "192.0.2.1").must_change
    assert "correct horse battery" not in everything(context)


def test_logins_are_limited(context: Context, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        with pytest.raises(accounts.LoginRefused, match="wrong"):
            accounts.log_in(context, "admin", "guess", "192.0.2.1")
    with pytest.raises(accounts.LoginRefused, match="too many") as refused:
        accounts.log_in(context, "admin", password, "192.0.2.1")
    assert 0 < refused.value.retry_after <= 900
    accounts.log_in(context, "admin", password, "192.0.2.2")  # the owner is not locked out elsewhere
    for index in range(20):
        with pytest.raises(accounts.LoginRefused):
            accounts.log_in(context, f"nobody{index}", "guess", "192.0.2.3")
    with pytest.raises(accounts.LoginRefused, match="too many"):
        accounts.log_in(context, "somebody", "guess", "192.0.2.3")
    later = now() + 901
    monkeypatch.setattr(accounts, "now", lambda: later)
    accounts.log_in(context, "admin", password, "192.0.2.1")


def test_sessions_end(context: Context, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    account = accounts.log_in(context, "admin", password, "::1")
    session, other = sessions.begin(context, account), sessions.begin(context, account)
    assert session.secret not in repr(session) and not sessions.forged(session, session.csrf)
    assert sessions.forged(session, other.csrf)
    with context.db.read() as connection:
        assert session.secret not in str(connection.execute(session_table.select()).all())
    accounts.change_password(context, "admin", password, "correct horse battery", session.digest)
    assert sessions.find(context, other.secret) is None and sessions.find(context, "") is None
    moment = now()
    for later, alive in ((1700, True), (3300, True), (5200, False)):
        monkeypatch.setattr(sessions, "now", lambda later=later: moment + later)
        assert (sessions.find(context, session.secret) is not None) is alive
    monkeypatch.setattr(sessions, "now", lambda: moment)
    fresh = sessions.begin(context, account)
    for later in range(1000, 13 * 3600, 1000):
        monkeypatch.setattr(sessions, "now", lambda later=later: moment + later)
        assert (sessions.find(context, fresh.secret) is not None) is (later <= 12 * 3600)
    monkeypatch.setattr(sessions, "now", lambda: moment)
    gone = sessions.begin(context, account)
    sessions.end(context, gone)
    assert sessions.find(context, gone.secret) is None


def test_roles_and_the_last_administrator(context: Context) -> None:
    first = accounts.add(context, "viewer1", "viewer")
    assert accounts.log_in(context, "viewer1", first, "::1").role == "viewer"
    for change in (
        lambda: accounts.remove(context, "admin"),
        lambda: accounts.set_role(context, "admin", "viewer"),
    ):
        with pytest.raises(SettingsError, match="last administrator"):
            change()
    accounts.set_role(context, "viewer1", "admin")
    session = sessions.begin(context, accounts.listing(context)[0])
    accounts.remove(context, "admin")
    assert sessions.find(context, session.secret) is None
    for name, role, sentence in (
        ("viewer1", "viewer", "already"),
        ("a b", "viewer", "letters"),
        ("x", "root", "neither"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            accounts.add(context, name, role)
    assert accounts.reset_password(context, "viewer1") != first


def test_tokens(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    made = accounts.make_token(context, "backup", "viewer", 1)
    forever = accounts.make_token(context, "deploy", "admin")
    assert made.secret not in repr(made)
    found = accounts.who_has(context, made.secret)
    assert found is not None and (found.name, found.role, found.secret) == ("backup", "viewer", "")
    assert accounts.who_has(context, made.secret + "x") is None and accounts.who_has(context, "") is None
    assert made.secret not in everything(context) and made.name in everything(context)
    later = now() + DAY
    monkeypatch.setattr(accounts, "now", lambda: later)
    assert accounts.who_has(context, made.secret) is None
    assert accounts.who_has(context, forever.secret) is not None
    accounts.remove_token(context, "deploy")
    assert accounts.who_has(context, forever.secret) is None
    with pytest.raises(SettingsError, match="already"):
        accounts.make_token(context, "backup", "viewer")


def test_a_nul_in_what_is_asked_for_is_found_nowhere(context: Context) -> None:
    """PostgreSQL has no such character in texts, and strangers may send it."""
    devices.add(context, "A1", hostname="tc-1")
    with pytest.raises(accounts.LoginRefused):
        accounts.log_in(context, "ad\0min", "x", "192.0.2.1")
    inventory.search(context, text="tc\0")  # SQLite's LIKE takes that for the end
    assert devices.get(context, "A1\0") is None


# ---- the migration ------------------------------------------------------------------------------


OLD = (
    "INSERT INTO meta VALUES ('admin_name', 'admin'), ('admin_password', 'hash')",
    "INSERT INTO devices (unit_id, directory, hostname, hostname_fixed, ips, state, report, created)"
    " VALUES ('A1', '/', '', FALSE, '[]', 'added', '{}', 1)",
    "INSERT INTO enrollments (unit_id, friendly_name, operation, csr_sha256, state, config_version, reason,"
    " warnings, subject, serial, not_before, not_after, created, updated)"
    " SELECT column1, 'lan', 'simpleenroll', column2, 'issued', 1, '', '', 'CN=x', column3, 1, 2, 1, column4"
    " FROM (VALUES ('A1', 'a', '01', 5), ('A1', 'b', '02', 7), ('gone', 'c', '03', 9)) AS given",
)


def test_an_older_database_keeps_its_administrator_and_certificates(empty: Database) -> None:
    from alembic import command
    from alembic.config import Config

    import igelcert.proxy

    db = empty
    config = Config()
    config.set_main_option("script_location", str(Path(igelcert.proxy.__file__).parent / "migrations"))
    with db.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for statement in OLD:
            connection.exec_driver_sql(statement)
    db.migrate()
    db.check()
    with db.read() as connection:
        rows = connection.execute(certificate_table.select()).all()
        assert [(row.unit_id, row.serial) for row in rows] == [("A1", "02")]
        assert db.meta("admin_password") == ""
        account = connection.exec_driver_sql("SELECT name, role, must_change FROM accounts").one()
        assert tuple(account) == ("admin", "admin", True)


def test_tokens_that_do_not_count_are_noted(
    context: Context, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By address, so many and no more; who has one that counts is let in all the same, and so is who logs in."""
    caplog.set_level("INFO", "igelcert.proxy")
    monkeypatch.setattr(accounts, "ADDRESS_FAILURES", 3)
    client = make_admin_app(context).test_client()
    good = accounts.make_token(context, "monitor", "viewer").secret

    def asked(secret: str, **more: Any) -> int:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        answer = client.get("/api/v1/devices", headers=headers, **more)
        return answer.status_code

    assert asked("") == 401 and not [each for each in caplog.records if each.levelname == "WARNING"]
    assert [asked("igct_wrong-one") for _ in range(5)] == [401] * 5
    assert asked(good) == 200
    assert asked("igct_wrong-one", environ_base={"REMOTE_ADDR": "192.0.2.7"}) == 401
    with pytest.raises(accounts.LoginRefused, match="is wrong"):
        accounts.log_in(context, "somebody", "something", "127.0.0.1")
    said = [each.getMessage() for each in caplog.records]
    assert sum("a token that does not count" in each for each in said) == 4
    assert any(each.startswith("127.0.0.1 - GET /api/v1/devices 401 ") for each in said)
    noted = audit.listing(context, action="token refused").items
    assert [row.actor for row in noted] == ["192.0.2.7", *["127.0.0.1"] * 3]
    assert "wrong-one" not in "".join(said) + "".join(row.detail for row in noted)
