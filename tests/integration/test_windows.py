"""Windows for renewals with real lab CA, proxy and devices: told, kept, pulled forward, and done without."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from igelcert.device import agent as agents
from igelcert.device import exits
from igelcert.device.agent import Agent
from igelcert.device.config import load
from igelcert.device.log import Log
from tests.integration.test_resident import Running, agent
from tests.support.chain import Device, LabCa, Proxy, lab_ca, proxy
from tests.support.until import until

LIFE = 2 * 3600
RATE = 900  # an hour: with four fifths of it, three in each minute
COUNT = 8
LAN = {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}, "enrollment": {"renewal_period": 20}}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LabCa, Proxy]]:
    """A CA whose certificates live for two hours, and a proxy that knows its rate."""
    place = tmp_path_factory.mktemp("short")
    with lab_ca(place / "ca", "--validity", f"{LIFE}s") as lab, proxy(place / "proxy") as gate:
        gate.use(lab, "--rate", f"{RATE}/h")
        yield lab, gate


def state(device: Device, name: str = "lan") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((device.certs / ".store" / name / "state.json").read_text())
    return found


def window(device: Device) -> tuple[int, int]:
    told = state(device)["window"]
    assert told["serial"] == state(device)["serial"]
    return told["from"], told["until"]


def live(device: Device) -> x509.Certificate:
    return x509.load_pem_x509_certificate((device.certs / "lan/cert.pem").read_bytes())


def dates(device: Device) -> tuple[int, int]:
    cert = live(device)
    return int(cert.not_valid_before_utc.timestamp()), int(cert.not_valid_after_utc.timestamp())


class Clock:
    """What devices of this process take for now; proxy and CA go by the real one."""

    def __init__(self) -> None:
        self.moment = 0

    def __call__(self) -> int:
        return self.moment or int(time.time())

    def set(self, moment: int) -> None:
        """It stands still there."""
        self.moment = moment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(agents, "_now", made)
    return made


def sync(device: Device) -> int:
    """A run of the resident agent's child, in this process and by its clock."""
    with Agent(load(str(device.root)), Log("rmagent", screen=False), paced=True) as made:
        return made.sync()


def test_each_renews_in_its_window(short: tuple[LabCa, Proxy], tmp_path: Path, clock: Clock) -> None:
    """A herd that is enrolled in seconds: the windows lie apart, below the rate, and each device keeps to its own."""
    lab, gate = short
    gate.profile("lan", LAN, directory="/Herd")
    herd = [gate.device(tmp_path / f"d{n}", f"HERD{n}", f"herd-{n}", "/Herd") for n in range(COUNT)]
    begun = int(time.time())
    assert [sync(device) for device in herd] == [0] * COUNT
    told = {device.unit_id: window(device) for device in herd}
    for device in herd:
        begin, end = told[device.unit_id]
        not_before, not_after = dates(device)
        due = state(device)["renew_at"]
        assert not_before < begun < begin < end <= due < not_after, (
            "before its own rule, which stays the bound"
        )
    widths = {end - begin for begin, end in told.values()}
    assert widths == {15}, "buckets of 15 seconds for certificates of two hours"
    assert max(Counter(told.values()).values()) <= RATE * 15 / 3600, "no more in one than the rate allows"
    before = {device.unit_id: live(device).serial_number for device in herd}
    issued = len(lab.issued())
    for device in sorted(herd, key=lambda each: told[each.unit_id]):
        begin, end = told[device.unit_id]
        clock.set(begin - 1)
        assert sync(device) == 0 and live(device).serial_number == before[device.unit_id], "not before it"
        clock.set(end)
        assert sync(device) == 0 and live(device).serial_number != before[device.unit_id], "by its end"
        assert window(device) != told[device.unit_id], "the new certificate has a window of its own"
        assert sync(device) == 0
    assert len(lab.issued()) == issued + COUNT, "one each"


