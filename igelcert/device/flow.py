"""The story of a device run: settings, each certificate's upkeep, CA store, hooks.

What a run needs from outside (network, clock, facts) comes as arguments, so a test can be all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..errors import Error
from ..model import DeviceFacts
from ..settings import CertSettings, Settings
from . import files, notes, schedule
from .castore import CaStore
from .config import Config
from .exits import EX_FAILED, EX_OK, EX_TEMPFAIL, exit_code, said
from .log import Log
from .settle import Settler, note_removal
from .store import Busy, Lock, Tree
from .upkeep import Connect, Upkeep

__all__ = ["Run"]

LOCK_SECONDS = 30.0

# Settings as they are once nobody else is at work: a run may wait for one that applies newer ones. None: no others.
Reread = Callable[[], Settings | None]


class Run:
    """One run over a tree. `now`: seconds since 1970. `connect`: opens the way to a certificate's server.

    floor: an instant that lies behind us for sure. paced: it is the resident agent's: what failed waits for its
    next try, and what is due for its place among many.
    """

    def __init__(
        self,
        config: Config,
        facts: DeviceFacts,
        log: Log,
        now: Callable[[], int],
        connect: Connect,
        floor: int = 0,
        paced: bool = False,
    ) -> None:
        self.config = config
        self.log = log
        self.now = now
        self.floor = floor
        self.paced = paced
        self.tree = Tree(config.tree_root, config.ids)
        manifest = f"{self.tree.store}/.castore.json"  # no friendly name begins with a dot
        self.castore = CaStore(config.at(config.ca_store), manifest)
        self.settler = Settler(config, self.tree, log, now, self._lock)
        self.upkeep = Upkeep(config, facts, log, now, connect, self.tree, paced)

    def _lock(self) -> Lock:
        return self.tree.lock(LOCK_SECONDS)

    def apply(self, settings: Settings, reread: Reread = lambda: None) -> int:
        """Brings the tree in line with the settings; returns the exit code."""
        files.need_mount(self.config.tree_root, self.config.root)
        with self._lock():
            settings = reread() or settings
            for warning in settings.warnings:
                self.log.warning(warning)
            self.tree.tidy()
            codes = self._each(settings.certs, forced=False)
            wanted = {cert.friendly_name for cert in settings.certs}
            codes += [self._remove(name) for name in self.tree.names() if name not in wanted]
            codes.append(self._install())
        codes.append(self._settle(settings))
        return exit_code(codes)

    def renew(
        self, settings: Settings, names: Sequence[str], force: bool, reread: Reread = lambda: None
    ) -> int:
        """Renews what is due among `names` (all when empty), or all of them now."""
        files.need_mount(self.config.tree_root, self.config.root)
        with self._lock():
            settings = reread() or settings
            self.tree.tidy()
            codes = self._renewed(settings, names, force)
            codes.append(self._install())
        codes.append(self._settle(settings))
        return exit_code(codes)

    def _renewed(self, settings: Settings, names: Sequence[str], force: bool) -> list[int]:
        unknown = set(names) - {cert.friendly_name for cert in settings.certs}
        for name in sorted(unknown):
            self.log.error(f"{name}: the settings have no such certificate")
        if not settings.certs:
            self.log.warning("there are no settings with certificates: run rmagent sync, or give --settings")
        chosen = [cert for cert in settings.certs if not names or cert.friendly_name in names]
        return [*self._each(chosen, forced=force), EX_FAILED if unknown else EX_OK]

    def install_cas(self) -> int:
        """(Re)installs the CAs of every live certificate into the OpenSSL store."""
        with self._lock():
            self.tree.tidy()
            return self._install()

    def next_step(self, settings: Settings) -> int | None:
        """When the resident agent has to run again for what is noted now; None when never."""
        found = [
            notes.next_step(self.tree.state(cert.friendly_name), self.upkeep.place(cert.friendly_name))
            for cert in settings.certs
        ]
        found.append(self.settler.next_removal())
        return min((moment for moment in found if moment is not None), default=None)

    def take_windows(self, settings: Settings, windows: Mapping[str, tuple[str, schedule.Window]]) -> None:
        """Notes the windows that the proxy told: friendly name -> (serial number, window). Those of other certificates
        than the live ones are passed over."""
        with self._lock():
            for cert in settings.certs:
                if cert.friendly_name in windows:
                    self.upkeep.take_window(cert, *windows[cert.friendly_name])

    def _each(self, certs: Sequence[CertSettings], *, forced: bool) -> list[int]:
        if certs and not schedule.clock_is_sane(self.now(), self.floor):
            self.log.error("the clock is not set; waiting for the right time")
            self.log.hint("set the clock, then run again")
            return [EX_TEMPFAIL]
        return [self.upkeep.one(cert, forced) for cert in certs]

    def _remove(self, name: str) -> int:
        """A certificate that the settings no longer have; what fails with it stops nothing else."""
        try:
            note_removal(self.tree, name, self.now())
            self.tree.remove(name)
        except Error as err:
            return said(self.log, err, f"{name}: ")
        self.log.info(f"{name}: removed, the settings no longer have it")
        return EX_OK

    def _install(self) -> int:
        try:
            self.castore.sync({name: self.upkeep.cas_of(name) for name in self.tree.names()})
        except Error as err:
            return said(self.log, err)
        return EX_OK

    def _settle(self, settings: Settings) -> int:
        try:
            return EX_OK if self.settler.settle(settings, paced=self.paced) else EX_TEMPFAIL
        except Busy:
            self.log.warning("another igel-certs is at work; hooks may hear twice of what they have heard")
            return EX_TEMPFAIL
        except Error as err:
            return said(self.log, err, "hooks and notifications: ")
