"""The REST interface and the figures, over a real socket, with the lab CA behind the proxy and a device before it."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain import LabCa, Proxy, lab_ca, proxy
from tests.support.rest import Rest
from tests.support.until import until

LAN = {"certs": [{"friendly_name": "lan", "subject": {"org": "Example"},
                  "key": {"type": "ec_prime256v1", "crypt_password": "geheim-1"}}]}  # fmt: skip


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Proxy]:
    with proxy(tmp_path / "data") as made:
        yield made


def est(lab: LabCa, **more: Any) -> dict[str, Any]:
    return {
        "kind": "est",
        "name": "Office",
        "host": "localhost",
        "port": lab.port,
        "keystore": base64.b64encode((lab.dir / "ra.p12").read_bytes()).decode(),
        "keystore_password": (lab.dir / "ra.p12.password").read_text().strip(),
        **more,
    }


def figures(gate: Proxy) -> dict[str, float]:
    status, text = gate.admin("/metrics")
    assert status == 200
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_who_may_do_what(fresh: Proxy) -> None:
    nobody, viewer, admin = Rest(fresh.admin_port, ""), Rest.of(fresh, "viewer"), Rest.of(fresh)
    status, headers, _ = nobody.raw("GET", "/devices")
    assert status == 401 and headers["www-authenticate"].startswith("Bearer")
    Rest(fresh.admin_port, viewer.token + "x").ask("GET", "/devices", status=401)
    viewer.ask("GET", "/devices")
    told = viewer.ask("POST", "/devices", {"unit_id": "A1"}, status=403)
    assert "viewer" in told["error"]
    admin.ask("POST", "/devices", {"unit_id": "A1"}, status=201)
    fresh.cli("token", "remove", "test-admin")
    admin.ask("GET", "/devices", status=401)
    assert nobody.ask("GET", "/openapi.json")["openapi"] == "3.1.0"
    audit = json.loads(fresh.cli("audit", "--json"))
    assert {"actor": "token test-admin", "action": "device add", "detail": "A1 in /"} in [
        {key: line[key] for key in ("actor", "action", "detail")} for line in audit
    ]


def test_from_the_ca_to_the_certificate(lab: LabCa, fresh: Proxy, tmp_path: Path) -> None:
    rest = Rest.of(fresh)
    assert figures(fresh)["igelcert_ca_configured"] == 0 and "igelcert_ca_up" not in figures(fresh)
    rest.ask("GET", "/ca", status=404)
    rest.ask("POST", "/ca/test", status=404)
    for path, methods in rest.ask("GET", "/openapi.json")["paths"].items():
        assert all({"405", "431", "503"} <= set(each["responses"]) for each in methods.values()), path
    asked = lab.log()
    keystore = {key: est(lab)[key] for key in ("keystore", "keystore_password")}
    shown = rest.ask("POST", "/ca/keystore", keystore)
    assert shown["client_certificate"]["not_after"] > time.time() and shown["trusted"]
    rest.ask("PUT", "/ca", est(lab))
    for path in ("/ca", "/overview", "/devices"):
        rest.ask("GET", path)
    fresh.admin("/metrics")
    fresh.admin("/readyz")
    assert lab.log() == asked, "the CA was asked by nobody's wish"
    trial = rest.ask("POST", "/ca/test", est(lab, port=1))
    assert not trial["ok"] and trial["steps"][-1]["step"] == "TCP" and trial["steps"][-1]["hint"]
    assert "igelcert_ca_up" not in figures(fresh), "what is only tried says nothing of the CA in use"
    tested = rest.ask("POST", "/ca/test")
    assert tested["ok"] and [step["step"] for step in tested["steps"]] == [
        "name", "TCP", "TLS trust", "client certificate", "label", "CA answer",
    ]  # fmt: skip
    assert figures(fresh)["igelcert_ca_up"] == 1
    rest.ask("PUT", "/profiles/lan", {"document": LAN})
    rest.ask("POST", "/profiles/lan/assignments", {"kind": "directory", "target": "/Berlin"})
    device = fresh.device(tmp_path / "root", "A1", "pc1", "/Berlin/2")
    assert rest.ask("GET", "/profiles/lan/preview?unit_id=A1")[0]["subject"] == "O=Example, CN=pc1"
    told = rest.ask("DELETE", "/profiles/lan", status=409)
    assert told["field"] == "force" and "1 device loses the certificate lan, and its key" in told["error"]
    device.sync()
    detail = rest.ask("GET", "/devices/A1")
    certificate = detail["certificates"][0]
    assert certificate["friendly_name"] == "lan" and detail["profiles"][0]["target"] == "/Berlin"
    assert certificate["serial"] == device.status()["certificates"][0]["serial"]
    until(lambda: figures(fresh)["igelcert_ca_slots"] == 8)
    found = figures(fresh)
    assert found['igelcert_requests_total{operation="enroll",result="issued"}'] == 1
    assert found['igelcert_ca_round_trip_seconds_count{outcome="ok"}'] >= 2
    assert found["igelcert_ca_slots"] == 8 and found["igelcert_ca_queue"] == 0
    assert sum(value for name, value in found.items() if name.startswith("igelcert_certificates{")) == 1
    overview = rest.ask("GET", "/overview")
    assert sum(week["count"] for week in overview["expiries_by_week"]) in {0, 1}
    assert overview["results_by_day"][-1]["results"] == {"issued": 1}
    _, _, sheet = rest.raw("GET", "/enrollments.csv")
    assert sheet.splitlines()[1].startswith("A1,lan,simpleenroll,issued")

    assert rest.ask("POST", "/devices/A1/renew", {"friendly_name": "lan"})["renewing"] == ["lan"]
    device.sync()
    again = rest.ask("GET", "/devices/A1")["certificates"][0]
    assert again["serial"] != certificate["serial"] and again["asked"] is None
    device.sync()
    assert rest.ask("GET", "/devices/A1")["certificates"][0]["serial"] == again["serial"], (
        "once, not for ever"
    )
    assert figures(fresh)['igelcert_requests_total{operation="renew",result="issued"}'] == 1
    rest.ask("DELETE", "/profiles/lan?force=true")
    rest.ask("GET", "/profiles/lan", status=404)
    asked = rest.ask("POST", "/renewals", {"directory": "/Berlin", "within": 3600})
    assert asked["certificates"] == 1 and asked["until"] == asked["from"] + 3600 and not asked["warnings"]
    assert rest.ask("GET", "/devices/A1")["certificates"][0]["asked"]

    said = "".join(rest.answers) + fresh.log() + fresh.cli("audit", "--json")
    for secret in ("geheim-1", keystore["keystore"][:60], keystore["keystore_password"], rest.token):
        assert secret not in said


def test_a_ca_that_is_away_is_seen_by_the_next_request(fresh: Proxy, tmp_path: Path) -> None:
    rest = Rest.of(fresh)
    with lab_ca(tmp_path / "ca") as lab:
        rest.ask("PUT", "/ca", est(lab))
        fresh.profile("lan", LAN["certs"][0], directory="/")
        device = fresh.device(tmp_path / "root", "A1", "pc1")
        assert rest.ask("POST", "/ca/test")["ok"]
    device.sync(code=75)
    found = figures(fresh)
    assert (
        found["igelcert_ca_up"] == 0
        and found['igelcert_ca_round_trip_seconds_count{outcome="unreachable"}'] >= 1
    )
    assert "does not take the connection" in rest.ask("GET", "/ca")["last_exchange"]["text"]
    assert rest.ask("GET", "/devices?state=failing")["total"] == 1


def test_what_is_wrong_is_said_at_its_field(lab: LabCa, fresh: Proxy) -> None:
    rest = Rest.of(fresh)
    broken = base64.b64encode(b"no keystore at all").decode()
    for body, field, sentence in (
        (est(lab, keystore=broken), "keystore", "cannot be used"),
        (est(lab, keystore="%%%"), "keystore", "is not base64"),
        (est(lab, keystore_password="wrong"), "keystore_password", "does not open it"),
        (est(lab, host="https://ca/x"), "host", "is a URL"),
        (est(lab, label="a b"), "label", "does not look like"),
        (est(lab, port=0), "port", "is not from 1"),
        (est(lab, port="443"), "port", "is not a whole number"),
        (est(lab, odd=1), "odd", "is not known here"),
        ({"kind": "est", "name": "x", "host": "ca"}, "keystore", "is missing"),
        ({"kind": "scep", "name": "x", "url": "ftp://ca/x"}, "url", "is not an http or https URL"),
        (
            {"kind": "scep", "name": "x", "url": "http://ca/x", "fingerprint": "12"},
            "fingerprint",
            "is no fingerprint",
        ),
        (
            {"kind": "scep", "name": "x", "url": "http://ca/x", "certificate": "x"},
            "certificate",
            "no certificate",
        ),
        ({"kind": "odd"}, "kind", "est scep"),
    ):
        told = rest.ask("PUT", "/ca", body, status=422)
        assert told["field"] == field and sentence in told["error"], told
    rest.ask("PUT", "/ca", est(lab))
    other = {"kind": "scep", "name": "S", "url": "http://ca.example/scep"}
    told = rest.ask("PUT", "/ca", other, status=409)
    assert told["field"] == "kind" and "EST configuration 'Office'" in told["error"]
    assert rest.ask("PUT", "/ca?replace=true", other)["kind"] == "scep"
    told = rest.ask("PUT", "/ca", {**other, "name": "T", "version": 1}, status=409)
    assert told["field"] == "version"
    for method, path, body, status in (
        ("GET", "/devices/nobody", None, 404),
        ("GET", "/profiles/a%2Fb", None, 404),
        ("GET", "/devices?limit=0", None, 422),
        ("GET", "/devices?odd=1", None, 400),
        ("GET", "/devices?limit=1&limit=2", None, 400),
        ("DELETE", "/directories", None, 400),
        ("POST", "/devices", {"unit_id": "../x"}, 422),
        ("PUT", "/profiles/x", {"document": {"certs": [{"key": {"type": "rsa_1"}}]}}, 422),
        ("PUT", "/profiles/x", {"document": {"certs": [{"subject": {"country": "D1"}}]}}, 422),
    ):
        rest.ask(method, path, body, status=status)
    assert rest.raw("POST", "/devices", b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert rest.raw("POST", "/devices", b"{", {"Content-Type": "application/json"})[0] == 400
    assert (
        rest.raw(
            "POST", "/devices", b'{"unit_id": "A", "unit_id": "B"}', {"Content-Type": "application/json"}
        )[0]
        == 400
    )
    assert rest.raw("PATCH", "/ca")[1]["allow"].replace(" ", "") == "DELETE,GET,HEAD,OPTIONS,PUT"


def test_import_tells_how_far_it_is(fresh: Proxy) -> None:
    rest = Rest.of(fresh)
    sheet = "unit_id,directory\n" + "".join(f"u{index},/d{index % 9}\n" for index in range(1200))
    kind = {"Content-Type": "text/csv", "Accept": "application/x-ndjson"}
    _, _, text = rest.raw("POST", "/device-imports", sheet.encode(), kind)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["done"] for line in lines[:-1]] == [500, 1000, 1200] and len(lines[-1]["devices"]) == 1200
    _, _, text = rest.raw("POST", "/device-imports", b"unit_id\nnew\nu1\n", kind)
    assert json.loads(text.splitlines()[-1])["field"] == "line 3"
    status, _, _ = rest.raw("POST", "/device-imports", b"unit_id\nnew\nu1\n", {"Content-Type": "text/csv"})
    assert status == 422 and rest.ask("GET", "/devices")["total"] == 1200
    assert (
        rest.raw("POST", "/device-imports", b"unit_id\n" + b"x" * (5 << 20), {"Content-Type": "text/csv"})[0]
        == 413
    )
    moved = rest.ask("POST", "/device-moves", {"unit_ids": ["u1", "u2"], "directory": "/new"})
    assert moved == {"moved": 2} and rest.ask("GET", "/devices?directory=/new")["total"] == 2
    assert '"token test-admin"' in fresh.cli("audit", "--search", "1200 devices", "--json")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"PUT /api/v1/ca HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9000000\r\n\r\n", 413),
        (b"POST /api/v1/devices HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"POST http://x/api/v1/devices HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n", 400),
        (b"GET /api/v1/devices HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 40_000, 431),
        (b"GET /api/v1/devices HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 10_000 + b"\r\n\r\n", 431),
        (b"GET /api/v1/devices HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 101 + b"\r\n", 431),
        (b"GET /api/v1//devices HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"PUT /api/v1/profiles/%ff HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400),
        (b"GET /api/v1/devices?search=%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"TRACE /api/v1/devices HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /api/v1/devices HTTP/9\r\nHost: x\r\n\r\n", 400),
    ],
    ids=lambda value: value[:60].decode().replace("\r\n", " ") if isinstance(value, bytes) else str(value),
)  # fmt: skip
def test_what_the_program_never_sees_is_answered_as_documented(
    fresh: Proxy, request_: bytes, status: int
) -> None:
    """{"error": ...}, as everything under /api."""
    with socket.create_connection(("127.0.0.1", fresh.admin_port), timeout=10) as sock:
        sock.sendall(request_)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.headers.get_content_type()) == (status, "application/json")
        assert set(json.loads(answer.read())) == {"error"}


@pytest.mark.slow
def test_the_served_document_is_true(lab: LabCa, fresh: Proxy, tmp_path: Path) -> None:
    """schemathesis: no 5xx, no undocumented status, type or body; what the document forbids is refused."""
    rest = Rest.of(fresh)
    rest.ask("PUT", "/ca", est(lab))
    rest.ask("POST", "/devices", {"unit_id": "00E0C5123456", "directory": "/Berlin"})
    rest.ask("PUT", "/profiles/lan", {"document": LAN})
    rest.ask("POST", "/profiles/lan/assignments", {"kind": "directory", "target": "/Berlin"})
    config = tmp_path / "schemathesis.toml"
    config.write_text("")
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run",
        f"http://127.0.0.1:{fresh.admin_port}/api/v1/openapi.json", "-H", f"Authorization: Bearer {rest.token}",
        "--exclude-checks", "positive_data_acceptance", "--max-examples", "25", "--request-timeout", "30",
        "--seed", "1", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested and int(tested[1]) == sum(
        len(each) for each in rest.ask("GET", "/openapi.json")["paths"].values()
    )


def test_headers_of_every_answer(fresh: Proxy) -> None:
    for path in ("/healthz", "/api/v1/devices", "/nowhere", "/"):
        connection = http.client.HTTPConnection("127.0.0.1", fresh.admin_port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        policy = answer.headers["Content-Security-Policy"]
        assert (
            "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        connection.close()
