"""The product page, walked by a person at a browser, with a real device, proxy and CA."""

from __future__ import annotations

import base64
import contextlib
import datetime
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from tests.support.chain import Device, LabCa, Proxy, command
from tests.support.rest import Rest
from tests.support.until import until
from tests.support.walk import PASSWORD

pytestmark = [pytest.mark.peers, pytest.mark.slow]
KEY_PASSWORD = "geheim-key-1"
CHALLENGE = "geheim-challenge-1"


@contextlib.contextmanager
def resident(device: Device, log: Path) -> Iterator[None]:
    """`rmagent run` until the end of the block."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [command("rmagent"), "run", "--root", str(device.root), "--verbose"], stdout=sink, stderr=sink
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def configure_est(walk: Any, lab: LabCa) -> None:
    page = walk.page
    page.get_by_label("Configuration name").fill("Office")
    page.get_by_label("CA hostname").fill("localhost")
    page.get_by_label("CA port").fill(str(lab.port))
    page.get_by_label("CA label").fill("Devices")
    page.get_by_label("Upload keystore").set_input_files(lab.dir / "ra.p12")
    page.get_by_label("Keystore password").fill((lab.dir / "ra.p12.password").read_text().strip())


def new_profile(walk: Any, name: str, friendly: str) -> None:
    page = walk.page
    walk.go("/profiles")
    page.get_by_role("link", name="New profile").click()
    page.get_by_label("Name of the profile").fill(name)
    page.get_by_label("Friendly name").fill(friendly)
    page.get_by_label("Organization (O)").fill("Example")
    page.get_by_label("Key type").select_option("ec_prime256v1")
    page.get_by_label("Key password").fill(KEY_PASSWORD)
    page.get_by_label("Challenge password").fill(CHALLENGE)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()


def assign(walk: Any, directory: str) -> None:
    walk.page.get_by_label("Directory or unit ID").fill(directory)
    walk.page.get_by_role("button", name="Assign", exact=True).click()
    walk.page.get_by_text("Assigned. The devices are told at once.").wait_for()


def chart_total(walk: Any) -> int:
    walk.go("/enrollments")
    return int(walk.page.locator("#results-chart svg").get_attribute("data-total"))


def test_the_whole_product_page(walk: Any, gate: Proxy, lab: LabCa, tmp_path: Path) -> None:
    page, agent_log = walk.page, tmp_path / "agent.log"
    asked = lab.log()
    for path in ("devices", "profiles", "enrollments"):
        walk.go(f"/{path}")
        walk.shoot(f"{path}-empty")
    walk.go("/ca")
    walk.shoot("ca-empty")
    configure_est(walk, lab)
    page.get_by_role("button", name="Show what the keystore holds").click()
    page.get_by_role("heading", name="Client certificate").wait_for()
    assert lab.log() == asked, "nobody has pressed Test yet"
    page.get_by_role("button", name="Test connection").click()
    page.get_by_text("Every link holds.").wait_for()
    assert page.locator(".steps li.good").count() == 6
    walk.shoot("ca-est-tested")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("Saved. It counts from the next request on.").wait_for()

    new_profile(walk, "Laptops", "lan")
    walk.shoot("profile")
    walk.go("/devices")
    page.get_by_role("link", name="Add device").click()
    page.get_by_label("Unit ID").fill("00E0C5AAAA01")
    page.get_by_label("Directory").fill("/Berlin/Floor 2")
    walk.shoot("device-add")
    page.get_by_role("button", name="Add", exact=True).click()
    token = page.locator("#token").text_content()
    walk.shoot("device-token")
    device = _device(tmp_path / "root", "00E0C5AAAA01", "pc1")
    (tmp_path / "token").write_text(token + "\n")
    device.register(gate, tmp_path / "token")

    with resident(device, agent_log):
        # it has its settings, which are empty, and waits for a change
        until(lambda: "igelcert_waiting_devices 1.0" in gate.admin("/metrics")[1], say=agent_log.read_text)
        walk.go("/profiles/p/Laptops")
        page.get_by_label("Unit ID of a device").fill("00E0C5AAAA01")
        page.get_by_role("button", name="Show subject and names").click()
        page.get_by_text("O=Example, CN=pc1").wait_for()
        assign(walk, "/Berlin")
        took = until((device.certs / "lan/cert.pem").exists, say=agent_log.read_text)
        print(f"\nfrom the page's answer to the file: {took:.2f} s")
        walk.go("/devices/u/00E0C5AAAA01")
        serial = page.locator("td.mono").first.text_content().strip()
        assert serial == device.status()["certificates"][0]["serial"]
        page.get_by_text("inherited from /Berlin").wait_for()
        walk.shoot("device")
        assert chart_total(walk) == 1
        page.get_by_role("button", name="Filter").click()
        walk.shoot("enrollments")

        # a profile that is assigned is sent out when it is saved
        walk.go("/profiles/p/Laptops")
        page.get_by_label("Organizational unit (OU)").fill("Desk")
        page.get_by_text("It is sent to its devices at once.").wait_for()
        live = device.certs / "lan/cert.pem"
        before = live.read_bytes()
        page.get_by_role("button", name="Save", exact=True).click()
        page.get_by_text("Saved. Its devices are told at once.").wait_for()
        changed = until(lambda: live.read_bytes() != before, say=agent_log.read_text)
        print(f"to the one of the profile that was changed: {changed:.2f} s")
        assert "OU=Desk" in device.status()["certificates"][0]["subject"]

        walk.go("/devices/u/00E0C5AAAA01")
        before = live.read_bytes()
        page.get_by_role("button", name="Renew now").click()
        page.get_by_text("The device is told to renew at once.").wait_for()
        renewed = until(lambda: live.read_bytes() != before, say=agent_log.read_text)
        print(f"and to the renewed one: {renewed:.2f} s")
        assert min(took, changed, renewed) < 2, "one that others on the machine did not hold up"

        # SCEP takes EST's place
        walk.go("/ca")
        page.get_by_role("navigation", name="Protocol").get_by_role("link", name="SCEP").click()
        dialog = page.get_by_role("dialog")
        assert "it will be deleted" in dialog.text_content()
        walk.shoot("ca-replace")
        dialog.get_by_role("button", name="Go on with SCEP").click()
        page.get_by_label("Configuration name").fill("Old server")
        assert page.get_by_label("Upload certificate").is_hidden()
        page.get_by_label("URL", exact=True).fill("https://localhost/scep")
        assert page.get_by_label("Upload certificate").is_visible()
        page.get_by_label("URL", exact=True).fill(lab.scep)
        page.get_by_label("Fingerprint").fill(lab.root_fingerprint())
        page.get_by_text("SHA-256", exact=True).wait_for()
        page.get_by_role("button", name="Test connection").click()
        page.get_by_text("Every link holds.").wait_for()
        walk.shoot("ca-scep-tested")
        page.get_by_role("button", name="Save", exact=True).click()
        page.get_by_text("Saved. It counts from the next request on.").wait_for()
        new_profile(walk, "VPN", "vpn")
        assign(walk, "/Berlin/Floor 2")
        took = until((device.certs / "vpn/cert.pem").exists, say=agent_log.read_text)
        print(f"over SCEP: {took:.2f} s")
        assert chart_total(walk) == 4

    for path, name in (("/devices", "devices"), ("/profiles", "profiles"), ("/audit", "audit"), ("/accounts", "accounts"),
                       ("/devices/import", "import"), ("/password", "password")):  # fmt: skip
        walk.go(path)
        walk.shoot(name)
    cookie = page.context.cookies()[0]["value"]
    page.locator("details.me summary").click()
    walk.shoot("menu")
    page.get_by_role("button", name="Log out").click()
    page.get_by_text("You have logged out.").wait_for()
    walk.shoot("login")
    assert walk.strange == []
    said = walk.said
    assert said.count(token) == 1, "it is in the answer that makes it, and in no other"
    said = said.replace(token, "") + gate.log() + agent_log.read_text() + gate.cli("audit", "--json")
    assert cookie in said, "the login gave it"
    said = said.replace(f"Set-Cookie: igelcert_session={cookie}", "")
    assert "O=Example" in said and "Every link holds." in said, "what was said is in it"
    rest = Rest.of(gate)
    for path in ("/ca", "/overview", "/devices", "/devices/00E0C5AAAA01", "/directories", "/profiles", "/audit",
                 "/profiles/Laptops", "/profiles/VPN", "/profiles/VPN/preview?unit_id=00E0C5AAAA01",
                 "/enrollments", "/enrollments.csv"):  # fmt: skip
        status, _, text = rest.raw("GET", path)
        assert status == 200
        said += text
    said += gate.admin("/metrics")[1]
    keystore = base64.b64encode((lab.dir / "ra.p12").read_bytes()).decode()
    key = (lab.dir / "ra.p12.password").read_text().strip()
    for secret in (
        KEY_PASSWORD,
        CHALLENGE,
        token,
        key,
        keystore[:60],
        gate.password,
        PASSWORD,
        rest.token,
        cookie,
        "PRIVATE KEY",
    ):
        assert secret not in said, secret[:4]


def _device(root: Path, unit_id: str, hostname: str) -> Device:
    made = Device(root, unit_id, hostname)
    (root / "etc/igelcert").mkdir(parents=True)
    (root / "etc/hostname").write_text(hostname + "\n")
    (root / "etc/igelcert/device.toml").write_text(f'unit_id = "{unit_id}"\nhostname = "{hostname}"\n')
    return made


def test_what_is_wrong_is_said_at_its_field_and_nothing_is_lost(
    walk: Any, lab: LabCa, tmp_path: Path
) -> None:
    page = walk.page
    walk.go("/ca")
    configure_est(walk, lab)
    page.get_by_label("CA label").fill("a b")
    assert "Only letters" in page.locator("#label-error").text_content()
    page.get_by_label("CA label").fill("")
    page.get_by_label("Keystore password").fill("wrong")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("The password does not open it.").wait_for()
    assert page.locator("#keystore_password-error").text_content().startswith("The password does not open it")
    # the file that was chosen is still chosen, so the password alone is typed again
    assert page.evaluate("document.getElementById('keystore').files.length") == 1
    for name, data, sentence in (
        ("noise.p12", b"no keystore", "Cannot be used"),
        ("key.pem", b"-----BEGIN PRIVATE KEY-----\n", "Is PEM, not PKCS#12"),
        ("empty.p12", b"", "Is empty"),
        ("expired.p12", _keystore(expired=True), "has expired"),
        ("alone.p12", _keystore(certificate=False), "there is no certificate for the private key in it"),
    ):
        (tmp_path / name).write_bytes(data)
        page.get_by_label("Upload keystore").set_input_files(tmp_path / name)
        page.get_by_label("Keystore password").fill("secret")
        page.get_by_role("button", name="Save", exact=True).click()
        page.locator("#keystore-error", has_text=sentence).wait_for()
    (tmp_path / "large.p12").write_bytes(b"x" * (50 << 20))
    page.get_by_label("Upload keystore").set_input_files(tmp_path / "large.p12")
    page.locator("#keystore-error", has_text="is larger than 1 MiB").wait_for()
    walk.shoot("ca-wrong")
    page.get_by_label("Upload keystore").set_input_files(lab.dir / "ra.p12")
    page.get_by_label("Keystore password").fill((lab.dir / "ra.p12.password").read_text().strip())
    page.get_by_label("CA port").fill("1")
    page.get_by_role("button", name="Test connection").click()
    page.locator(".steps li.bad", has_text="What to do").wait_for()
    # leaving with unsaved changes asks
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.get_by_role("link", name="Audit").click()
    for _ in range(100):
        page.wait_for_timeout(500 if asked else 100)
        if asked:
            break
    assert asked == ["beforeunload"] and page.url.endswith("/ca")
    page.get_by_label("CA port").fill(str(lab.port))
    page.get_by_role("button", name="Save", exact=True).dblclick()
    page.get_by_text("Saved. It counts from the next request on.").wait_for()
    assert walk.strange == []


def _keystore(*, expired: bool = False, certificate: bool = True) -> bytes:
    """PKCS#12 under the password "secret"."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RA")])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=-1 if expired else 30)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(7).not_valid_before(end - datetime.timedelta(days=60)).not_valid_after(end)
    )
    cert = builder.sign(key, hashes.SHA256()) if certificate else None
    protection = serialization.BestAvailableEncryption(b"secret")
    return pkcs12.serialize_key_and_certificates(b"ra", key, cert, None, protection)


