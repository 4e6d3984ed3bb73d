"""The upkeep of one certificate: is a new one due, key, CSR, transport, reply, checks, new generation, what is noted.

What it needs from outside (network, clock, facts) comes as arguments, so a test can be all of it.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import crypto
from ..codec import answer as answers
from ..codec import pkcs10
from ..codec.pem import decode_pem
from ..errors import Error, RemoteProtocolError, StorageError
from ..model import CsrSpec, DeviceFacts, Issued, Outcome, Pending, Refused
from ..settings import CertSettings
from . import due, files, keys, notes, schedule
from .config import Config
from .exits import EX_FAILED, EX_OK, EX_TEMPFAIL, said
from .log import Log
from .store import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

__all__ = ["Connect", "Upkeep", "Way"]


class Way(Protocol):
    """The way to a certificate's CA as the flow sees it."""

    def enroll(self, key: crypto.Key, csr: bytes, *, renew: bool, kept: bool) -> Outcome:
        """What the CA says to the CSR (DER) of `key`. kept: it was sent before, and the answer has not come."""

    def cacerts(self) -> list[bytes]: ...
    def close(self) -> None: ...


# (certificate, live certificate to authenticate a renewal with or None) -> where its requests go
Connect = Callable[[CertSettings, crypto.Certificate | None], Way]


class Ask:
    """One certificate in one run. mark: fingerprint of what settings and facts ask for."""

    __slots__ = ("_secret", "cert", "live", "mark", "spec", "state")

    def __init__(
        self, cert: CertSettings, spec: CsrSpec, mark: str, live: keys.Live, state: notes.State
    ) -> None:
        self.cert = cert
        self.spec = spec
        self.mark = mark
        self.live = live
        self.state = state
        self._secret: crypto.Password | None = None

    @property
    def name(self) -> str:
        return self.cert.friendly_name

    def secret(self) -> crypto.Password | None:
        """What the key is written under, None for nothing. Made once: its derivation takes longer than all else of
        an EC enrollment."""
        password = self.cert.key.password
        if self._secret is None and password is not None:
            self._secret = crypto.Password(password)
        return self._secret


