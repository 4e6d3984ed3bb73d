"""The story of a device run: settings, is it due, key, CSR, transport, reply, checks, files, CA store.

What a run needs from outside (network, clock, facts) comes as arguments, so a test can be all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .. import crypto
from ..codec import answer as answers
from ..codec import pkcs10
from ..codec.pem import decode_pem
from ..errors import Error, RemoteProtocolError, SettingsError, StorageError, TransportError
from ..model import CsrSpec, DeviceFacts, Issued, Outcome, Pending, Refused
from ..settings import CertSettings, Settings
from . import files, keys, schedule
from .castore import CaStore
from .config import Config
from .log import Log
from .store import Tree

__all__ = ["EX_CONFIG", "EX_FAILED", "EX_OK", "EX_TEMPFAIL", "Run", "Way", "exit_code"]

EX_OK, EX_FAILED, EX_TEMPFAIL, EX_CONFIG = 0, 1, 75, 78
LOCK_SECONDS = 30.0


class Way(Protocol):
    """The way to a certificate's CA as the flow sees it."""

    def enroll(self, key: crypto.Key, csr: bytes, *, renew: bool, kept: bool) -> Outcome:
        """What the CA says to the CSR (DER) of `key`. kept: it was sent before, and the answer has not come."""

    def cacerts(self) -> list[bytes]: ...
    def close(self) -> None: ...


# (certificate, live certificate to authenticate a renewal with or None) -> where its requests go
Connect = Callable[[CertSettings, crypto.Certificate | None], Way]


def exit_code(codes: Sequence[int]) -> int:
    """The worst: failed before bad settings before waiting before done."""
    return next((code for code in (EX_FAILED, EX_CONFIG, EX_TEMPFAIL) if code in codes), EX_OK)


def code_of(err: Error) -> int:
    """The exit code an error leads to."""
    if isinstance(err, SettingsError):
        return EX_CONFIG
    return EX_TEMPFAIL if isinstance(err, TransportError) else EX_FAILED


