"""One process of simulated devices: `python -m tests.load.player PLAN`, started by tests/load/crew.py.

PLAN is JSON: {"fleet", "trust", "port", "first", "count", "part", "seconds", ...}: this process plays `count` devices of the
fleet from `first` on. It prints {"ready": N} when it is prepared, begins at a line on standard input, and
prints a JSON line for each exchange and {"cpu", "done"} at its end. Times are monotonic seconds, which all processes of a
machine share.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import resource
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igelcert import crypto
from igelcert.codec import est, pkcs10
from igelcert.codec.http import Response
from igelcert.device import agent, notes, schedule
from igelcert.errors import Error
from igelcert.model import Issued, Pending, Refused

from . import fleet
from .loop import Line, Loop, Task, Timing

PATIENCE = 60.0
WAIT = 600
STARTERS = 16
SETTINGS = "/rmagent/settings"
REPORT = "/rmagent/report"


@dataclass(slots=True)
class Device:
    """A device of the fleet. asks: requests to enroll that it makes."""

    unit: str
    tls: ssl.SSLContext


class Player:
    """parts: what its devices do."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        place = Path(plan["fleet"])
        names = fleet.Fleet(place).units[plan["first"] : plan["first"] + plan["count"]]
        self.devices = [Device(unit, self._tls(place / f"{unit}.pem")) for unit in names]
        self.key = crypto.Key.generate("ec_prime256v1")
        self.profile = fleet.profile()
        self.loop = Loop()
        self.turn: Iterator[Device] = iter(())
        self.parked = 0
        self.left = 0
        self.ports = itertools.cycle(plan["ports"]) if "ports" in plan else None
        self.patience = float(plan.get("patience", PATIENCE))

    def _tls(self, pem: Path) -> ssl.SSLContext:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self.plan["trust"])
        tls.load_cert_chain(pem)
        return tls

    def play(self) -> None:
        parts = {"fresh": self.fresh, "kept": self.kept, "idle": self.idle, "storm": self.storm,
                 "siege": self.siege, "renewals": self.renewals}  # fmt: skip
        part = parts[self.plan["part"]]
        self._say(ready=len(self.devices))
        sys.stdin.readline()
        part()
        whole = self.loop.run(time.monotonic() + self.plan["seconds"])
        self._say(cpu=time.process_time(), done=whole)

    def _say(self, **row: Any) -> None:
        print(json.dumps(row), flush=bool({"ready", "waiting", "done"} & row.keys()))

    # ---- what devices do ------------------------------------------------------------------------

    def fresh(self) -> None:
        """Each device once, each on a connection of its own; `parallel` of them at a time."""
        self.turn = iter(self.devices)
        for _ in range(self.plan["parallel"]):
            self.loop.spawn(self._fresh())

    def _fresh(self) -> Task:
        for device in self.turn:
            line = yield from self._noted(device, self._open(device))
            if line is not None:
                yield from self._noted(device, self._enroll(device, line))
                line.close()

    def kept(self) -> None:
        """The first `parallel` devices keep a connection each and enroll `rounds` times, with a new request each."""
        for device in self.devices[: self.plan["parallel"]]:
            self.loop.spawn(self._kept(device, self.plan["rounds"]))

    def _kept(self, device: Device, rounds: int) -> Task:
        line = yield from self._noted(device, self._open(device))
        for _ in range(rounds if line else 0):
            yield from self._noted(device, self._enroll(device, line))
        if line:
            line.close()

    def idle(self) -> None:
        """Each device waits for other settings, as the resident agent does; done when it has them."""
        self._wait_for_settings(lambda device: iter(()))

    def storm(self) -> None:
        """The same; when it has them, each device enrolls, and asks again when it was told to, until it has its
        certificate."""
        self._wait_for_settings(lambda device: self._until_enrolled(device, self._fetch_cas))

    def _wait_for_settings(self, then: Callable[[Device], Any]) -> None:
        self.turn = iter(self.devices)
        for _ in range(STARTERS):
            self.loop.spawn(self._starter(then))

    def _starter(self, then: Callable[[Device], Any]) -> Task:
        """One device after the other gets to the point where it waits."""
        for device in self.turn:
            line = yield from self._noted(device, self._open(device))
            if line is None:
                continue
            answer, _ = yield from line.ask("GET", SETTINGS, "", b"", PATIENCE)
            self.loop.spawn(self._waits(device, line, answer.header("ETag"), then))
            self.parked += 1
            if self.parked == len(self.devices):
                self._say(waiting=self.parked)

    def _waits(self, device: Device, line: Line, etag: str, then: Callable[[Device], Any]) -> Task:
        headers = f"If-None-Match: {etag}\r\nPrefer: wait={WAIT}\r\n"
        told = yield from self._noted(device, line.ask("GET", SETTINGS, headers, b"", WAIT + PATIENCE))
        line.close()
        if told is None:
            return
        answer = told[0]
        turn = int(answer.header("Retry-After") or 0)
        self._say(unit=device.unit, at=time.monotonic(), heard=answer.status, turn=turn)
        if turn:
            yield turn + random.random()
        yield from then(device)

    def renewals(self) -> None:
        """Each device enrolls, at its place within the first `assigned_in` seconds, and renews as its rules say and as it is
        told with its reports."""
        for number, device in enumerate(self.devices):
            self.loop.spawn(self._renews(device, self.plan["assigned_in"] * number / len(self.devices)))

    def _renews(self, device: Device, wait: float) -> Task:
        place = schedule.place_of(f"{device.unit}/{self.profile.friendly_name}")
        yield wait
        while True:
            cert, window = yield from self._until_enrolled(device, self._report)
            dates = cert.not_before, cert.not_after
            due = schedule.renew_at(*dates, self.profile.enrollment)
            moment = schedule.planned(due, dates[0], dates, place, window)
            while (left := moment - time.time()) > 0:
                yield left

    def _report(self, line: Line, cert: crypto.Certificate) -> Task:
        """Returns the certificate and its window, None where none is told."""
        name = self.profile.friendly_name
        said = {
            "friendly_name": name,
            "state": "valid",
            "serial": cert.serial_hex,
            "not_after": cert.not_after,
        }
        body = json.dumps({"certs": [said]}).encode()
        answer, _ = yield from line.ask("POST", REPORT, "Content-Type: application/json\r\n", body, PATIENCE)
        told = agent.windows_of(answer.body).get(name)
        return cert, told[1] if told and told[0] == cert.serial_hex else None

    def _fetch_cas(self, line: Line, _cert: crypto.Certificate) -> Task:
        yield from line.ask("GET", est.path("cacerts", self.profile.friendly_name), "", b"", PATIENCE)

    def _until_enrolled(self, device: Device, then: Callable[[Line, crypto.Certificate], Task]) -> Task:
        """The device's own rules of when to ask again: igelcert.device.notes and schedule. Returns what `then` does."""
        csr, chance = self.csr(device), random.random()
        state: notes.State = {}
        while True:
            found: list[Any] = []
            outcome = yield from self._noted(device, self._on_a_new_line(device, csr, then, found))
            now = int(time.time())
            if isinstance(outcome, Issued):
                return found[0]
            if isinstance(outcome, Pending):
                state = notes.pending(
                    state, mark="m", text=outcome.reason, retry_at=now + outcome.retry_after
                )
            else:
                after = outcome.retry_after if outcome else None
                state = notes.failed(
                    state,
                    mark="m",
                    text="failed",
                    now=now,
                    refused=False,
                    retry_after=after,
                    chance=random.random(),
                )
            again = (notes.next_step(state, chance) or now) + chance
            while (left := again - time.time()) > 0:
                yield left

    def siege(self) -> None:
        """Each device enrolls, all at once, and asks until it has its certificate; connections may break, and nobody stays
        away for longer than `longest` seconds. When all have theirs, each asks once more."""
        self.left = len(self.devices)
        for device in self.devices:
            self.loop.spawn(self._besieged(device))

    def _besieged(self, device: Device) -> Task:
        yield random.random()
        csr, longest = self.csr(device), self.plan["longest"]
        for wait_for_all in (True, False):
            while not isinstance(
                outcome := (yield from self._noted(device, self._once(device, csr))), Issued
            ):
                after = outcome.retry_after if outcome and outcome.retry_after else self.plan["again"]
                yield min(after, longest) * random.uniform(0.5, 1)
            self.left -= wait_for_all
            while wait_for_all and self.left:
                yield 0.5

    def _once(self, device: Device, csr: bytes) -> Task:
        line = yield from self._open(device)
        try:
            return (yield from self._request(device, line, csr))
        finally:
            line.close()

    def _on_a_new_line(
        self, device: Device, csr: bytes, then: Callable[[Line, crypto.Certificate], Task], found: list[Any]
    ) -> Task:
        line = yield from self._open(device)
        try:
            outcome = yield from self._request(device, line, csr)
            if isinstance(outcome, Issued):
                found.append((yield from then(line, crypto.parse_certificate(outcome.certificates[0]))))
            return outcome
        finally:
            line.close()

    # ---- steps ----------------------------------------------------------------------------------

    def _noted(self, device: Device, step: Task) -> Task:
        """The step's result; None when it failed, which is told."""
        try:
            return (yield from step)
        except (OSError, Error) as err:
            self._say(unit=device.unit, at=time.monotonic(), error=f"{type(err).__name__}: {err}")
            return None

    def _open(self, device: Device) -> Task:
        port = next(self.ports) if self.ports else self.plan["port"]
        return (yield from Line.open(device.tls, port, self.patience))

    def csr(self, device: Device) -> bytes:
        """Another one each time: the signature is random."""
        return pkcs10.build(self.profile.csr_spec(fleet.facts(device.unit)), self.key)

    def _enroll(self, device: Device, line: Line) -> Task:
        """Returns the Outcome of a new CSR: whoever is told to come later does, on this line."""
        csr = self.csr(device)
        while isinstance(outcome := (yield from self._request(device, line, csr)), Pending):
            yield float(outcome.retry_after)
        return outcome

    def _request(self, device: Device, line: Line, csr: bytes) -> Task:
        request = est.enroll_request(csr, self.profile.friendly_name)
        headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        at = time.monotonic()
        answer, timing = yield from line.ask(
            request.method, request.path, headers, request.body, self.patience
        )
        return self._outcome(device, answer, timing, at, csr)

    def _outcome(
        self, device: Device, answer: Response, timing: Timing, at: float, csr: bytes
    ) -> Issued | Pending | Refused:
        outcome = est.enroll_reply(answer, int(time.time()))
        row: dict[str, Any] = {"unit": device.unit, "at": at, "status": answer.status}
        if isinstance(outcome, Issued):
            cert = crypto.parse_certificate(outcome.certificates[0])
            row["serial"], row["csr"] = cert.serial_hex, hashlib.sha256(csr).hexdigest()
            row["right"] = cert.spki == self.key.spki() and cert.cn == fleet.facts(device.unit).hostname
        else:
            row["after"] = outcome.retry_after
            row["reason"] = outcome.reason
        self._say(**row, connect=timing.connect, answer=timing.answer)
        return outcome


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    random.seed()
    Player(json.loads(sys.argv[1])).play()
