"""Strangers and odd hands at the pages' address: no answer breaks, none carries what was sent as markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.chain import Proxy, proxy
from tests.support.person import PASSWORD, Person

MARKUP = "'\"><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}"
ODD = {
    "markup": MARKUP,
    "nul": "a\x00b",
    "header": "a\r\nSet-Cookie: x=y",
    "path": "../../../etc/passwd",
    "bidi": "a\u202eb\u2066c",
    "astral": "𝕏👩‍👩‍👧" * 200,
    "long": "a" * 5_000,
    "digits": "９²٣",
    "number": "-1e309",
    "blank": "   ",
    "percent": "%s%n%00%2e%2e",
}
FIELDS = ("name", "unit_id", "directory", "hostname", "path", "to", "profile", "kind", "target", "role", "days",
          "token_name", "version", "host", "port", "label", "url", "fingerprint", "poll", "renewal", "ndes_url", "ndes_user",
          "replace", "keystore_password", "seen_directory", "seen_hostname", "preview_device", "draft", "c0.friendly_name",
          "c0.key.type", "c0.subject.country", "c0.subjaltname.ip", "c0.enrollment.proto",
          "c0.enrollment.renewal_period", "c0.was", "c1x.friendly_name", "c999.key.type", "c٣.key.type")  # fmt: skip
FORMS = ("/ca", "/ca/test", "/ca/readout", "/ca/remove", "/devices/add", "/devices/bulk", "/devices/import",
         "/directories", "/devices/u/A1", "/devices/u/A1/token", "/devices/u/A1/renew", "/devices/u/A1/profiles",
         "/profiles", "/profiles/draft", "/profiles/preview", "/profiles/p/lan/assign", "/accounts/users",
         "/accounts/tokens", "/password")  # fmt: skip
DEEDS = ("add", "move", "remove", "assign", "unassign", "role", "password", "odd")
PAGES = ("/devices", "/devices/add", "/devices/import", "/devices/u/A1", "/ca?kind=est", "/ca?kind=scep", "/profiles",
         "/profiles/new", "/profiles/p/lan", "/enrollments", "/audit", "/accounts", "/password", "/nowhere",
         "/login")  # fmt: skip


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("pages") / "data", 'trusted_frontends = ["127.0.0.1"]') as made:
        made.cli("device", "add", "--unit-id", "A1", "--directory", "/Berlin")
        made.profile("lan", {"friendly_name": "lan"}, directory="/Berlin")
        yield made


@pytest.fixture(scope="module")
def person(gate: Proxy) -> Person:
    return Person.at(gate)


def unharmed(text: str) -> bool:
    return (
        "<script>alert" not in text
        and "<img src=x" not in text
        and "{{7*7}}" not in text.replace("{{7*7}}", "", 99)
    )


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_in_every_field(gate: Proxy, person: Person, odd: str) -> None:
    value = ODD[odd]
    token = re.search(r'name="csrf" value="(\w+)"', person.get("/password").text)
    assert token
    for path in FORMS:
        for do in (
            DEEDS
            if path in {"/directories", "/devices/bulk", "/accounts/users", "/accounts/tokens"}
            else ("",)
        ):
            for kind in ("est", "scep") if path.startswith("/ca") else ("",):
                form = {**dict.fromkeys(FIELDS, value), "csrf": token[1], "sure": "yes"}
                form |= {"do": do} if do else {}
                form |= {"kind": kind} if kind else {}
                answer = person.ask("POST", path, form)
                assert answer.status in {200, 303, 404, 409, 413, 422}, (
                    path,
                    do,
                    answer.status,
                    answer.text[-300:],
                )
                assert unharmed(answer.text), path
                assert "\n" not in answer.place and answer.headers.get_all("Set-Cookie") is None
    for path in ("/devices?search=", "/devices?directory=", "/devices?state=", "/devices?offset=", "/enrollments?since=",
                 "/enrollments?search=", "/audit?search=", "/audit?action=", "/ca?kind=", "/devices?said=",
                 "/devices/u/", "/profiles/p/", "/enrollments/export.csv?search="):  # fmt: skip
        answer = person.get(path + quote(value[:4000], safe=""))
        assert answer.status in {200, 400, 404}, (path, answer.status)
        assert unharmed(answer.text), path
    for path in (
        "/devices?search=%ff%fe",
        "/devices/u/%ff",
        "/profiles/p/%ed%a0%80",
        "/%00",
        "/devices?%ff=%ff",
    ):
        assert person.get(path).status in {200, 400, 404}
    assert person.get("/devices/u/A1").status == 200 and "Traceback" not in gate.log()


def test_every_answer_says_what_a_browser_may_do(person: Person) -> None:
    """And needs no exception from it: no script, style or handler stands in a page."""
    for path in PAGES:
        answer = person.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "form-action 'self'" in policy
        assert (
            answer.headers["X-Content-Type-Options"] == "nosniff"
            and answer.headers["X-Frame-Options"] == "DENY"
        )
        assert (
            answer.headers["Cache-Control"] == "no-store"
            and answer.headers["Referrer-Policy"] == "same-origin"
        )
        assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son[a-z]+=|javascript:|https?://(?!www.w3.org)",
                             answer.text.replace("https://HOST", "").replace("https://PROXY", "")), path  # fmt: skip
    kept = person.get("/static/app.js")
    assert (
        kept.headers["Content-Type"].startswith("text/javascript")
        and "no-cache" in kept.headers["Cache-Control"]
    )
    assert person.ask("GET", "/static/app.js", headers={"If-None-Match": kept.headers["ETag"]}).status == 304
    for path in ("/static/../base.py", "/static/%2e%2e/base.py", "/static/..%2f..%2fguard.py"):
        assert person.get(path).status == 404


def test_the_cookie(gate: Proxy, person: Person) -> None:
    """HttpOnly, SameSite=Strict, Secure behind TLS; new at every login; worth nothing after logging out."""
    stranger = Person(gate.admin_port, cookie="igelcert_session=chosen-by-somebody-else")
    form = {"name": "admin", "password": PASSWORD}
    for proto, secure in (("http", False), ("https", True)):
        answer = stranger.ask("POST", "/login", form, {"X-Forwarded-Proto": proto})
        cookie = answer.headers["Set-Cookie"]
        assert answer.status == 303 and answer.place == "/"
        flags = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= flags and (
            "secure" in flags
        ) is secure
        assert "chosen-by-somebody-else" not in cookie and not any(
            flag.startswith("domain") for flag in flags
        )
    assert person.cookie not in cookie
    later = Person(gate.admin_port, cookie=cookie.partition(";")[0])
    assert later.get("/devices").status == 200
    assert later.post("/logout").status == 303
    assert later.get("/devices").place.startswith("/login"), "the cookie that somebody kept"
    assert later.ask("GET", "/session", headers={"Accept": "application/x-ndjson"}).status == 401


def test_forms_of_other_sites(gate: Proxy, person: Person) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        refused = Person(gate.admin_port).ask("POST", "/login", {"name": "admin", "password": "x"}, headers)
        assert refused.status == 403
    for headers in ({}, {"Content-Type": "text/plain"}, {"X-CSRF-Token": "0" * 64}):
        answer = person.ask("POST", "/devices/add", {"unit_id": "EVIL"}, headers)
        assert answer.status == 403
    assert person.ask("GET", "/devices/bulk").status == 405
    assert person.ask("GET", "/devices", headers={"Host": "evil.example"}).status == 200
    elsewhere = Person(gate.admin_port).ask("GET", "/devices", headers={"Host": "evil.example"})
    assert elsewhere.place.startswith("/login"), "a redirect names no host"
    assert "EVIL" not in gate.cli("device", "list")


def test_pressed_twice_by_a_program(gate: Proxy, person: Person) -> None:
    """The same CA form twice: one change."""
    form = {
        "kind": "scep",
        "name": "Twice",
        "url": "http://ca.example/scep",
        "version": "0",
        "renewal": "pkcsreq",
    }
    gate.cli("ca", "clear", "--yes") if "no CA" not in gate.cli("ca", "show") else None
    assert [person.post("/ca", form).status for _ in range(2)] == [303, 303]
    assert gate.cli("audit", "--search", "Twice", "--json").count("ca set-scep") == 1
    changed = person.post("/ca", {**form, "url": "http://other.example/scep"})
    assert changed.status == 409 and 'value="http://other.example/scep"' in changed.text
    assert "http://ca.example/scep" in changed.text, "what is there now"


def test_what_is_far_too_large(gate: Proxy, person: Person) -> None:
    """Where a form has a file, the page comes back; elsewhere it is refused; nobody keeps what was sent."""
    token = re.search(r'name="csrf" value="(\w+)"', person.get("/password").text)
    assert token
    before = memory(gate)
    fields = {"csrf": token[1], "kind": "scep", "name": "Large", "url": "https://ca.example/x"}
    part = '--B\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    parts = "".join(part.format(*each) for each in fields.items())
    file = '--B\r\nContent-Disposition: form-data; name="certificate"; filename="x"\r\n\r\n'
    after = '\r\n--B\r\nContent-Disposition: form-data; name="profile"\r\n\r\ntls-1\r\n--B--\r\n'
    body = (parts + file).encode() + b"x" * (100 << 20) + after.encode()
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    for path, status in (("/ca", 422), ("/devices/add", 413), ("/nowhere", 413)):
        answer = person.send(path, body, kind)
        assert answer.status == status, (path, answer.text[:300])
    page = person.send("/ca", body, kind).text
    assert "Is larger than" in page and 'value="Large"' in page and 'value="tls-1"' in page
    assert person.send("/api/v1/devices", body, kind).status in {401, 413}
    assert memory(gate) < before + 40_000, "100 MiB were sent five times"
    forged = body.replace(token[1].encode(), b"0" * 64)
    assert person.send("/ca", forged, kind).status == 403
    assert person.send("/profiles", body, kind).status == 413, (
        "a form that was cut in the middle is not stored"
    )


def memory(gate: Proxy) -> int:
    """KiB that the largest of the proxy's processes held at most."""
    state = json.loads((gate.data / "run.json").read_text())
    pids = [
        state["pid"],
        *map(int, Path(f"/proc/{state['pid']}/task/{state['pid']}/children").read_text().split()),
    ]
    found = [re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return max(int(each[1]) for each in found if each)
