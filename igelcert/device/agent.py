"""The device towards its proxy: settings, reports, and the way to a certificate's CA."""

from __future__ import annotations

import json
import os
import time

from .. import crypto
from ..codec.http import Request, Response
from ..errors import Error, RemoteProtocolError, SettingsError
from ..model import DeviceFacts
from ..settings import CertSettings, Settings, load_json, parse_settings
from . import agenda, files, keys, schedule, straight
from .config import Config
from .exits import EX_OK, EX_TEMPFAIL, code_of, exit_code
from .facts import gather
from .flow import Run
from .identity import JSON, Identity, json_object, refusal
from .log import Log
from .status import state_of
from .transport import Link
from .upkeep import Way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Agent", "load_settings", "windows_of"]

MAX_SETTINGS = 1 << 20
CLOCK_FILE = "/usr/lib/clock-epoch"  # its date is that of the image, where the image has one
REPORT_AGAIN = 600  # seconds
NO_SETTINGS = "run: rmagent sync; or give --settings FILE"


class Agent:
    """One device: its configuration, facts, log, and clock. paced: for the resident agent, see `flow.Run`.

    One connection to the proxy, opened when it is needed, serves all of a run; leaving the context ends it.
    """

    def __init__(self, config: Config, log: Log, *, paced: bool = False) -> None:
        self.config = config
        self.log = log
        self.paced = paced
        self.dir = config.agent_dir
        self.identity = Identity(config, lambda: self.facts, _now)
        self._facts: DeviceFacts | None = None
        self._link: Link | None = None
        self._told = False
        self._windows: dict[str, tuple[str, schedule.Window]] = {}

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()

    def _proxy(self) -> Link:
        if self._link is None:
            self._link = self.identity.link()
        return self._link

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    @property
    def facts(self) -> DeviceFacts:
        if self._facts is None:
            self._facts = gather(self.config)
        return self._facts

    def run(self) -> Run:
        log = self.log.named("igel-certs")
        return Run(self.config, self.facts, log, _now, self.connect, self.clock_floor(), self.paced)

    def clock_floor(self) -> int:
        """An instant that lies behind us for sure: the image's date, the management certificate's begin."""
        cert = self.identity.certificate()
        try:
            image = int(os.stat(self.config.at(CLOCK_FILE)).st_mtime)
        except OSError:
            image = 0
        return max(image, cert.not_before if cert else 0)

    def register(self, server: str, token: str, ca_file: str, fingerprint: str) -> None:
        """Becomes known to the proxy."""
        self.identity.register(server, token, ca_file, fingerprint)
        self.log.info(f"registered at {server} as {self.facts.unit_id}")

    # ---- settings -------------------------------------------------------------------------------

    def sync(self) -> int:
        """Settings from the proxy, then what they ask for, then a report. Works through the stored settings
        when the proxy is away. Leaves an agenda for the resident agent."""
        if not schedule.clock_is_sane(_now(), self.clock_floor()):
            if not (self.paced and agenda.waits_for_clock(self.dir)):  # said once, not with every look
                shown = time.strftime("%Y-%m-%d %H:%M", time.gmtime(_now()))
                self.log.warning(f"the clock says {shown} UTC, which cannot be; waiting for the right time")
            agenda.note(self.dir, _now() + agenda.CLOCK_SECONDS, clock=True)
            return EX_TEMPFAIL
        codes = [self._talk()]
        if not os.path.exists(self._path("settings.json")):
            # nothing is known, which is not the same as nothing is wanted
            return exit_code(codes)
        run = self.run()
        codes.append(run.apply(load_settings(self._path("settings.json")), self.stored))
        settings = self.stored() or Settings()
        reported = self._report_certs(run, settings)
        if self._windows:
            self._take_windows(run, settings)
        codes.append(EX_OK if reported else EX_TEMPFAIL)
        moments = [run.next_step(settings), self._identity_step()]
        if not reported:
            moments.append(_now() + REPORT_AGAIN)
        agenda.note(self.dir, min((moment for moment in moments if moment is not None), default=None))
        return exit_code(codes)

    def _talk(self) -> int:
        """Management certificate, facts, settings. What fails is logged; the stored settings stay."""
        try:
            self.identity.check_registered()
            with self.identity.alone():
                if self.identity.renew(self._proxy()):
                    self.log.info("the management certificate was renewed")
                    self._hang_up()  # from here on with the new one
                self._report()
                self._fetch(self._proxy())
        except Error as err:
            self.log.error(str(err))
            self.log.hint(err.hint)
            if os.path.exists(self._path("settings.json")):
                self.log.info("going on with the stored settings")
            return code_of(err)
        return EX_OK

    def stored(self) -> Settings | None:
        """The settings of now; None when there are none, which is not the same as nothing is wanted."""
        path = self._path("settings.json")
        return load_settings(path) if os.path.exists(path) else None

    def _identity_step(self) -> int | None:
        """When the management certificate is renewed; when that is due already and failed, in an hour."""
        due = self.identity.renewal_at()
        return due if due is None or due > _now() else _now() + 3600

    def _path(self, *names: str) -> str:
        return self.identity.path(*names)

    def _fetch(self, link: Link) -> None:
        """Stores what the proxy sends when it is valid; otherwise the stored settings stay."""
        etag = self._tag()
        headers = (("If-None-Match", etag),) if etag else ()
        answer = link.send(Request("GET", "/rmagent/settings", headers))
        followed = self._follow(link, answer)
        if answer.status == 304:
            if not followed:
                files.remove_tree(self._path("settings.etag"))
            return
        json_object(answer, "settings")
        try:
            settings = parse_settings(answer.body)
        except SettingsError as err:
            # the resident agent waits for others than these
            agenda.note_refused(self.dir, answer.header("ETag"))
            raise RemoteProtocolError(
                f"the settings from the proxy are not valid, the old ones stay: {err}", hint=err.hint
            ) from None
        # the tag goes first: one of older settings beside the new ones would be taken for theirs after a power cut
        files.remove_tree(self._path("settings.etag"))
        # 0600: the document holds key passwords
        files.replace(self._path("settings.json"), answer.body, 0o600)
        if followed:
            files.replace(self._path("settings.etag"), answer.header("ETag").encode(), 0o600)
        self.log.info(f"new settings with {len(settings.certs)} certificate(s)")

    def _follow(self, link: Link, answer: Response) -> bool:
        """The proxy's own CA may be changed: other CAs are trusted, and the management certificate is one of the CA that
        issues now. False: that failed. Then the settings are kept without their tag, so that the proxy tells of it again:
        the resident agent asks at once, and then less and less often."""
        try:
            trusts = self.identity.take_trust(link, answer.header("Management-Trust"))
            renewed = self.identity.renew(link, answer.header("Management-Issuer"))
        except Error as err:
            self.log.warning(f"the proxy's change of its CA is not followed now: {err}")
            return False
        if renewed:
            self.log.info("the management certificate was renewed: the proxy's CA is another")
            self._hang_up()
        if trusts:
            self.log.info("the proxy's CAs are others from now on")
        if renewed or trusts:
            self._report()
        return True

    def _tag(self) -> str:
        """The tag of the stored settings; "" when they must come again: none are there, or they are damaged."""
        try:
            load_settings(self._path("settings.json"))
            tag = files.read(self._path("settings.etag")).decode("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError, Error):
            return ""
        return tag if tag.isprintable() else ""

    # ---- reports --------------------------------------------------------------------------------

    def _report_certs(self, run: Run, settings: Settings) -> bool:
        """Tells the proxy what there is now; False when it did not arrive."""
        try:
            self._report(self._certs_json(run, settings))
        except Error as err:
            self.log.warning(f"the report did not arrive: {err}")
            return False
        return True

    def _certs_json(self, run: Run, settings: Settings) -> list[dict[str, Any]]:
        found = []
        for cert in settings.certs:
            live = keys.certificate(run.tree, cert.friendly_name)
            state = run.tree.state(cert.friendly_name)
            trouble = state.get("hooks")
            found.append(
                {
                    "friendly_name": cert.friendly_name,
                    "state": state_of(state, live, _now()),
                    "serial": live.serial_hex if live else "",
                    "not_after": live.not_after if live else None,
                    "renew_at": state.get("renew_at"),
                    "error": str(state.get("error", ""))[:500],
                    "hooks": str(trouble.get("error", ""))[:500] if isinstance(trouble, dict) else "",
                }
            )
        return found

    def _report(self, certs: list[dict[str, Any]] | None = None) -> None:
        """What the device is now, and where its certificates stand."""
        body = {
            **self.identity.facts_json(),
            "trust": self.identity.trust,
            **({"certs": certs} if certs is not None else {}),
        }
        answer = self._proxy().send(Request("POST", "/rmagent/report", JSON, json.dumps(body).encode()))
        if answer.status not in {200, 204}:
            raise refusal("report", answer)
        self._told = True
        self._windows = windows_of(answer.body) if answer.status == 200 else {}

    def _take_windows(self, run: Run, settings: Settings) -> None:
        """Notes what the answer to the last report said of when to renew. Without it our own rule holds."""
        try:
            run.take_windows(settings, self._windows)
        except Error as err:
            self.log.warning(f"the windows for renewals cannot be noted: {err}")

    # ---- the way to a certificate's CA ----------------------------------------------------------

    def connect(self, cert: CertSettings, current: crypto.Certificate | None) -> Way:
        """Through the proxy, or straight to the CA; `current` authenticates a renewal straight to the CA."""
        enrollment = cert.enrollment
        if enrollment.est is None and enrollment.scep is None:
            if not self._told:
                self._report()  # the proxy computes subject and names from what the device is now
            return _ProxyWay(self._proxy(), cert.friendly_name)
        home = os.path.join(self.config.tree_root, "igel-certs", cert.friendly_name)
        renew = current is not None
        if enrollment.est is not None:
            return straight.straight_est(self.config, enrollment.est, home, cert, renew=renew)
        assert enrollment.scep is not None
        return straight.straight_scep(self.config, enrollment.scep, home, cert, renew=renew)


class _ProxyWay(straight.EstWay):
    """On the connection that the next certificate uses as well."""

    def close(self) -> None:
        pass


def _now() -> int:
    return int(time.time())


def windows_of(body: bytes) -> dict[str, tuple[str, schedule.Window]]:
    """Friendly name -> (serial number, window) of an answer to a report; what is no window is passed over."""
    try:
        document = load_json(body)
    except SettingsError:
        return {}
    entries = document.get("windows") if isinstance(document, dict) else None
    found = {}
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case {"friendly_name": str(name), "serial": str(serial), "from": int(begin), "until": int(end)}:
                found[name] = serial, (begin, end)
    return found


def load_settings(path: str) -> Settings:
    """Settings of a file. Where there is none, that is an error: an empty document would mean "remove all"."""
    try:
        if os.path.getsize(path) > MAX_SETTINGS:
            raise SettingsError(path, f"is larger than {MAX_SETTINGS >> 20} MiB")
        text = files.read(path, MAX_SETTINGS)
    except FileNotFoundError:
        raise SettingsError(
            path, "is not there: nothing says which certificates to have", hint=NO_SETTINGS
        ) from None
    except OSError as err:
        raise files.failure(err, "read", path) from None
    return parse_settings(text)
