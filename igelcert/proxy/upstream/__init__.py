"""The CA side: one configured CA, reached over EST or SCEP; who holds it, how many may ask at once.

Nothing here opens a connection by itself: only a device's request or `ca test` does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import sqlalchemy as sa

from ... import crypto
from ...codec.pkcs10 import CertificationRequest
from ...errors import Error, StorageError, TransportError
from ...model import Outcome
from .. import cahealth
from ..schema import enrollments
from .config import CaConfig, EstSettings, current_version, load
from .est import EstUpstream
from .gate import Busy, Gate
from .scep import ScepUpstream
from .scepkeys import TransportKeys
from .steps import Step, Ticket

if TYPE_CHECKING:
    from ..context import Context

__all__ = ["Busy", "ScepUpstream", "Step", "Ticket", "Upstream", "Upstreams"]


SLOT_SECONDS = 20.0  # that a request waits for a place which cannot be told to come back


class Upstream(Protocol):
    """A CA. Answers are as the CA gave them, parsed and not yet checked."""

    config: CaConfig

    def cacerts(self) -> list[bytes]:
        """Its CA certificates, DER. TransportError, RemoteProtocolError."""

    def enroll(self, csr: CertificationRequest, ticket: Ticket) -> Outcome:
        """Its answer to a request. TransportError, RemoteProtocolError, CheckError."""

    def test(self) -> Iterator[Step]:
        """Tries every link of the chain, one step after the other; ends at the first that fails."""

    def close(self) -> None:
        """Closes idle connections."""


class Upstreams:
    """The configured CA, made anew when its configuration changes. Safe for threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._current: Upstream | None = None
        self._keys = TransportKeys(context)
        config = context.config
        share = context.share(config.upstream_parallel)
        # where there are leases, any process may have all places
        places = config.upstream_parallel if context.db.shared else share
        # while all that it takes stall, there are threads for everything else
        lobby = max(1, (config.threads - places) // 2)
        self.gate = Gate(places, lobby, config.upstream_wait, share=share)

    def current(self, version: int | None = None) -> Upstream:
        """As the database has it now; TransportError (link "config") when no CA is configured. version: its version,
        for who has just read that."""
        if version is None:
            version = current_version(self._context)
        with self._lock:
            if self._current is None or self._current.config.version != version:
                if self._current is not None:
                    self._current.close()
                self._current = None
                config = load(self._context)
                if config is None:
                    raise TransportError(
                        "no CA is configured", link="config", hint="ca-proxy ca set-est, set-scep"
                    )
                self._current = self.made(config)
            return self._current

    def made(self, config: CaConfig) -> Upstream:
        """An upstream of its own, as for a configuration that is tried before it is kept. SettingsError."""
        timeout = self._context.config.upstream_timeout
        if isinstance(config.settings, EstSettings):
            return EstUpstream(config, timeout)
        return ScepUpstream(config, timeout, self._keys, self._given_out)

    def _given_out(self, cert: crypto.Certificate) -> bool:
        query = sa.select(enrollments.c.id).where(enrollments.c.certificate_sha256 == cert.sha256.hex())
        with self._context.db.read() as connection:
            return connection.execute(query.limit(1)).scalar() is not None

    @contextmanager
    def place(self, *, patience: float | None = None) -> Iterator[None]:
        """A place at the CA, of this process and of all proxies together; Busy when there is none."""
        seconds = self._context.config.upstream_wait if patience is None else patience
        with self.gate.place(patience=patience), self._context.leases.place(seconds) as free:
            if not free:
                raise self.gate.later()
            yield

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One of the places at the CA, for an exchange with it. Busy, a TransportError."""
        with self.place(patience=SLOT_SECONDS), self.exchange():
            yield

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Notes how what is asked of the CA ends."""
        try:
            yield
        except TransportError as err:
            self._note(False, str(err))
            raise
        except Error:
            self._note(True)  # it answered, whatever the answer was worth
            raise
        else:
            self._note(True)

    def _note(self, up: bool, text: str = "") -> None:
        current = self._current
        if current is not None:
            with contextlib.suppress(StorageError):  # the request itself must not fail for this
                cahealth.note(self._context, current.config.version, up, text)
