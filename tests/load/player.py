"""One process of simulated devices: `python -m tests.load.player PLAN`, started by tests/load/crew.py.

PLAN is JSON: {"fleet", "trust", "port", "first", "count", "part", "seconds", ...}: this process plays `count` devices of the
fleet from `first` on. It prints {"ready": N} when it is prepared, begins at a line on standard input, and
prints a JSON line for each exchange and {"cpu", "done"} at its end. Times are monotonic seconds, which all processes of a
machine share.
"""

from __future__ import annotations

import json
import random
import resource
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igelcert import crypto
from igelcert.codec import est, pkcs10
from igelcert.codec.http import Response
from igelcert.errors import Error
from igelcert.model import Issued, Pending, Refused

from . import fleet
from .loop import Line, Loop, Task, Timing

PATIENCE = 60.0


@dataclass(slots=True)
class Device:
    """A device of the fleet. asks: requests to enroll that it makes."""

    unit: str
    pem: str


class Player:
    """parts: what its devices do."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        place = Path(plan["fleet"])
        names = fleet.Fleet(place).units[plan["first"] : plan["first"] + plan["count"]]
        self.devices = [Device(unit, str(place / f"{unit}.pem")) for unit in names]
        self.tls = ssl.create_default_context(cafile=plan["trust"])
        self.key = crypto.Key.generate("ec_prime256v1")
        self.profile = fleet.profile()
        self.loop = Loop()
        self.turn: Iterator[Device] = iter(())
        self.path = est.path("simpleenroll", self.profile.friendly_name)

    def play(self) -> None:
        part = {"fresh": self.fresh, "kept": self.kept}[self.plan["part"]]
        self._say(ready=len(self.devices))
        sys.stdin.readline()
        part()
        whole = self.loop.run(time.monotonic() + self.plan["seconds"])
        self._say(cpu=time.process_time(), done=whole)

    def _say(self, **row: Any) -> None:
        print(json.dumps(row), flush="ready" in row or "done" in row)

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

    # ---- steps ----------------------------------------------------------------------------------

    def _noted(self, device: Device, step: Task) -> Task:
        """The step's result; None when it failed, which is told."""
        try:
            return (yield from step)
        except (OSError, Error) as err:
            self._say(unit=device.unit, at=time.monotonic(), error=f"{type(err).__name__}: {err}")
            return None

    def _open(self, device: Device) -> Task:
        return (yield from Line.open(self.tls, device.pem, self.plan["port"], PATIENCE))

    def csr(self, device: Device) -> bytes:
        """Another one each time: the signature is random."""
        return pkcs10.build(self.profile.csr_spec(fleet.facts(device.unit)), self.key)

    def _enroll(self, device: Device, line: Line) -> Task:
        """Returns the Outcome of a request with a new CSR."""
        return (yield from self._request(device, line, self.csr(device)))

    def _request(self, device: Device, line: Line, csr: bytes) -> Task:
        request = est.enroll_request(csr, self.profile.friendly_name)
        headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        at = time.monotonic()
        answer, timing = yield from line.ask(request.method, request.path, headers, request.body, PATIENCE)
        return self._outcome(device, answer, timing, at)

    def _outcome(
        self, device: Device, answer: Response, timing: Timing, at: float
    ) -> Issued | Pending | Refused:
        outcome = est.enroll_reply(answer, int(time.time()))
        row: dict[str, Any] = {"unit": device.unit, "at": at, "status": answer.status}
        if isinstance(outcome, Issued):
            cert = crypto.parse_certificate(outcome.certificates[0])
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
