"""What this proxy counts for Prometheus, summed over its processes. Several proxies are scraped one by one.

What the database knows (devices, certificates by their expiry) is read from there at each scrape instead.

The processes of a proxy keep what they count in files of one directory (`share_in`), which prometheus_client reads
together. It decides when it is imported whether it does so, which is why it is imported nowhere before it is needed.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..errors import TransportError

__all__ = [
    "all_text",
    "ca_exchange",
    "count_request",
    "forget_process",
    "share_in",
    "show_ca",
    "show_waiting",
]

log = logging.getLogger("igelcert.proxy")

_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_RESULTS = ("issued", "pending", "refused", "failed")
_OPERATIONS = {"simpleenroll": "enroll", "simplereenroll": "renew"}


def share_in(directory: str) -> None:
    """Before anything is counted: processes that begin with this one count in files of that directory."""
    os.environ[_SHARED] = directory
    # gunicorn 23 calls `forget_process` in a signal's handler, in the middle of anything: another import, too
    importlib.import_module("prometheus_client.multiprocess")


def forget_process(pid: int) -> None:
    """A process ended: what it counted stays, what it was does not."""
    from prometheus_client import multiprocess

    with _aside():
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Figures:
    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.requests = Counter(
            "igelcert_requests",
            "Certificate requests of devices by operation and result",
            ["operation", "result"],
            registry=self.registry,
        )
        self.exchanges = Histogram(
            "igelcert_ca_round_trip_seconds",
            "Time from a request to the CA to its whole answer, by outcome",
            ["outcome"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        for operation in (*_OPERATIONS.values(), "scep"):
            for result in _RESULTS:
                self.requests.labels(operation, result)
        for outcome in ("ok", "error", "unreachable"):
            self.exchanges.labels(outcome)

        def gauge(name: str, text: str) -> Any:
            return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

        self.slots = gauge("igelcert_ca_slots", "Requests to the CA that may run at once")
        self.busy = gauge("igelcert_ca_slots_busy", "Requests to the CA that run now")
        self.queue = gauge("igelcert_ca_queue", "Requests that wait for a slot at the CA")
        self.waiting = gauge("igelcert_waiting_devices", "Devices that wait for a change")
        self.places = gauge("igelcert_waiting_devices_max", "Devices that may wait at once")
        self.woken = Counter(
            "igelcert_waiting_devices_woken", "Devices woken by a change", registry=self.registry
        )
        self.told_woken = 0
        self.lock = threading.Lock()


@cache
def _figures() -> _Figures:
    return _Figures()


def all_text() -> bytes:
    """All of it, in the text format of Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = _figures().registry
    if directory := os.environ.get(_SHARED):
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


@contextmanager
def _aside() -> Iterator[None]:
    """What cannot be counted must hold up nobody."""
    try:
        yield
    except (OSError, ValueError) as err:
        log.error("monitoring does not see this: %s", err)


def count_request(operation: str, result: str) -> None:
    """A request of a device came to an end. operation: as recorded; result: its state."""
    with _aside():
        _figures().requests.labels(_OPERATIONS.get(operation, "scep"), result).inc()


def show_ca(places: int, busy: int, queue: int) -> None:
    """How it is before the CA now, at this process."""
    with _aside():
        found = _figures()
        found.slots.set(places)
        found.busy.set(busy)
        found.queue.set(queue)


def show_waiting(taken: int, places: int, woken: int) -> None:
    """Who waits for changes now, at this process. woken: in all its life."""
    with _aside():
        found = _figures()
        found.waiting.set(taken)
        found.places.set(places)
        with found.lock:
            found.woken.inc(woken - found.told_woken)
            found.told_woken = woken


@contextmanager
def ca_exchange() -> Iterator[None]:
    """One request to the CA and its answer."""
    start = time.monotonic()
    outcome = "error"
    try:
        yield
        outcome = "ok"
    except TransportError:
        outcome = "unreachable"
        raise
    finally:
        with _aside():
            _figures().exchanges.labels(outcome).observe(time.monotonic() - start)
