"""The pages without a mouse, and as a screen reader gets them."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from tests.support.chain import LabCa
from tests.support.walk import Walk

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.xdist_group("keyboard")]
FOCUS = """() => {
    const place = document.activeElement, style = getComputedStyle(place), box = place.getBoundingClientRect();
    const top = document.elementFromPoint(box.x + box.width / 2, box.y + Math.min(box.height / 2, 300));
    return {
        what: `${place.tagName} ${place.id} ${place.textContent.trim().slice(0, 40)}`,
        outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
        seen: !!top && (place === top || place.contains(top) || top.contains(place)),
        hidden: !!place.closest("[aria-hidden=true]"),
    };
}"""
PAGES = ("/devices", "/devices/add", "/devices/import", "/devices/u/K1", "/profiles", "/profiles/new", "/profiles/p/keys",
         "/ca", "/ca?kind=scep", "/enrollments", "/audit", "/accounts", "/password", "/nowhere")  # fmt: skip
CONTROLS = {
    "button",
    "link",
    "textbox",
    "searchbox",
    "checkbox",
    "combobox",
    "listbox",
    "spinbutton",
    "DisclosureTriangle",
}


def tab_to(page: Any, place: Any, key: str = "Tab") -> None:
    """Presses Tab until `place` has the focus, which must be seen wherever it comes."""
    page.wait_for_load_state()  # a script may move the focus at the end of it
    for _ in range(150):
        page.keyboard.press(key)
        found = page.evaluate(FOCUS)
        for _ in range(20):  # the style of what has just got the focus may be a moment behind
            if found["outlined"] or found["what"].startswith("BODY"):
                break
            page.wait_for_timeout(300)
            found = page.evaluate(FOCUS)
        if not found["what"].startswith("BODY"):  # the browser's own controls come after the page's last
            assert found["outlined"] and found["seen"] and not found["hidden"], found
        if is_at(place):
            return
    raise AssertionError(f"Tab does not come to {place}")


def is_at(place: Any) -> bool:
    return place.count() == 1 and place.evaluate("place => place === document.activeElement")


def has_focus(place: Any) -> bool:
    """Soon: scripts move it when an answer has come."""
    end = time.monotonic() + 30
    while not (found := is_at(place)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def choose(page: Any, place: Any, key: str = "Tab") -> None:
    tab_to(page, place, key)
    page.keyboard.press("Enter")


def enter(page: Any, label: str, text: str) -> None:
    tab_to(page, page.get_by_label(label, exact=True))
    page.keyboard.press("Control+A")
    page.keyboard.type(text)


@pytest.fixture(scope="module")
def settled(shared: Walk, lab: LabCa) -> Walk:
    """With a CA, a device in a directory and a profile."""
    shared.gate.use(lab)
    shared.gate.cli("device", "add", "--unit-id", "K1", "--directory", "/Berlin/Floor 2")
    shared.gate.profile(
        "keys", {"friendly_name": "keys", "key": {"crypt_password": "geheim-1"}}, directory="/Berlin"
    )
    return shared


def test_the_ca_and_a_profile_without_a_mouse(tour: Walk, lab: LabCa) -> None:
    page = tour.page
    tour.go("/devices")
    page.keyboard.press("Tab")
    assert has_focus(page.get_by_role("link", name="Skip to the content"))
    page.keyboard.press("Enter")
    assert has_focus(page.locator("#main"))
    page.keyboard.press("Tab")
    assert page.evaluate("!!document.activeElement.closest('main')")
    choose(
        page, page.get_by_role("navigation", name="Main").get_by_role("link", name="CA Proxy"), "Shift+Tab"
    )
    page.get_by_role("heading", name="CA Proxy").wait_for()
    enter(page, "Configuration name", "Keys")
    enter(page, "CA hostname", "localhost")
    enter(page, "CA port", str(lab.port))
    enter(page, "CA label", "a b")
    page.keyboard.press("Enter")  # not sent while the label is not allowed
    page.locator("#label-error", has_text="Only letters").wait_for()
    page.keyboard.press("Control+A")
    page.keyboard.type("Devices")
    tab_to(page, page.get_by_label("Upload keystore"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(lab.dir / "ra.p12")
    enter(page, "Keystore password", "wrong")
    test = page.get_by_role("button", name="Test connection")
    choose(page, test)
    page.locator("#keystore_password-error", has_text="does not open it").wait_for()
    assert has_focus(page.get_by_label("Keystore password")), "where it is wrong"
    page.keyboard.type((lab.dir / "ra.p12.password").read_text().strip())
    readout = page.get_by_role("button", name="Show what the keystore holds")
    choose(page, readout)
    page.get_by_role("heading", name="Client certificate").wait_for()
    assert has_focus(readout)
    choose(page, test)
    page.get_by_text("Every link holds.").wait_for()
    assert has_focus(test)
    choose(page, page.get_by_role("button", name="Save", exact=True), "Shift+Tab")
    page.get_by_text("Saved. It counts from the next request on.").wait_for()
    page.locator("#said:focus").wait_for()  # what was done is read out
    # in a field, Enter saves: it does not press the first button that stands there
    tour.go("/ca")
    enter(page, "Configuration name", "Keys again")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="In use: Keys again").wait_for()
    page.locator("#said:focus").wait_for()

    choose(page, page.get_by_role("link", name="Profiles", exact=True), "Shift+Tab")
    page.get_by_role("heading", name="Profiles", exact=True).wait_for()
    choose(page, page.get_by_role("link", name="New profile"))
    page.get_by_role("heading", name="New profile").wait_for()
    enter(page, "Name of the profile", "By keys")
    enter(page, "Friendly name", "by-keys")
    enter(page, "Country (C)", "Germany")
    tab_to(page, page.get_by_label("Key type"))
    for _ in range(5):
        page.keyboard.type("EC prime")
        if page.get_by_label("Key type").input_value() == "ec_prime256v1":
            break
        page.wait_for_timeout(1500)  # what was typed so far is forgotten then: keys may have come too slowly
    choose(page, page.get_by_role("button", name="Save", exact=True))
    page.locator("#c0-subject-country-error[role=alert]").wait_for()
    assert has_focus(page.get_by_label("Country (C)"))
    page.keyboard.press("Control+A")
    page.keyboard.type("DE")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="By keys", exact=True).wait_for()
    assert "ec_prime256v1" in tour.gate.cli("profile", "list")
    tab_to(page, page.get_by_label("Directory or unit ID"))
    page.keyboard.type("/By keys")
    page.keyboard.press("Enter")
    page.get_by_text("Assigned. The devices are told at once.").wait_for()


def test_tree_menu_and_dialogs_without_a_mouse(settled: Walk, tour: Walk) -> None:
    page = tour.page
    tour.gate.cli("directory", "add", "/Empty")
    tour.go("/devices")
    for name in ("Berlin", "Floor 2"):
        choose(
            page,
            page.get_by_role("navigation", name="Directories").get_by_role("link", name=name, exact=True),
        )
        page.locator(".tree a[aria-current]", has_text=name).wait_for()
    choose(page, page.get_by_role("link", name="K1", exact=True))
    page.get_by_role("heading", name="Management certificate").wait_for()

    menu = page.locator("details.me summary")
    choose(page, menu, "Shift+Tab")
    page.keyboard.press("Tab")
    assert has_focus(page.get_by_role("link", name="Change password"))
    page.keyboard.press("Escape")
    assert has_focus(menu) and not page.get_by_role("link", name="Change password").is_visible()

    tour.go("/devices?directory=/Empty")
    choose(page, page.locator("details.tools summary"))
    remove = page.get_by_role("button", name="Remove (if empty)")
    choose(page, remove)
    dialog = page.get_by_role("dialog")
    assert "Remove the directory /Empty" in dialog.text_content()
    tour.shoot("ask")
    cancel = dialog.get_by_role("button", name="Cancel")
    assert has_focus(cancel), "not on what cannot be undone"
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert has_focus(remove) and "/Empty" in tour.gate.cli("directory", "list")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Removed.").wait_for()
    assert "/Empty" not in tour.gate.cli("directory", "list")

    tour.go("/ca")
    scep = page.get_by_role("navigation", name="Protocol").get_by_role("link", name="SCEP")
    choose(page, scep)
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert has_focus(dialog.get_by_role("link", name="Keep EST"))
    page.keyboard.press("Escape")
    page.get_by_label("CA hostname").wait_for()
    choose(page, scep)
    dialog.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert has_focus(page.get_by_label("Configuration name"))
    assert page.get_by_label("Delete the EST configuration").is_checked()


# ---- the accessibility tree -----------------------------------------------------------------------


def nodes(page: Any) -> list[dict[str, Any]]:
    """What the browser tells a screen reader: role, name, description, and properties such as level and live."""
    session = page.context.new_cdp_session(page)
    session.send("Accessibility.enable")
    found = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        {
            "role": node["role"]["value"],
            "name": node.get("name", {}).get("value", ""),
            "description": node.get("description", {}).get("value", ""),
            **{each["name"]: each["value"].get("value") for each in node.get("properties", [])},
        }
        for node in found
        if not node["ignored"]
    ]


def of_role(found: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    return [node for node in found if node["role"] == role]


@pytest.mark.parametrize("path", PAGES)
def test_structure_and_names(settled: Walk, tour: Walk, path: str) -> None:
    tour.go(path)
    if tour.page.get_by_role("dialog").is_visible():
        tour.page.get_by_role("button", name="Go on").click()
    found = nodes(tour.page)
    levels = [int(node["level"]) for node in of_role(found, "heading")]
    assert levels.count(1) == 1 and levels[0] == 1, levels
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels
    assert len(of_role(found, "main")) == 1 and len(of_role(found, "banner")) == 1
    navigations = [node["name"] for node in of_role(found, "navigation")]
    assert "Main" in navigations and len(set(navigations)) == len(navigations) and all(navigations)
    nameless = [node for node in found if node["role"] in CONTROLS and not node["name"].strip(" ×")]
    assert not nameless, nameless
    buttons = [
        node["name"]
        for node in of_role(found, "button")
        if not node["name"].startswith(("Save", "Show date picker"))
    ]
    assert len(set(buttons)) == len(buttons), "two buttons with one name do two things"
    assert all(
        node["name"] for node in of_role(found, "table") + of_role(found, "region") + of_role(found, "image")
    )
    assert len(of_role(found, "columnheader")) >= 3 * len(of_role(found, "table"))
    assert (
        tour.page.title().endswith(" · CA Proxy") and tour.page.locator("html").get_attribute("lang") == "en"
    )


def test_titles_tell_the_pages_apart(settled: Walk, tour: Walk) -> None:
    titles = set()
    for path in PAGES:
        tour.go(path)
        titles.add(tour.page.title())
    assert len(titles) == len(PAGES) - 1, "EST and SCEP are one page"


def test_results_are_read_out(settled: Walk, tour: Walk) -> None:
    page = tour.page
    tour.go("/ca")
    before = nodes(page)
    links = of_role(before, "list")
    assert [node for node in links if node["name"] == "Links to the CA" and node["live"] == "polite"], links
    page.get_by_role("button", name="Test connection").click()
    page.get_by_text("Every link holds.").wait_for()
    said = [node for node in nodes(page) if node["role"] == "status"]
    assert said and all(node["live"] == "polite" for node in said)
    page.get_by_label("CA hostname").fill("https://x/")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator("#host-error[role=alert]").wait_for()
    assert has_focus(page.get_by_label("CA hostname"))
    field = next(node for node in nodes(page) if node["name"] == "CA hostname")
    assert field["invalid"] == "true" and "is a URL" in field["description"].lower().replace(
        "is a url", "is a URL"
    )
    assert field["focused"]
    alerts = of_role(nodes(page), "alert")
    assert alerts and all(node["live"] == "assertive" for node in alerts)
    page.get_by_role("navigation", name="Protocol").get_by_role("link", name="SCEP").evaluate(
        "link => link.blur()"
    )
    page.once("dialog", lambda dialog: dialog.accept())
    tour.go("/ca?kind=scep")
    page.get_by_role("dialog").wait_for()
    dialog = of_role(nodes(page), "dialog")[0]
    assert dialog["name"] == "Replace the EST configuration?" and dialog["modal"]
    assert "it will be deleted" in dialog["description"]
    page.get_by_role("button", name="Go on").click()
    kind = page.locator("#fingerprint-kind")
    page.get_by_label("Fingerprint").fill("00" * 20)
    assert kind.text_content() == "SHA-1" and kind.get_attribute("aria-live") == "polite"
    page.once("dialog", lambda dialog: dialog.accept())
    tour.go("/devices")
    page.get_by_label("Search").fill("K")
    page.locator("#found", has_text="1–1 of 1 devices").wait_for(state="attached")
    chart = "Certificates that expire, by week: 0 in all, at most 0 in one bar"
    tour.go("/enrollments")
    assert chart in [node["name"] for node in of_role(nodes(page), "image")]


def test_a_phone_lets_everything_be_reached(settled: Walk, tour: Walk) -> None:
    """Every page of the walk at 360 pixels: nothing is cut off, and what is to be tapped is large enough (WCAG 2.5.8)."""
    page = tour.page
    page.set_viewport_size({"width": 360, "height": 740})
    try:
        for path in PAGES:
            tour.go(path)
            assert not tour.too_wide(), path
            small = page.evaluate(
                """() => [...document.querySelectorAll("main button:not(.default), main select, main .button, .top nav a")]
                    .map((each) => [each.textContent.trim(), each.getBoundingClientRect()])
                    .filter(([, box]) => box.width && (box.width < 24 || box.height < 24)).map(([text]) => text)"""
            )
            assert not small, (path, small)
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})