def test_a_wrong_scep_server(walk: Any, gate: Proxy, lab: LabCa) -> None:
    page = walk.page
    walk.go("/ca?kind=scep")
    page.get_by_label("Configuration name").fill("S")
    page.get_by_label("URL", exact=True).fill("ftp://ca.example/x")
    page.get_by_label("Fingerprint").fill("12:34")
    page.get_by_text("4 digits: not yet a fingerprint").wait_for()
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator("#url-error", has_text="Is not an http or https URL").or_(
        page.locator("#url-error", has_text="is not an http or https URL")
    ).wait_for()
    page.get_by_label("URL", exact=True).fill(lab.scep)
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator("#fingerprint-error", has_text="Is no fingerprint").wait_for()
    page.get_by_label("Fingerprint").fill("00" * 32)
    page.get_by_role("button", name="Test connection").click()
    page.locator(".steps li.bad", has_text="fingerprint").wait_for()
    page.get_by_label("URL", exact=True).fill("http://localhost:1/scep")
    page.get_by_role("button", name="Test connection").click()
    page.locator(".steps li.bad", has_text="TCP").wait_for()
    assert page.get_by_label("Configuration name").input_value() == "S" and walk.strange == []
    assert "no CA is configured" in gate.cli("ca", "show")


def test_a_profile_with_two_certificates_by_keyboard(walk: Any, gate: Proxy) -> None:
    page = walk.page
    new_profile(walk, "Two", "lan")
    assert page.get_by_label("Renewal period in percent").is_enabled()
    page.locator("#c0-enrollment-renewal_period_days:disabled").wait_for()
    page.get_by_label("Units of renewal period").select_option("days")
    assert page.get_by_label("Renewal period in percent").is_disabled()
    page.get_by_label("Renewal period in days").fill("14")
    page.get_by_role("button", name="Add a certificate").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("lan")
    assert "has this name" in page.locator("#c1-friendly_name-error").text_content()
    page.keyboard.type("2")
    with page.expect_navigation():  # the page before says "Saved", too
        page.get_by_role("button", name="Save", exact=True).press("Enter")
    page.get_by_text("Saved. Its devices are told at once.").wait_for()
    page.get_by_text("It is set: leave this empty").nth(1).wait_for()
    shown = gate.cli("profile", "show", "Two")
    assert '"lan2"' in shown and re.search(r'"renewal_period_days": 14', shown)
    # a friendly name changes, its password stays; nobody sees it
    assert page.get_by_text("It is set: leave this empty").count() == 2
    page.get_by_label("Friendly name").first.fill("office")
    with page.expect_navigation():
        page.get_by_role("button", name="Save", exact=True).click()
    page.locator("#c0-friendly_name[value=office]").wait_for()
    assert page.get_by_text("It is set: leave this empty").count() == 2
    assert walk.strange == []


