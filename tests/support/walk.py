"""A person at Debian's Chromium, headless, on the pages of a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.chain import Proxy
from tests.support.peers import peer
from tests.support.person import PASSWORD
from tests.support.wiretap import Wiretap

__all__ = ["PASSWORD", "Walk", "chromium"]

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
WIDE = {"width": 1280, "height": 900}
SHOTS = Path(__file__).resolve().parents[2] / "artefacts/pages"


@contextmanager
def chromium() -> Iterator[Any]:
    """A window of a fresh browser: it shares nothing with others."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(peer("chromium")), args=FLAGS)
        context = browser.new_context(viewport=WIDE)
        context.set_default_timeout(60_000)
        yield context
        browser.close()


class Walk:
    """A person at the browser. said: every octet that came; strange: what must not be."""

    def __init__(self, browser: Any, gate: Proxy, line: Wiretap) -> None:
        self.gate = gate
        self._line = line
        self.base = f"http://127.0.0.1:{line.port}"
        self.page = browser.new_page()
        self.strange: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.strange.append(str(error)))
        self.page.on("request", self._asked)
        # from the beginning: one that is first asked for with the key that opens it comes too late at times,
        # and the browser without a screen has then closed the chooser already
        self.page.on("filechooser", lambda _chooser: None)

    @property
    def said(self) -> str:
        return self._line.said

    def _console(self, message: Any) -> None:
        # a refused form is an answer of 422, and the browser's console says so
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.strange.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.strange.append(f"asked elsewhere: {request.url}")

    def go(self, path: str) -> None:
        self.page.goto(self.base + path)

    def log_in(self, name: str = "admin", password: str = "") -> None:
        """With a password that is known; without one, with the first password and a new one in its place."""
        self.go("/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password or self.gate.password)
        self.page.get_by_role("button", name="Log in").click()
        if password:
            self.page.get_by_role("heading", name="Devices", exact=True).wait_for()
            return
        self.page.get_by_label("Present password").fill(self.gate.password)
        self.page.get_by_label("New password", exact=True).fill(PASSWORD)
        self.page.get_by_label("New password again").fill(PASSWORD)
        self.page.get_by_role("button", name="Save password").click()
        self.page.get_by_role("heading", name="Devices", exact=True).wait_for()

    @contextmanager
    def without_scripts(self) -> Iterator[Any]:
        """A page of the same person, in a window that runs no script."""
        context = self.page.context.browser.new_context(java_script_enabled=False, viewport=WIDE)
        context.set_default_timeout(60_000)
        context.add_cookies(self.page.context.cookies())
        yield context.new_page()
        context.close()

    def shoot(self, name: str) -> None:
        """The page as it is in light, dark and on a phone; axe-core must find nothing serious in light and dark."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            self._picture(f"{name}-{scheme}", 1280, 900)
            self.axe(f"{name} {scheme}")
        self.page.emulate_media(color_scheme="light")
        self._picture(f"{name}-phone", 390, 844)
        assert not (wide := self.too_wide()), f"{name} on a phone: {wide}"
        self.axe(f"{name} phone")
        self.page.set_viewport_size(WIDE)

    def _picture(self, name: str, width: int, height: int) -> None:
        """Of the whole page: the window is as high as that is, so what sticks to its edge stands where it belongs."""
        self.page.set_viewport_size({"width": width, "height": height})
        whole = self.page.evaluate("document.documentElement.scrollHeight")
        self.page.set_viewport_size({"width": width, "height": max(height, min(whole, 6000))})
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def too_wide(self) -> list[str]:
        """What is wider than the window: the page, or a table in it that has to be pushed sideways."""
        found: list[str] = self.page.evaluate(
            """() => [document.documentElement, ...document.querySelectorAll(".scroll")]
                .filter((each) => each.scrollWidth > each.clientWidth)
                .map((each) => `${each.tagName} ${each.scrollWidth}`)"""
        )
        return found

    def axe(self, name: str) -> None:
        # the page's policy forbids scripts of others: the browser itself, and not the page, runs this one
        self.page.evaluate(peer("axe-core").read_text() + ";0")
        found = self.page.evaluate("axe.run().then(found => found.violations)")
        bad = [
            (each["id"], each["help"], [node["html"][:160] for node in each["nodes"][:3]])
            for each in found
            if each["impact"] in {"serious", "critical"}
        ]
        assert not bad, f"{name}: {bad}"
