"""Devices that enroll all the while: whatever is done to the proxy meanwhile, none of them may be refused."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.chain import Proxy
from tests.support.proxies import Member, request

__all__ = ["Work", "work"]


class Work:
    """members: the devices; answers: how many of each status; failures: what was no certificate."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self.stopped = threading.Event()

    def count(self) -> int:
        """Enrollments so far."""
        return self.answers[200]

    def go_on(self, more: int = 3) -> None:
        """Waits until so many more have enrolled, each of them well."""
        aim, patience = self.count() + more, threading.Event()
        for _ in range(1200):
            if self.count() >= aim or self.failures:
                break
            patience.wait(0.05)
        assert not self.failures, self.failures
        assert self.count() >= aim, "nobody gets through"

    def run(self, gates: list[Proxy], members: list[Member]) -> None:
        number = 0
        while not self.stopped.is_set():
            gate, member = gates[number % len(gates)], members[number % len(members)]
            number += 1
            csr = member.csr()
            try:
                status, headers, body = request(gate, member, csr)
                while status == 202 and not self.stopped.wait(min(int(headers["retry-after"]), 2)):
                    status, headers, body = request(
                        gate, member, csr
                    )  # on a busy machine it has its turn later
            except OSError as err:
                self.failures.append(f"{member.unit}: {err}")
                continue
            if status == 202:
                break
            self.answers[status] += 1
            if status != 200:
                self.failures.append(f"{member.unit}: {status} {body.decode(errors='replace')}")


@contextmanager
def work(gates: list[Proxy], place: Path, prefix: str = "WORK") -> Iterator[Work]:
    """Devices at those proxies in turn, until the end of the block. They trust what counted when they began, and no more."""
    members = Member.all(gates[0], place / "fleet", 8, prefix)
    place.joinpath("trust").mkdir()
    shutil.copy(gates[0].data / "trust.pem", place / "trust")
    frozen = [Proxy(place / "trust", gate.port, gate.admin_port) for gate in gates]
    made = Work(members)
    threads = [
        threading.Thread(target=made.run, args=(frozen, members[start::2]), daemon=True) for start in (0, 1)
    ]
    for thread in threads:
        thread.start()
    try:
        made.go_on()
        yield made
        made.go_on()
    finally:
        made.stopped.set()
        for thread in threads:
            thread.join(60)
    assert not made.failures, made.failures