def test_without_its_proxy_a_device_goes_by_its_own_rule(
    short: tuple[LabCa, Proxy], tmp_path: Path, clock: Clock
) -> None:
    """No window was ever heard, or the proxy was away in it: the own rule and the tries after it come in time."""
    _, gate = short
    gate.profile("lan", LAN, directory="/Alone")
    device = gate.device(tmp_path / "alone", "ALONE", "alone", "/Alone")
    assert sync(device) == 0
    _, end = window(device)
    first = live(device).serial_number
    server = device.agent / "server.json"
    there = server.read_bytes()
    server.write_text(json.dumps({"server": "https://127.0.0.1:9"}))
    clock.set(end)
    assert sync(device) == exits.EX_TEMPFAIL, "the proxy is away"
    for _ in range(3):
        assert state(device)["try_at"] < dates(device)[1]
        clock.set(state(device)["try_at"])
        assert sync(device) == exits.EX_TEMPFAIL and live(device).serial_number == first
    server.write_bytes(there)
    clock.set(state(device)["try_at"])
    assert sync(device) == 0 and live(device).serial_number != first
    # and one that has never heard of a window
    made = state(device)
    (device.certs / ".store/lan/state.json").write_text(
        json.dumps({key: value for key, value in made.items() if key != "window"})
    )
    server.write_text(json.dumps({"server": "https://127.0.0.1:9"}))
    second = live(device).serial_number
    clock.set(made["renew_at"] - 1)
    sync(device)
    assert "error" not in state(device), "it does not try before"
    clock.set(made["renew_at"] + (dates(device)[1] - made["renew_at"]) // 10)
    sync(device)
    assert state(device)["error"] and live(device).serial_number == second
    server.write_bytes(there)
    clock.set(state(device)["try_at"])
    assert sync(device) == 0 and live(device).serial_number != second


# ---- pulled forward -----------------------------------------------------------------------------


@contextlib.contextmanager
def residents(herd: list[Device]) -> Iterator[list[Running]]:
    """Their resident agents, at rest."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(agent(device.root)) for device in herd]
        for each in found:
            until(each.at_rest, say=each)
        yield found


def heard(herd: list[Device], what: Callable[[], object]) -> tuple[float, dict[str, tuple[int, int]]]:
    """How long after `what` all of them had noted the windows that were asked for, or had renewed already; the windows."""
    before, windows, late = {device.unit_id: live(device) for device in herd}, {}, set()

    def all_heard() -> bool:
        for device in herd:
            if asked := state(device).get("asked"):
                windows[device.unit_id] = tuple(asked)
            elif live(device) != before[device.unit_id]:
                late.add(device.unit_id)
        return len(windows.keys() | late) == len(herd)

    for device in herd:
        made = state(device)
        made.pop("asked", None)
        (device.certs / ".store/lan/state.json").write_text(json.dumps(made))
    what()
    return until(all_heard, say="not all heard of it"), windows


def issued_at(device: Device) -> int:
    return dates(device)[0] + 60  # the lab CA dates back by a minute


def test_an_incident_is_heard_and_done_within_its_bound(gate: Proxy, lab: LabCa, tmp_path: Path) -> None:
    """All that a CA issued, within so many seconds: those that expire first before the others, each in its turn."""
    count, within = 4, 24
    gate.profile("lan", LAN, directory="/Incident")
    herd = [gate.device(tmp_path / f"i{n}", f"INC{n}", f"inc-{n}", "/Incident") for n in range(count)]
    for device in reversed(herd):
        assert sync(device) == 0
        time.sleep(1.1)  # none expires in the same second
    before = {device.unit_id: live(device) for device in herd}
    name = before["INC0"].issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    issued = len(lab.issued())
    with residents(herd) as agents_of:
        said: list[int] = []

        def asked() -> None:
            gate.cli("renew", "--issuer", name, "--within", f"{within}s")
            said.append(int(time.time()))

        # the command's own time is in it, and the run of each device
        took, windows = heard(herd, asked)
        times = [took]
        bound = said[0] + within
        until(lambda: len(lab.issued()) >= issued + count, within + 60, agents_of[-1])
        for each in agents_of:
            until(each.at_rest, say=each)
        assert len(windows) >= 2  # the first may be done at once
        assert all(end <= bound for _, end in windows.values())
        # each renews somewhere in its window: a busy machine may be at the end of one and at the begin of the next
        told = [windows[unit] for unit in ("INC3", "INC2", "INC1", "INC0") if unit in windows]
        assert told == sorted(set(told)), "those that expire first before the others"
        for device in herd:
            assert live(device).serial_number != before[device.unit_id].serial_number
            assert issued_at(device) <= bound + 20, "a busy machine is not in time"
            if device.unit_id in windows:
                begin, end = windows[device.unit_id]
                assert begin <= issued_at(device) <= end + 20
        late = [
            issued_at(device) - windows[device.unit_id][1] for device in herd if device.unit_id in windows
        ]
        assert min(late) <= 3, "those that others on the machine did not hold up are in time"
        moments = sorted(issued_at(device) for device in herd)
        assert moments[-1] - moments[0] >= within * 9 // 10 // count - 1, "spread"
        # the other ways to say it are heard as well, and what is far away is only noted
        for words in (["--directory", "/Incident"], ["--device", "INC0"]):
            some = herd if "--directory" in words else herd[:1]
            times.append(heard(some, lambda w=words: gate.cli("renew", *w, "--within", "6h"))[0])  # type: ignore[misc]
        assert min(times) < 5 and max(times) < 30, times
    assert len(lab.issued()) == issued + count, "nothing else was renewed"


def test_now_is_nothing_to_what_was_renewed_since(
    gate: Proxy, lab: LabCa, tmp_path: Path, clock: Clock
) -> None:
    gate.profile("lan", LAN, directory="/Since")
    device = gate.device(tmp_path / "since", "SINCE", "since", "/Since")
    assert sync(device) == 0
    gate.cli("renew", "--device", "SINCE")
    old = live(device).serial_number
    settings = device.agent / "settings.json"
    assert sync(device) == 0 and live(device).serial_number != old
    stale = settings.read_bytes()
    assert json.loads(stale)["certs"][0]["enrollment"]["renew_serial"] == f"{old:X}".zfill(
        len(f"{old:X}") + len(f"{old:X}") % 2
    )
    assert sync(device) == 0 and b"renew_serial" not in settings.read_bytes(), (
        "it is done, and no longer asked for"
    )
    # the device has not heard of that yet: it goes by the settings that name the old one
    new = live(device).serial_number
    settings.write_bytes(stale)
    (device.agent / "server.json").write_text(json.dumps({"server": "https://127.0.0.1:9"}))
    issued = len(lab.issued())
    assert (
        sync(device) == exits.EX_TEMPFAIL
        and live(device).serial_number == new
        and len(lab.issued()) == issued
    )