class Upkeep:
    """`now`: seconds since 1970. `connect`: opens the way to a certificate's server. paced: what failed waits for its
    next try, and what is due for its place among many."""

    def __init__(
        self,
        config: Config,
        facts: DeviceFacts,
        log: Log,
        now: Callable[[], int],
        connect: Connect,
        tree: Tree,
        paced: bool,
    ) -> None:
        self.config = config
        self.facts = facts
        self.log = log
        self.now = now
        self.connect = connect
        self.tree = tree
        self.paced = paced

    def one(self, cert: CertSettings, forced: bool) -> int:
        """Enrolls or renews when it is due; a failure is noted, shown, and leaves what is there in place."""
        name = cert.friendly_name
        mark = ""
        try:
            spec = cert.csr_spec(self.facts)
            mark = keys.fingerprint(cert, spec)
            live = keys.live(self.tree, name, cert.key.password)
            ask = Ask(cert, spec, mark, live, self._healed(cert, live))
            reason = self._reason(ask, forced)
            if not reason:
                self.tree.drop_pending(name)  # a request for what is no longer wanted
                self._note(name, self._settled(ask))
                self.tree.share(name)
                return EX_OK
            return self._enroll(ask, reason, forced)
        except Error as err:
            code = said(self.log, err, f"{name}: ")
            self._note_failure(name, mark, str(err))
            return code

    def cas_of(self, name: str) -> list[bytes]:
        return decode_pem(self.tree.read(name, "cacerts.pem") or b"")

    def place(self, name: str) -> float:
        return schedule.place_of(f"{self.facts.unit_id}/{name}")

    def _reason(self, ask: Ask, forced: bool) -> str:
        """Why a new certificate is asked for now, "" when none is."""
        if forced:
            return "forced"
        request = self.tree.pending(ask.name)
        under_way = request is not None and request[0].get("spec") == ask.mark
        chance = self.place(ask.name) if self.paced else None
        found = due.reason(
            ask.cert, ask.live, ask.state, ask.mark, self.now(), under_way=under_way, chance=chance
        )
        if (
            found
            and ask.live.cert
            and not ask.live.problem
            and not under_way
            and due.address_alone(ask.cert, self.facts, ask.state)
        ):
            found = self._address(ask)
        else:
            ask.state.pop("address", None)
        return found or self._look_at_cas(ask)

    def _address(self, ask: Ask) -> str:
        """A new address counts when it stays, and not each time: one that flaps costs no certificate each time.
        No address at all is no new one."""
        if not self.facts.ips:
            return ""
        ask.state = notes.address_seen(ask.state, self.facts.ips, self.now())
        since = int(ask.state["address"]["since"]) if self.paced else 0
        if self.now() < schedule.address_due(since, int(ask.state.get("address_at", 0))):
            self._note(ask.name, ask.state)
            return due.by_time(ask.live.cert, ask.cert, ask.state, self.now(), None) if ask.live.cert else ""
        ask.state = {**ask.state, "address_at": self.now()}
        self._note(ask.name, ask.state)
        return "the address changed"

    def _enroll(self, ask: Ask, reason: str, forced: bool) -> int:
        """key → CSR → transport → reply → checks → new generation → state."""
        name, cert, live = ask.name, ask.cert, ask.live
        if not forced and (wait := self._waits(ask)):
            self.log.info(f"{name}: waiting, the next try is in {wait} seconds")
            return EX_TEMPFAIL
        self.tree.place(name)
        renewing = self._renewable(live.cert, ask.spec) if live.usable else None
        self.log.info(
            f"{name}: {'renewing' if renewing else 'enrolling'} ({reason}), key type {cert.key.type}"
        )
        key, csr, kept = keys.key_for_request(
            self.tree, cert, ask.spec, ask.mark, self.config.key_generator, ask.secret
        )
        if kept:
            self.log.info(f"{name}: asking again with the request that is under way")
        server = self.connect(cert, live.cert if renewing else None)
        try:
            outcome = server.enroll(key, csr, renew=renewing is not None, kept=kept)
            if isinstance(outcome, Pending):
                return self._note_pending(ask, outcome)
            if isinstance(outcome, Refused):
                return self._note_refusal(ask, outcome)
            cas = server.cacerts()
        except RemoteProtocolError as err:
            raise RemoteProtocolError(f"the answer cannot be used: {err}", hint=err.hint) from None
        finally:
            server.close()
        try:
            self._store(ask, key, csr, outcome, cas, reason)
        except answers.NoChain:
            # its CA may be gone since: asked again, this request would get this certificate again
            self.tree.drop_pending(name)
            raise
        return EX_OK

    def _waits(self, ask: Ask) -> int:
        """Seconds until what the server, or our own pace, allows."""
        told = notes.told_to_wait(ask.state, ask.mark, self.now())
        return max(told, notes.waits_until(ask.state, ask.mark, self.now())) if self.paced else told

    def _renewable(self, current: crypto.Certificate | None, spec: CsrSpec) -> crypto.Certificate | None:
        """The live certificate when /simplereenroll may renew it: valid, subject and SAN the same."""
        if current is None or not current.not_before <= self.now() < current.not_after:
            return None
        same = pkcs10.same_names(current, spec)
        return current if same else None

    def _store(
        self, ask: Ask, key: crypto.Key, csr: bytes, outcome: Issued, cas: list[bytes], reason: str
    ) -> None:
        name, previous = ask.name, ask.live.cert
        request = pkcs10.parse(csr, verify=False)  # our own: we signed it
        good = answers.check(
            outcome.certificates, cas, key.spki(), self.now(), request=request, previous=previous
        )
        for warning in good.warnings:
            self.log.warning(f"{name}: {warning}")
        # as it lies beside the request: to encrypt it once more would take as long as all else of an EC enrollment
        self._put(ask, key, good, files.copy_of(f"{self.tree.pending_dir(name)}/pkey.pem"))
        self.tree.save_state(
            name, self._enrolled(ask.cert, good.cert, ask.state, ask.mark, reason, good.warnings)
        )
        self.tree.drop_pending(name)
        verb = "renewed" if previous else "enrolled"
        self.log.info(f"{name}: {verb}, serial {good.cert.serial_hex}, issued by {good.cert.issuer_text}")

    def _put(self, ask: Ask, key: crypto.Key, good: answers.Bundle, write_key: Callable[[int], None]) -> None:
        """A new generation with key, certificate and CAs."""

        def write_pfx(fd: int) -> None:
            legacy = self.config.pfx_encryption == "legacy"
            authorities = [ca.der for ca in good.cas]
            secret = ask.secret() or crypto.Password(b"")
            crypto.write_pfx(fd, key, good.cert.der, authorities, secret, ask.name, legacy=legacy)

        self.tree.put(
            ask.name,
            write_key,
            write_pfx,
            good.cert.pem(),
            [(ca.cn, ca.pem()) for ca in good.cas],
        )

    # ---- windows --------------------------------------------------------------------------------

    def take_window(self, cert: CertSettings, serial: str, window: schedule.Window) -> None:
        name = cert.friendly_name
        live = keys.certificate(self.tree, name)
        if live is None or live.serial_hex != serial:
            return
        state = self._stated(name)
        told = notes.told_window(state, serial, window)
        if state.get("error") and not state.get("refused") and self._only_due(cert, state):
            told = notes.put_off(told, self.now(), self.place(name))
        self._note(name, told)

    def _only_due(self, cert: CertSettings, state: notes.State) -> bool:
        """Is what failed a renewal for no other reason than the time?"""
        mark = keys.fingerprint(cert, cert.csr_spec(self.facts))
        live = keys.live(self.tree, cert.friendly_name, cert.key.password)
        place = self.place(cert.friendly_name)
        return due.reason(cert, live, state, mark, self.now(), under_way=False, chance=place) == due.BY_TIME

    def _stated(self, name: str) -> notes.State:
        return {key: value for key, value in self.tree.state(name).items() if key != "version"}

    # ---- the CA's certificates ------------------------------------------------------------------

    def _look_at_cas(self, ask: Ask) -> str:
        """Has the CA other certificates than ours of it, now and then? They are taken over, and when they no
        longer vouch for the live certificate, that is the reason for a new one."""
        live, state = ask.live.cert, ask.state
        dates = (live.not_before, live.not_after) if live else (0, 0)
        if live is None or self.now() < schedule.cas_due(int(state.get("cas_at", self.now())), *dates):
            return ""
        try:
            server = self.connect(ask.cert, None)
            try:
                cas = server.cacerts()
            finally:
                server.close()
        except Error as err:
            self.log.warning(f"{ask.name}: the CA certificates could not be compared: {err}")
            ask.state = notes.cas_unknown(state, self.now())
            return ""
        ask.state = {**state, "cas_at": self.now()}
        if set(cas) == set(self.cas_of(ask.name)):
            return ""
        return self._take_over(ask, live, cas)

    def _take_over(self, ask: Ask, live: crypto.Certificate, cas: list[bytes]) -> str:
        """The live certificate with the CA's new certificates beside it, as a new generation."""
        ours = self.cas_of(ask.name)
        try:
            # an intermediate may have come with the certificate alone; what is trusted is the CA's word of now
            good = answers.check([live.der, *ours], cas, live.spki, self.now())
        except answers.NoChain:
            return "the CA changed"
        if {ca.der for ca in good.cas} == set(ours):
            return ""
        path = f"{self.tree.path}/{ask.name}/pkey.pem"
        key = keys.read_key(path, ask.cert.key.password)
        self._put(ask, key, good, files.copy_of(path))
        ask.state = {**ask.state, "reason": "the CA's certificates changed"}
        self.log.info(f"{ask.name}: the CA's certificates changed and were taken over")
        return ""

    # ---- what is noted --------------------------------------------------------------------------

    def _healed(self, cert: CertSettings, live: keys.Live) -> notes.State:
        """The state of a certificate. One that went live just before a power cut is noted now, and its request,
        which was answered, is not kept."""
        name = cert.friendly_name
        state = self.tree.state(name)
        found = self.tree.pending(name)
        if found is None or live.cert is None:
            return state
        try:
            # our own request, whose key alone is looked at
            answered = pkcs10.parse(found[1], verify=False).spki == live.cert.spki
        except Error:
            return state  # key_for_request drops it
        if answered:
            if state.get("serial") != live.cert.serial_hex:
                mark, why = str(found[0].get("spec", "")), "a power cut came in between"
                state = self._enrolled(cert, live.cert, state, mark, why)
                self.tree.save_state(name, state)
            self.tree.drop_pending(name)
        return state

    def _enrolled(
        self,
        cert: CertSettings,
        live: crypto.Certificate,
        state: notes.State,
        mark: str,
        reason: str,
        warnings: tuple[str, ...] = (),
    ) -> notes.State:
        return notes.enrolled(
            state,
            spec=mark,
            ips=self.facts.ips,
            reason=reason,
            serial=live.serial_hex,
            dates=(live.not_before, live.not_after),
            now=self.now(),
            renew_at=schedule.renew_at(live.not_before, live.not_after, cert.enrollment),
            warnings=warnings,
        )

    def _settled(self, ask: Ask) -> notes.State:
        live = ask.live.cert
        assert live is not None  # else it would be due
        return notes.settled(
            ask.state,
            spec=ask.mark,
            ips=self.facts.ips,
            dates=(live.not_before, live.not_after),
            renew_at=schedule.renew_at(live.not_before, live.not_after, ask.cert.enrollment),
            now=self.now(),
            asked=due.asked(live, ask.cert),
        )

    def _note(self, name: str, state: notes.State) -> None:
        if state != self._stated(name):
            self.tree.save_state(name, state)

    def _note_pending(self, ask: Ask, outcome: Pending) -> int:
        text = f"the CA has not decided yet{': ' + outcome.reason if outcome.reason else ''}"
        self.log.info(f"{ask.name}: {text}; asking again in {outcome.retry_after} seconds")
        again = self.now() + outcome.retry_after
        self.tree.save_state(ask.name, notes.pending(ask.state, mark=ask.mark, text=text, retry_at=again))
        return EX_TEMPFAIL

    def _note_refusal(self, ask: Ask, outcome: Refused) -> int:
        temporary = (
            outcome.retry_after is not None or outcome.status in {408, 425, 429} or outcome.status >= 500
        )
        text = f"the server {'cannot answer now' if temporary else 'refused'} ({outcome.status}): {outcome.reason}"
        self.log.error(f"{ask.name}: {text}")
        self._note_failure(ask.name, ask.mark, text, outcome.retry_after, refused=not temporary)
        if not temporary:
            # the same request would be refused again; the next try makes a new one
            self.tree.drop_pending(ask.name)
        return EX_TEMPFAIL if temporary else EX_FAILED

    def _note_failure(
        self, name: str, mark: str, text: str, retry_after: int | None = None, *, refused: bool = False
    ) -> None:
        import random  # rarely needed

        try:
            state = notes.failed(
                self.tree.state(name),
                mark=mark,
                text=text,
                now=self.now(),
                refused=refused,
                retry_after=retry_after,
                chance=random.random(),
            )
            self.tree.save_state(name, state)
        except StorageError as err:
            self.log.warning(f"{name}: the failure cannot be noted: {err}")