def test_import_with_progress(walk: Any, gate: Proxy, tmp_path: Path) -> None:
    page = walk.page
    walk.go("/devices/import")
    (tmp_path / "bad.csv").write_text("unit_id,directory\nu1,/a\nu1,/a\n")
    page.get_by_label("CSV file").set_input_files(tmp_path / "bad.csv")
    page.get_by_role("button", name="Import").click()
    page.locator(
        "#sheet-error", has_text="line 3: unit-id: u1 is in this file twice. Nothing was added"
    ).wait_for()
    rows = "".join(f"u{index},/site {index % 20}/room {index % 200},h{index}\n" for index in range(10_000))
    (tmp_path / "good.csv").write_text("unit_id,directory,hostname\n" + rows)
    page.get_by_label("CSV file").set_input_files(tmp_path / "good.csv")
    page.evaluate(
        """() => {
            const bar = document.getElementById("bar"), text = document.getElementById("bar-text");
            window.seen = [];
            new MutationObserver(() => seen.push(bar.value)).observe(text, {childList: true, characterData: true});
        }"""
    )
    page.get_by_role("button", name="Import").click()
    page.get_by_text("10000 devices were added.").wait_for(timeout=90_000)
    assert page.locator("#bar-text").text_content().startswith("10000 of 10000")
    seen = page.evaluate("seen")
    assert seen == sorted(seen) and len({value for value in seen if 0 < value < 10_000}) >= 3, seen
    walk.shoot("import-done")
    walk.go("/devices?search=u77")
    walk.shoot("devices-many")
    assert walk.strange == []
