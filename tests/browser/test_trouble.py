"""What goes wrong while somebody works at the pages: nothing that was entered is lost."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from igelcert.proxy.context import Context
from igelcert.proxy.schema import sessions
from tests.support.chain import LabCa
from tests.support.walk import PASSWORD, Walk

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.xdist_group("trouble")]
ODD = "Ünï <b>&amp;<i> 名前 🎉 %2F?#\"'; DROP"


def save(page: Any) -> None:
    page.get_by_role("button", name="Save", exact=True).click()


def without_a_ca(walk: Walk) -> None:
    if "no CA is configured" not in walk.gate.cli("ca", "show"):
        walk.gate.cli("ca", "clear", "--yes")


def fill_est(walk: Walk, lab: LabCa, name: str) -> None:
    page = walk.page
    page.get_by_label("Configuration name").fill(name)
    page.get_by_label("CA hostname").fill("localhost")
    page.get_by_label("CA port").fill(str(lab.port))
    page.get_by_label("Upload keystore").set_input_files(lab.dir / "ra.p12")
    page.get_by_label("Keystore password").fill((lab.dir / "ra.p12.password").read_text().strip())


def loaded(page: Any) -> None:
    """The scripts, too: before, forms work without them, and ask on a page of their own."""
    page.wait_for_load_state()


def end_sessions(walk: Walk) -> None:
    with Context.open(walk.gate.data).db.begin() as connection:
        connection.execute(sessions.delete())


def times(walk: Walk, action: str) -> int:
    lines = json.loads(walk.gate.cli("audit", "--json", "--limit", "1000"))
    return sum(line["action"] == action for line in lines)


# ---- somebody else ------------------------------------------------------------------------------


def test_two_administrators_configure_one_ca(tour: Walk, lab: LabCa) -> None:
    page, gate = tour.page, tour.gate
    tour.go("/ca")
    fill_est(tour, lab, "Mine")
    gate.use(lab)
    save(page)
    page.locator("#ca .alert", has_text="omebody else changed the CA configuration meanwhile").wait_for()
    tour.shoot("ca-conflict")
    assert "localhost" in page.locator("#ca .alert").text_content(), "what is there now"
    assert page.get_by_label("Configuration name").input_value() == "Mine"
    assert page.get_by_label("Keystore password").input_value(), "what was typed is still there"
    assert page.evaluate("document.getElementById('keystore').files.length") == 1
    assert "Mine" not in gate.cli("ca", "show")
    save(page)
    page.get_by_text("Saved. It counts from the next request on.").wait_for()
    assert "Mine" in gate.cli("ca", "show")
    # the other one has put the other kind in its place
    tour.go("/ca")
    page.get_by_label("Configuration name").fill("Mine again")
    gate.cli("ca", "set-scep", "--name", "Theirs", "--url", "http://ca.example/scep", "--yes")
    save(page)
    page.locator("#ca .alert").first.wait_for()
    assert "Theirs" in page.locator("#ca").text_content() and "Theirs" in gate.cli("ca", "show")
    assert page.get_by_label("Configuration name").input_value() == "Mine again"
    page.once("dialog", lambda dialog: dialog.accept())
    tour.go("/ca")
    # what somebody else has just put there is not removed unseen
    gate.cli("ca", "set-scep", "--name", "Newer", "--url", "http://ca.example/scep")
    loaded(page)
    page.get_by_role("button", name="Remove this configuration").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove this configuration").click()
    page.get_by_role("alert").filter(has_text="omebody else changed").wait_for()
    assert "Newer" in gate.cli("ca", "show")


def test_two_administrators_edit_one_device(tour: Walk) -> None:
    page, gate = tour.page, tour.gate
    gate.cli("device", "add", "--unit-id", "D1", "--directory", "/Old")
    tour.go("/devices/u/D1")
    page.get_by_label("Directory").fill("/Mine")
    gate.cli("device", "move", "--unit-id", "D1", "--", "/Theirs")
    save(page)
    alert = page.locator("main form .alert")
    alert.wait_for()
    assert "somebody else" in alert.text_content() and "Now it is: /Theirs" in alert.text_content()
    tour.shoot("device-conflict")
    assert page.get_by_label("Directory").input_value() == "/Mine"
    assert gate.cli("device", "list").count("/Theirs") == 1
    save(page)
    page.get_by_text("Changed.").wait_for()
    assert "/Mine" in gate.cli("device", "list")
    tour.go("/devices/u/D1")
    page.get_by_label("Directory").fill("/Mine/2")
    gate.cli("device", "remove", "--unit-id", "D1")
    save(page)
    page.get_by_role("alert").filter(has_text="D1").wait_for()


def test_two_administrators_edit_one_profile(tour: Walk) -> None:
    page, gate = tour.page, tour.gate
    gate.profile("Both", {"friendly_name": "lan", "subject": {"org": "First"}})
    tour.go("/profiles/p/Both")
    page.get_by_label("Organization (O)").fill("Mine")
    page.get_by_label("Key password").fill("geheim-3")
    gate.profile("Both", {"friendly_name": "lan", "subject": {"org": "Theirs"}})
    save(page)
    page.get_by_text("was changed by somebody else meanwhile").wait_for()
    shown = page.get_by_role("table", name="Differences").get_by_role("row").nth(1)
    assert shown.text_content() == "lan: subject.orgTheirsMine"
    assert page.get_by_label("Organization (O)").input_value() == "Mine"
    assert page.get_by_label("Key password").input_value() == "geheim-3"
    tour.shoot("profile-conflict")
    save(page)
    page.get_by_text("Saved. Its devices are told at once.").wait_for()
    assert '"Mine"' in gate.cli("profile", "show", "Both")
    page.get_by_text("It is set: leave this empty").wait_for()


# ---- the session, the network ---------------------------------------------------------------------


def test_a_session_that_ends_in_the_middle_of_a_form(tour: Walk, lab: LabCa) -> None:
    """Forms of htmx, forms of the browser, and questions beside them: the login comes over the page."""
    page, gate = tour.page, tour.gate
    gate.cli("device", "add", "--unit-id", "S1")
    tour.go("/profiles/new")
    page.get_by_label("Name of the profile").fill("Late")
    page.get_by_label("Friendly name").fill("late")
    page.get_by_label("Key password").fill("geheim-4")
    end_sessions(tour)
    save(page)
    dialog = page.get_by_role("dialog", name="Your session has ended")
    dialog.wait_for()
    tour.shoot("login-again")
    dialog.get_by_label("Password").fill("guess")
    dialog.get_by_role("button", name="Log in").click()
    dialog.get_by_text("name or password is wrong").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.get_by_label("Name of the profile").input_value() == "Late" and "Late" not in gate.cli(
        "profile", "list"
    )
    save(page)
    dialog.get_by_label("Password").fill(PASSWORD)
    dialog.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Late", exact=True).wait_for()
    page.get_by_text("It is set: leave this empty").wait_for()  # the password that was typed before

    for address, button, answer in (
        ("/devices/u/S1", "Save", "Changed."),
        ("/profiles/p/Late", "Show subject and names", "CN=S1"),
    ):
        tour.go(address)
        if button == "Save":
            page.get_by_label("Directory").fill("/Late")
        else:
            page.get_by_label("Autocomplete common name").select_option("unitid")
            page.get_by_label("Unit ID of a device").fill("S1")
        end_sessions(tour)
        page.get_by_role("button", name=button, exact=True).click()
        dialog.get_by_label("Password").fill(PASSWORD)
        dialog.get_by_role("button", name="Log in").click()
        page.get_by_text(answer).first.wait_for()
    page.once("dialog", lambda asked: asked.accept())
    tour.go("/devices")
    # another login in another tab changes what forms must carry
    tour.go("/devices/add")
    page.get_by_label("Unit ID").fill("S2")
    end_sessions(tour)
    other = page.context.new_page()
    other.goto(f"{tour.base}/login")
    other.get_by_label("Name").fill("admin")
    other.get_by_label("Password").fill(PASSWORD)
    other.get_by_role("button", name="Log in").click()
    other.get_by_role("heading", name="Devices", exact=True).wait_for()
    other.close()
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("heading", name="Registration token").wait_for()


def test_the_proxy_is_away(tour: Walk, lab: LabCa) -> None:
    page = tour.page
    without_a_ca(tour)
    tour.go("/ca?kind=est")
    fill_est(tour, lab, "Away")
    page.context.set_offline(True)
    for button in ("Save", "Test connection", "Show what the keystore holds"):
        page.get_by_role("button", name=button, exact=True).click()
        page.locator("#told", has_text="The proxy does not answer").wait_for()
        assert page.get_by_label("Configuration name").input_value() == "Away"
        assert page.evaluate("document.getElementById('keystore').files.length") == 1
    tour.shoot("away")
    page.context.set_offline(False)
    page.get_by_role("button", name="Test connection").click()
    page.get_by_text("Every link holds.").wait_for()
    assert page.locator("#told").is_hidden()
    page.once("dialog", lambda dialog: dialog.accept())
    tour.go("/devices")
    tour.strange[:] = [each for each in tour.strange if "ERR_INTERNET_DISCONNECTED" not in each]


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[int, threading.Event]]:
    """Takes connections and says nothing until the event, then hangs up."""
    ends = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            held = []
            with contextlib.suppress(OSError):
                while not ends.is_set():
                    listener.settimeout(0.2)
                    with contextlib.suppress(TimeoutError):
                        held.append(listener.accept()[0])
            for each in held:
                each.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], ends
        finally:
            ends.set()
            thread.join(20)


def test_the_test_shows_each_link_as_it_comes(tour: Walk, lab: LabCa) -> None:
    page = tour.page
    without_a_ca(tour)
    tour.go("/ca?kind=est")
    fill_est(tour, lab, "Slow")
    with silent_server() as (port, ends):
        page.get_by_label("CA port").fill(str(port))
        page.get_by_role("button", name="Test connection").click()
        page.locator(".steps li.good", has_text="TCP").wait_for()
        steps = page.locator("#test-steps")
        assert steps.locator("li").count() == 2 and steps.get_attribute("aria-busy") == "true", (
            "TLS is under way"
        )
        assert page.get_by_role("status").filter(has_text="Asking the CA").is_visible()
        tour.shoot("ca-testing")
        ends.set()
        page.locator(".steps li.bad", has_text="TLS trust").wait_for()
    page.get_by_text("The chain breaks at: TLS trust.").wait_for()
    assert "What to do" in page.locator(".steps li.bad").text_content()
    assert steps.get_attribute("aria-busy") is None and not page.locator("#test-wait").text_content()
    tour.shoot("ca-broken")
    page.once("dialog", lambda dialog: dialog.accept())
    tour.go("/devices")


# ---- odd hands ------------------------------------------------------------------------------------


def test_pressed_twice_and_more(tour: Walk) -> None:
    page = tour.page
    before = times(tour, "device add")
    tour.go("/devices/add")
    page.get_by_label("Unit ID").fill("T1")
    page.evaluate(
        "() => { const add = [...document.querySelectorAll('main button')][0]; for (let i = 0; i < 5; i++) add.click(); }"
    )
    page.get_by_role("heading", name="Registration token").wait_for()
    assert times(tour, "device add") == before + 1
    tour.go("/profiles/new")
    page.get_by_label("Name of the profile").fill("Twice")
    before = times(tour, "profile set")
    page.evaluate(
        "() => { const save = document.querySelector('.save'); for (let i = 0; i < 5; i++) save.click(); }"
    )
    page.get_by_role("heading", name="Twice", exact=True).wait_for()
    assert times(tour, "profile set") == before + 1


def test_back_and_forth(tour: Walk) -> None:
    page, gate = tour.page, tour.gate
    gate.profile("Back", {"friendly_name": "lan"})
    tour.go("/devices")
    tour.go("/profiles/p/Back")
    for country in ("DE", "FR"):
        page.get_by_label("Country (C)").fill(country)
        save(page)
        page.get_by_text("Saved. Its devices are told at once.").wait_for()
        page.wait_for_url(lambda address: "said" not in address)
        page.reload()
        assert page.get_by_text("Saved. Its devices").count() == 0, "it is said once"
        page.go_back()
        page.wait_for_load_state()
        page.go_forward()
        page.wait_for_load_state()
    page.get_by_label("Country (C)").fill("IT")
    save(page)
    page.get_by_text("Saved. Its devices are told at once.").wait_for()
    assert '"IT"' in gate.cli("profile", "show", "Back")
    # what a filter found is found again when one comes back from a device
    for unit in ("B1", "C1"):
        gate.cli("device", "add", "--unit-id", unit)
    tour.go("/devices")
    page.get_by_label("Search").fill("B1")
    page.locator("[data-found]", has_text="1–1 of 1 devices").wait_for()
    page.get_by_role("link", name="B1", exact=True).click()
    page.get_by_role("heading", name="Management certificate").wait_for()
    page.go_back()
    page.locator("[data-found]", has_text="1–1 of 1 devices").wait_for()
    assert page.get_by_label("Search").input_value() == "B1"
    # after logging out nothing is to be seen by going back
    page.locator("details.me summary").click()
    page.get_by_role("button", name="Log out").click()
    page.get_by_text("You have logged out.").wait_for()
    page.go_back()
    page.get_by_role("heading", name="Log in").wait_for()
    assert not page.get_by_text("B1").count()
    tour.log_in(password=PASSWORD)


def test_odd_and_long_names(tour: Walk) -> None:
    """They are shown as they are, can be used in every way, and break no page on a phone."""
    page, gate = tour.page, tour.gate
    long = "W" * 120
    unit = "x" * 64
    gate.cli("device", "add", "--unit-id", unit, "--directory", f"/{ODD}/{'d' * 200}")
    for name in (ODD, long):
        tour.go("/profiles/new")
        page.get_by_label("Name of the profile").fill(name)
        page.get_by_label("Friendly name").fill("f" * 60)
        page.get_by_label("Organization (O)").fill("<script>x</script>")
        save(page)
        page.get_by_role("heading", name=name, exact=True).wait_for()
        page.get_by_label("Directory or unit ID").fill(f"/{ODD}")
        page.get_by_role("button", name="Assign", exact=True).click()
        page.get_by_text("Assigned. The devices are told at once.").wait_for()
    tour.shoot("profile-odd")
    tour.go("/devices")
    page.get_by_role("navigation", name="Directories").get_by_role("link", name=ODD, exact=True).click()
    page.get_by_role("heading", name=f"/{ODD}", exact=True).wait_for()
    tour.shoot("devices-odd")
    page.get_by_role("link", name=unit, exact=True).click()
    page.get_by_text(f"inherited from /{ODD}").first.wait_for()
    tour.shoot("device-odd")
    page.get_by_label("Fixed host name").fill("a b")
    save(page)
    page.locator("#hostname-error[role=alert]").wait_for()
    tour.go("/profiles")
    tour.shoot("profiles-odd")
    for name in (ODD, long):
        page.get_by_role("link", name=name, exact=True).click()
        page.get_by_role("heading", name=name, exact=True).wait_for()
        loaded(page)
        page.get_by_role("button", name="Remove this profile").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove this profile").click()
        page.get_by_text("Removed.").wait_for()
    assert ODD not in gate.cli("profile", "list")


def test_a_thousand_alternative_names(tour: Walk) -> None:
    page = tour.page
    tour.go("/profiles/new")
    page.get_by_label("Name of the profile").fill("Thousand")
    names = [f"h{index}.example" for index in range(1000)]
    page.get_by_label("Host names").fill("\n".join(names))
    save(page)
    error = page.locator("#c0-subjaltname-hostname-error")
    error.filter(has_text="at most 100").wait_for()
    assert page.get_by_label("Host names").input_value().split() == names, "nothing is lost"
    page.get_by_label("Host names").fill("\n".join(names[:99]))
    page.get_by_label("IP addresses").fill("192.0.2.1\n2001:db8::1\nnot one")
    save(page)
    page.locator("#c0-subjaltname-ip-error[role=alert]").wait_for()
    page.get_by_label("IP addresses").fill("192.0.2.1\n2001:db8::1")
    save(page)
    page.get_by_role("heading", name="Thousand", exact=True).wait_for()
    assert page.get_by_label("Host names").input_value().split() == names[:99]


def test_an_error_stands_at_the_certificate_it_is_about(tour: Walk) -> None:
    """Though another one before it was taken out of the form."""
    page = tour.page
    tour.go("/profiles/new")
    page.get_by_label("Name of the profile").fill("Gaps")
    for name in ("second", "third"):
        page.get_by_role("button", name="Add a certificate").click()
        page.keyboard.type(name)
    page.get_by_role("button", name="Remove this certificate").nth(1).click()
    page.locator("#c2-subject-country").fill("Italy")
    save(page)
    page.locator("#c2-subject-country-error[role=alert]").wait_for()
    page.locator("#c2-subject-country").fill("IT")
    save(page)
    page.get_by_role("heading", name="Gaps", exact=True).wait_for()
    shown = tour.gate.cli("profile", "show", "Gaps")
    assert '"third"' in shown and '"second"' not in shown


def test_what_a_list_refuses_stands_at_its_field(tour: Walk) -> None:
    page, gate = tour.page, tour.gate
    for unit in ("L1", "L2"):
        gate.cli("device", "add", "--unit-id", unit, "--directory", "/List")
    gate.profile("List", {"friendly_name": "lan"})
    tour.go("/devices?directory=/List")
    page.get_by_role("button", name="Move", exact=True).last.click()
    page.locator("#to-error", has_text="No device is chosen").wait_for()
    page.get_by_label("Choose L2").check()
    page.get_by_label("Move the chosen to").fill("no slash")
    page.get_by_role("button", name="Move", exact=True).last.click()
    page.locator("#to-error[role=alert]").wait_for()
    assert page.get_by_label("Choose L2").is_checked() and not page.get_by_label("Choose L1").is_checked()
    assert page.get_by_label("Move the chosen to").input_value() == "no slash"
    tour.shoot("devices-wrong")
    page.locator("details.tools summary").click()
    page.get_by_label("Move /List to").fill("/List/in itself")
    page.locator(".tools button[value=move]").click()
    page.locator("#move-dir-error[role=alert]").wait_for()
    assert page.get_by_label("Move /List to").input_value() == "/List/in itself"
    page.get_by_label("New directory").fill("no slash")
    page.locator(".tools button[value=add]").click()
    page.locator("#new-dir-error[role=alert]").wait_for()
    assert page.get_by_label("New directory").input_value() == "no slash"
    page.get_by_role("button", name="Remove (if empty)").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.locator("#move-dir-error", has_text="2 devices are in it").wait_for()
    tour.go("/profiles/p/List")
    page.get_by_label("Assign to").select_option("device")
    page.get_by_label("Directory or unit ID").fill("nobody")
    page.get_by_role("button", name="Assign", exact=True).click()
    page.locator("#target-error[role=alert]").wait_for()
    assert page.get_by_label("Directory or unit ID").input_value() == "nobody"
    page.get_by_label("Unit ID of a device").fill("nobody")
    page.get_by_role("button", name="Show subject and names").click()
    page.locator("#preview_device-error", has_text="No such device is known").wait_for()
    tour.go("/accounts")
    page.get_by_label("New account").fill("admin")
    page.get_by_role("button", name="Add account").click()
    page.locator("#name-error[role=alert]").wait_for()
    page.get_by_label("New token").fill("t1")
    page.get_by_label("Good for days").fill("soon")
    page.get_by_role("button", name="Add token").click()
    page.locator("#days-error[role=alert]").wait_for()
    assert page.get_by_label("New token").input_value() == "t1"
    page.get_by_label("Good for days").fill("30")
    page.get_by_role("button", name="Add token").click()
    page.get_by_text("shown this once").wait_for()
    tour.shoot("accounts-token")


def test_a_viewer_sees_no_way_to_change_anything(tour: Walk) -> None:
    gate = tour.gate
    gate.cli("device", "add", "--unit-id", "V1")
    gate.profile("Viewed", {"friendly_name": "lan"}, directory="/")
    first = gate.cli("user", "add", "eve", "--role", "viewer").rpartition(" ")[2].strip()
    page = tour.page
    page.context.clear_cookies()
    tour.go("/login")
    page.get_by_label("Name").fill("eve")
    page.get_by_label("Password").fill(first)
    page.get_by_role("button", name="Log in").click()
    page.get_by_label("Present password").fill(first)
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("New password again").fill(PASSWORD)
    page.get_by_role("button", name="Save password").click()
    page.get_by_role("heading", name="Devices", exact=True).wait_for()
    for path in (
        "/devices",
        "/devices/u/V1",
        "/profiles",
        "/profiles/p/Viewed",
        "/ca?kind=est",
        "/enrollments",
        "/audit",
    ):
        tour.go(path)
        buttons = [
            each.text_content().strip() for each in page.locator("main button").all() if each.is_visible()
        ]
        assert set(buttons) <= {"Filter", "Show subject and names"}, (path, buttons)
        fields = page.locator(
            "main form[data-guard] :is(input, select, textarea):not([type=hidden], [data-free])"
        )
        assert not [each for each in fields.all() if each.is_enabled()], path
    tour.go("/profiles/p/Viewed")
    page.get_by_label("Unit ID of a device").fill("V1")
    page.get_by_role("button", name="Show subject and names").click()
    page.locator("#preview .inset").wait_for()
    tour.shoot("profile-viewer")
    page.context.clear_cookies()
    tour.log_in(password=PASSWORD)


def test_everything_works_without_scripts(tour: Walk, lab: LabCa, tmp_path: Path) -> None:
    """The test link by link, the readout, files that are too large, a second certificate, an import: by forms alone."""
    place = tmp_path
    without_a_ca(tour)
    (place / "large.p12").write_bytes(b"x" * (50 << 20))
    (place / "good.csv").write_text("unit_id,directory\nP1,/Plain\nP2,/Plain\n")
    (place / "bad.csv").write_text("unit_id\nP3\nP3\n")
    with tour.without_scripts() as page:
        page.goto(f"{tour.base}/ca?kind=est")
        page.get_by_label("Configuration name").fill("Plain")
        page.get_by_label("CA hostname").fill("localhost")
        page.get_by_label("CA port").fill(str(lab.port))
        page.get_by_label("CA label").fill("Devices")
        page.get_by_label("Upload keystore").set_input_files(place / "large.p12")
        page.get_by_label("Keystore password").fill("secret-typed")
        page.get_by_role("button", name="Save", exact=True).click()
        page.locator("#keystore-error", has_text="Is larger than 1 MiB").wait_for()
        for label, value in (
            ("Configuration name", "Plain"),
            ("CA hostname", "localhost"),
            ("CA label", "Devices"),
        ):
            assert page.get_by_label(label).input_value() == value
        page.get_by_text("Passwords and files are never sent back").wait_for()
        assert "secret-typed" not in page.content()
        for button, seen in (
            ("Show what the keystore holds", "The server is trusted by"),
            ("Test connection", "Every link holds."),
            ("Save", "Saved. It counts from the next request on."),
        ):
            page.get_by_label("Upload keystore").set_input_files(lab.dir / "ra.p12")
            page.get_by_label("Keystore password").fill((lab.dir / "ra.p12.password").read_text().strip())
            page.get_by_role("button", name=button, exact=True).click()
            page.get_by_text(seen).wait_for()
            if button == "Test connection":
                assert page.locator(".steps li.good").count() == 6
        page.goto(f"{tour.base}/ca?kind=scep")
        page.get_by_label("Configuration name").fill("Old")
        page.get_by_label("URL", exact=True).fill("https://ca.example/scep")
        page.get_by_label("Profile").fill("tls")
        page.get_by_label("Fingerprint").fill("00" * 32)
        page.get_by_label("Upload certificate").set_input_files(place / "large.p12")
        page.get_by_role("button", name="Save", exact=True).click()
        page.locator("#certificate-error", has_text="Is larger than").wait_for()
        assert page.get_by_label("Fingerprint").input_value() == "00" * 32, "what came after the file, too"
        assert page.get_by_label("Profile").input_value() == "tls"

        page.goto(f"{tour.base}/profiles/new")
        page.get_by_label("Name of the profile").fill("Plain")
        page.get_by_label("Friendly name").fill("one")
        page.get_by_label("Unit ID of a device").fill("nobody")
        page.get_by_role("button", name="Show subject and names").click()
        page.locator("#preview_device-error", has_text="No such device").wait_for()
        page.get_by_role("button", name="Add a certificate").click()
        page.get_by_label("Friendly name").nth(1).fill("two")
        page.get_by_role("button", name="Add a certificate").click()
        page.get_by_label("Friendly name").nth(2).fill("three")
        page.get_by_role("button", name="Remove this certificate").nth(1).click()
        page.get_by_role("button", name="Save", exact=True).click()
        page.get_by_text("Saved. Its devices are told at once.").wait_for()
        shown = tour.gate.cli("profile", "show", "Plain")
        assert '"one"' in shown and '"three"' in shown and '"two"' not in shown

        page.goto(f"{tour.base}/devices/import")
        page.get_by_label("CSV file").set_input_files(place / "bad.csv")
        page.get_by_role("button", name="Import").click()
        page.locator("#sheet-error", has_text="P3 is in this file twice").wait_for()
        page.get_by_label("CSV file").set_input_files(place / "large.p12")
        page.get_by_role("button", name="Import").click()
        page.locator("#sheet-error", has_text="Is larger than").wait_for()
        page.get_by_label("CSV file").set_input_files(place / "good.csv")
        page.get_by_role("button", name="Import").click()
        page.get_by_text("2 devices were added.").wait_for()
        assert page.get_by_label("Their registration tokens").input_value().count("\n") == 3
        page.goto(f"{tour.base}/devices/u/P1")
        page.get_by_role("button", name="Remove device").click()
        page.get_by_role("heading", name="Are you sure?").wait_for()
        assert "P1" in tour.gate.cli("device", "list")
        page.get_by_role("button", name="Yes").click()
        page.get_by_text("Removed.").wait_for()
    listed = tour.gate.cli("device", "list")
    assert "P3" not in listed and "P1" not in listed and "P2" in listed