@dataclass(slots=True)
class Run:
    """One run over a tree. `now`: seconds since 1970. `connect`: opens the way to a certificate's server."""

    config: Config
    facts: DeviceFacts
    log: Log
    now: Callable[[], int]
    connect: Connect
    tree: Tree = field(init=False)
    castore: CaStore = field(init=False)

    def __post_init__(self) -> None:
        self.tree = Tree(self.config.tree_root, self.config.ids)
        manifest = f"{self.tree.store}/castore.json"
        self.castore = CaStore(self.config.at(self.config.ca_store), manifest)

    # ---- the whole document ---------------------------------------------------------------------

    def apply(self, settings: Settings) -> int:
        """Brings the tree in line with the settings; returns the exit code."""
        for warning in settings.warnings:
            self.log.warning(warning)
        files.need_mount(self.config.tree_root, self.config.root)
        with self.tree.lock(LOCK_SECONDS):
            codes = [self._one(cert, forced=False) for cert in settings.certs]
            wanted = {cert.friendly_name for cert in settings.certs}
            for name in self.tree.names():
                if name not in wanted:
                    self.tree.remove(name)
                    self.log.info(f"{name}: removed, the settings no longer have it")
            codes.append(self._install())
        return exit_code(codes)

    def renew(self, settings: Settings, names: Sequence[str], force: bool) -> int:
        """Renews what is due among `names` (all when empty), or all of them now."""
        unknown = set(names) - {cert.friendly_name for cert in settings.certs}
        for name in sorted(unknown):
            self.log.error(f"{name}: the settings have no such certificate")
        if not settings.certs:
            self.log.warning("there are no settings with certificates: run rmagent sync, or give --settings")
        with self.tree.lock(LOCK_SECONDS):
            chosen = [cert for cert in settings.certs if not names or cert.friendly_name in names]
            codes = [self._one(cert, forced=force) for cert in chosen]
            codes.append(self._install())
        return exit_code([*codes, EX_FAILED if unknown else EX_OK])

    def install_cas(self) -> int:
        """(Re)installs the CAs of every live certificate into the OpenSSL store."""
        with self.tree.lock(LOCK_SECONDS):
            return self._install()

    def _install(self) -> int:
        try:
            self.castore.sync({name: self._cas_of(name) for name in self.tree.names()})
        except Error as err:
            self.log.error(str(err))
            self.log.hint(err.hint)
            return code_of(err)
        return EX_OK

    def _cas_of(self, name: str) -> list[bytes]:
        return decode_pem(self.tree.read(name, "cacerts.pem") or b"")

    # ---- one certificate ------------------------------------------------------------------------

    def _one(self, cert: CertSettings, forced: bool) -> int:
        """Enrolls or renews when it is due; a failure is noted, shown, and leaves what is there in place."""
        name = cert.friendly_name
        try:
            return self._enroll(cert, forced)
        except Error as err:
            self.log.error(f"{name}: {err}")
            self.log.hint(err.hint)
            self._note_failure(name, str(err), None)
            return code_of(err)

    def _enroll(self, cert: CertSettings, forced: bool) -> int:
        """is it due? → key → CSR → transport → reply → checks → new generation → state."""
        name = cert.friendly_name
        spec = cert.csr_spec(self.facts)
        mark = keys.fingerprint(cert, spec)
        live = keys.live(self.tree, name, cert.key.password)
        reason = "forced" if forced else self._due(cert, live, mark)
        if not reason:
            self._note_schedule(cert, live.cert)
            return EX_OK
        if (wait := self._told_to_wait(name, mark)) and not forced:
            self.log.info(f"{name}: waiting, the next try is in {wait} seconds")
            return EX_TEMPFAIL
        if not schedule.clock_is_sane(self.now()):
            raise TransportError(
                "the clock is not set; waiting for the right time",
                link="clock",
                hint="set the clock, then run again",
            )
        self.tree.place(name)
        renewing = self._renewable(live.cert, spec) if live.usable else None
        self.log.info(
            f"{name}: {'renewing' if renewing else 'enrolling'} ({reason}), key type {cert.key.type}"
        )
        key, csr, kept = keys.key_for_request(self.tree, cert, spec, mark)
        if kept:
            self.log.info(f"{name}: asking again with the request that is under way")
        server = self.connect(cert, live.cert if renewing else None)
        try:
            outcome = server.enroll(key, csr, renew=renewing is not None, kept=kept)
            if isinstance(outcome, Pending):
                return self._note_pending(name, mark, outcome)
            if isinstance(outcome, Refused):
                return self._note_refusal(name, outcome)
            cas = server.cacerts()
        except RemoteProtocolError as err:
            raise RemoteProtocolError(f"the answer cannot be used: {err}", hint=err.hint) from None
        finally:
            server.close()
        self._store(cert, key, csr, mark, outcome, cas, live.cert)
        return EX_OK

    def _due(self, cert: CertSettings, live: keys.Live, mark: str) -> str:
        """Why a new certificate is needed; "" when none is."""
        if live.cert is None:
            return live.problem or "new"
        if live.problem:
            return live.problem
        state = self.tree.state(cert.friendly_name)
        if state.get("spec", mark) != mark:
            return "the settings changed"
        if state.get("pending") and state.get("retry_spec") == mark and self.tree.pending(cert.friendly_name):
            return "a request is under way"
        if live.cert.serial_hex == cert.enrollment.renew_serial:
            return "the proxy asks for it"
        moment = schedule.renew_at(live.cert.not_before, live.cert.not_after, cert.enrollment)
        if moment is not None and self.now() >= moment:
            return "expired" if self.now() >= live.cert.not_after else "due for renewal"
        return ""

    def _told_to_wait(self, name: str, mark: str) -> int:
        """Seconds that the server asked us to stay away for this very request."""
        state = self.tree.state(name)
        if state.get("retry_spec") != mark:
            return 0
        wait = int(state.get("retry_at", 0)) - self.now()
        # a clock that was set back must not make a wait longer than any server asks for
        return wait if 0 < wait <= 86_400 else 0

    def _renewable(self, current: crypto.Certificate | None, spec: CsrSpec) -> crypto.Certificate | None:
        """The live certificate when /simplereenroll may renew it: valid, subject and SAN the same."""
        if current is None or not current.not_before <= self.now() < current.not_after:
            return None
        same = pkcs10.same_names(current, spec)
        return current if same else None

    def _store(
        self,
        cert: CertSettings,
        key: crypto.Key,
        csr: bytes,
        mark: str,
        outcome: Issued,
        cas: list[bytes],
        previous: crypto.Certificate | None,
    ) -> None:
        name = cert.friendly_name
        request = pkcs10.parse(csr, verify=False)
        good = answers.check(
            outcome.certificates, cas, key.spki(), self.now(), request=request, previous=previous
        )
        for warning in good.warnings:
            self.log.warning(f"{name}: {warning}")
        password = cert.key.password

        def write_pfx(fd: int) -> None:
            legacy = self.config.pfx_encryption == "legacy"
            authorities = [ca.der for ca in good.cas]
            crypto.write_pfx(fd, key, good.cert.der, authorities, password or b"", name, legacy=legacy)

        self.tree.put(
            name,
            lambda fd: key.write(fd, password),
            write_pfx,
            good.cert.pem(),
            [(ca.cn, ca.pem()) for ca in good.cas],
        )
        self.tree.save_state(
            name,
            {
                "spec": mark,
                "enrolled_at": self.now(),
                "serial": good.cert.serial_hex,
                "renew_at": schedule.renew_at(good.cert.not_before, good.cert.not_after, cert.enrollment),
                "warnings": list(good.warnings),
            },
        )
        self.tree.drop_pending(name)
        verb = "renewed" if previous else "enrolled"
        self.log.info(f"{name}: {verb}, serial {good.cert.serial_hex}, issued by {good.cert.issuer_text}")

    # ---- what is noted --------------------------------------------------------------------------

    def _note_schedule(self, cert: CertSettings, live: crypto.Certificate | None) -> None:
        """The renewal instant follows the settings; an old error goes when nothing is wrong any more."""
        if live is None:
            return
        state = self.tree.state(cert.friendly_name)
        moment = schedule.renew_at(live.not_before, live.not_after, cert.enrollment)
        fresh = {k: v for k, v in state.items() if not k.startswith(("error", "retry", "failures"))}
        fresh["renew_at"] = moment
        fresh.setdefault("spec", keys.fingerprint(cert, cert.csr_spec(self.facts)))
        if fresh != state:
            self.tree.save_state(cert.friendly_name, fresh)

    def _note_pending(self, name: str, mark: str, outcome: Pending) -> int:
        text = f"the CA has not decided yet{': ' + outcome.reason if outcome.reason else ''}"
        self.log.info(f"{name}: {text}; asking again in {outcome.retry_after} seconds")
        state = self.tree.state(name)
        self.tree.save_state(
            name,
            {
                **state,
                "pending": text,
                "retry_at": self.now() + outcome.retry_after,
                "retry_spec": mark,
                "spec": state.get("spec", mark),
            },
        )
        return EX_TEMPFAIL

    def _note_refusal(self, name: str, outcome: Refused) -> int:
        temporary = (
            outcome.retry_after is not None or outcome.status in {408, 425, 429} or outcome.status >= 500
        )
        text = f"the server {'cannot answer now' if temporary else 'refused'} ({outcome.status}): {outcome.reason}"
        self.log.error(f"{name}: {text}")
        self._note_failure(name, text, outcome.retry_after)
        if not temporary:
            # the same request would be refused again; the next try makes a new one
            self.tree.drop_pending(name)
        return EX_TEMPFAIL if temporary else EX_FAILED

    def _note_failure(self, name: str, text: str, retry_after: int | None) -> None:
        state = self.tree.state(name)
        state.update(error=text, error_at=self.now(), failures=int(state.get("failures", 0)) + 1)
        if retry_after is not None:
            state["retry_at"] = self.now() + retry_after
            note = self.tree.pending(name)
            state["retry_spec"] = note[0].get("spec") if note else ""
        try:
            self.tree.save_state(name, state)
        except StorageError as err:
            self.log.warning(f"{name}: the failure cannot be noted: {err}")
