"""What this process counts for Prometheus. Several proxies are scraped one by one.

What the database knows (devices, certificates by their expiry) is read from there at each scrape instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..errors import TransportError

__all__ = ["CA_BUSY", "CA_CAP", "CA_WAITING", "REGISTRY", "ca_exchange", "count_request"]

REGISTRY = CollectorRegistry()
_REQUESTS = Counter(
    "igelcert_requests",
    "Certificate requests of devices by operation and result",
    ["operation", "result"],
    registry=REGISTRY,
)
_EXCHANGES = Histogram(
    "igelcert_ca_round_trip_seconds",
    "Time from a request to the CA to its whole answer, by outcome",
    ["outcome"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
CA_CAP = Gauge("igelcert_ca_slots", "Requests to the CA that may run at once", registry=REGISTRY)
CA_BUSY = Gauge("igelcert_ca_slots_busy", "Requests to the CA that run now", registry=REGISTRY)
CA_WAITING = Gauge("igelcert_ca_queue", "Requests that wait for a slot at the CA", registry=REGISTRY)

OPERATIONS = {"simpleenroll": "enroll", "simplereenroll": "renew"}
for _operation in (*OPERATIONS.values(), "scep"):
    for _result in ("issued", "pending", "refused", "failed"):
        _REQUESTS.labels(_operation, _result)
for _outcome in ("ok", "error", "unreachable"):
    _EXCHANGES.labels(_outcome)


def count_request(operation: str, result: str) -> None:
    """A request of a device came to an end. operation: as recorded; result: its state."""
    _REQUESTS.labels(OPERATIONS.get(operation, "scep"), result).inc()


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
        _EXCHANGES.labels(outcome).observe(time.monotonic() - start)
