"""The device towards its servers: registration, settings, reports, and the way to a certificate's CA."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

from .. import crypto
from ..codec import pkcs10
from ..codec.http import Request, Response, plain_line, plain_reason
from ..codec.pem import decode_pem, encode_pem
from ..errors import CheckError, Error, RemoteProtocolError, SettingsError, StorageError, TransportError
from ..model import CsrSpec, DeviceFacts, Subject
from ..settings import CertSettings, Settings, load_json, parse_settings
from . import files, keys, straight
from .config import Config
from .facts import gather
from .flow import EX_OK, EX_TEMPFAIL, Run, Way, code_of, exit_code
from .log import Log
from .transport import Link, client_context

__all__ = ["Agent", "load_settings"]

MANAGEMENT_KEY = "ec_prime256v1"
RENEW_PERCENT = 20  # of the management certificate's life left
JSON = (("Content-Type", "application/json"),)
MAX_SETTINGS = 1 << 20
NO_SETTINGS = "run: rmagent sync; or give --settings FILE"


class Agent:
    """One device: its configuration, facts, log, and clock."""

    def __init__(self, config: Config, log: Log) -> None:
        self.config = config
        self.log = log
        self.dir = config.agent_dir
        self._facts: DeviceFacts | None = None

    @property
    def facts(self) -> DeviceFacts:
        if self._facts is None:
            self._facts = gather(self.config)
        return self._facts

    def run(self) -> Run:
        return Run(self.config, self.facts, self.log, _now, self.connect)

    def _path(self, *names: str) -> str:
        return os.path.join(self.dir, *names)

    # ---- identity -------------------------------------------------------------------------------

    def identity(self) -> crypto.Certificate | None:
        """The management certificate; None when the device is not registered."""
        try:
            blocks = decode_pem(files.read(self._path("cert.pem")))
            return crypto.parse_certificate(blocks[0]) if blocks else None
        except (FileNotFoundError, Error):
            return None

    @property
    def server(self) -> str:
        """The proxy's URL: what registration noted, else the image's."""
        try:
            noted = json.loads(files.read(self._path("server.json")))
            return str(noted["server"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return self.config.server

    def proxy(self) -> Link:
        """A link to the proxy with the management certificate."""
        self._finish_renewal()
        if self.identity() is None:
            raise SettingsError("rmagent", "this device is not registered", hint="run: rmagent register")
        if not self.server:
            raise SettingsError("server", "no server is known", hint="run: rmagent register --server URL")
        try:
            trust = files.read(self._path("trust-store", "cacerts.pem")).decode("ascii", "replace")
        except FileNotFoundError:
            raise SettingsError(
                "rmagent", "the trust store is missing", hint="run: rmagent register"
            ) from None
        context = client_context(ca_pem=trust)
        try:
            context.load_cert_chain(self._path("cert.pem"), self._path("key.pem"))
        except OSError as err:
            raise SettingsError(
                "rmagent",
                f"the management certificate and its key cannot be used: {plain_line(str(err))}",
                hint="run: rmagent register",
            ) from None
        return Link(self.server, context)

    def register(self, server: str, token: str, ca_file: str, fingerprint: str) -> None:
        """Becomes known: key, CSR, token; writes the management identity. The key survives failed tries."""
        self._prepare()
        trust = self._trust(server, ca_file, fingerprint)
        csr = self._management_csr()
        body = {"token": token, **self._facts_json(), "csr": base64.b64encode(csr).decode()}
        with Link(server, client_context(ca_pem=trust)) as link:
            answer = _json(
                link.send(Request("POST", "/rmagent/register", JSON, json.dumps(body).encode())),
                "registration",
            )
        self._keep_identity(answer, trust)
        files.replace(self._path("server.json"), json.dumps({"server": server}).encode(), 0o644)
        self.log.info(f"registered at {server} as {self.facts.unit_id}")

    def renew_identity(self, link: Link) -> None:
        """Renews the management certificate when RENEW_PERCENT of its life are left."""
        cert = self.identity()
        if (
            cert is None
            or _now() < cert.not_after - (cert.not_after - cert.not_before) * RENEW_PERCENT // 100
        ):
            return
        body = {**self._facts_json(), "csr": base64.b64encode(self._management_csr(fresh=True)).decode()}
        answer = _json(
            link.send(Request("POST", "/rmagent/register", JSON, json.dumps(body).encode())), "renewal"
        )
        self._keep_identity(answer, None)
        self.log.info("the management certificate was renewed")

    def _prepare(self) -> None:
        files.need_mount(self.config.tree_root, self.config.root)
        files.make_dir(self.dir, 0o700)
        files.make_dir(self._path("trust-store"), 0o700)
        self._finish_renewal()

    def _finish_renewal(self) -> None:
        """A renewed certificate that lies ready beside the old pair comes into force, after its key."""
        if os.path.exists(self._path("cert.new")):
            if os.path.exists(self._path("key.new")):
                files.rename(self._path("key.new"), self._path("key.pem"))
            files.rename(self._path("cert.new"), self._path("cert.pem"))

    def _trust(self, server: str, ca_file: str, fingerprint: str) -> str:
        """PEM of the CA to trust: from a file, or fetched and compared with its fingerprint."""
        if ca_file:
            try:
                text = files.read(ca_file)
            except FileNotFoundError:
                raise StorageError(f"cannot read {ca_file}: it is not there") from None
            if not decode_pem(text):
                raise SettingsError("ca_file", f"{ca_file} holds no certificate in PEM")
            return "".join(encode_pem(der) for der in decode_pem(text))
        if not fingerprint:
            raise SettingsError(
                "ca_file",
                "nothing says which CA to trust",
                hint="give --ca-file, or --ca-fingerprint with the SHA-256 that `ca-proxy init` printed",
            )
        with Link(server, client_context(verify=False)) as link:
            answer = link.send(Request("GET", "/rmagent/cacerts"))
        if answer.status != 200:
            raise RemoteProtocolError(
                f"{server} does not hand out its CA: {answer.status} {plain_reason(answer)}"
            )
        return straight.by_fingerprint(decode_pem(answer.body), fingerprint)

    def _management_csr(self, *, fresh: bool = False) -> bytes:
        """A CSR over the key in key.pem (registration) or over key.new (renewal), which is kept until it is used."""
        path = self._path("key.new" if fresh else "key.pem")
        try:
            key = keys.read_key(path, None)
        except (FileNotFoundError, Error):
            key = crypto.Key.generate(MANAGEMENT_KEY)
            files.replace(path, lambda fd: key.write(fd, None), 0o600)
        return pkcs10.build(CsrSpec(key.type, Subject(cn=self.facts.unit_id)), key)

    def _keep_identity(self, answer: dict[str, Any], trust: str | None) -> None:
        """Writes certificate and trust, and at a renewal swaps key and certificate. A cut at any step leaves the
        old pair, or what `_finish_renewal` completes."""
        blocks = decode_pem(str(answer.get("certificate", "")).encode())
        if not blocks:
            raise RemoteProtocolError("the answer to the registration holds no certificate")
        cert = crypto.parse_certificate(blocks[0])
        source = "key.new" if trust is None else "key.pem"
        if keys.read_key(self._path(source), None).spki() != cert.spki:
            raise CheckError("the management certificate does not belong to our key")
        cas = decode_pem(str(answer.get("ca", "")).encode())
        anchors = decode_pem(
            (trust or files.read(self._path("trust-store", "cacerts.pem")).decode()).encode()
        )
        crypto.verify_chain(cert.der, cas, [*anchors, *(cas if trust is None else [])], _now(), partial=True)
        bundle = "".join(dict.fromkeys(encode_pem(der) for der in [*anchors, *cas]))
        files.replace(self._path("trust-store", "cacerts.pem"), bundle.encode(), 0o644)
        if trust is not None:
            files.remove_tree(self._path("key.new"))  # of a renewal that this registration overtook
        files.replace(self._path("cert.new"), encode_pem(cert.der).encode(), 0o644)
        self._finish_renewal()

    def _facts_json(self) -> dict[str, Any]:
        facts = self.facts
        return {"unit_id": facts.unit_id, "hostname": facts.hostname, "ips": list(facts.ips)}

    # ---- settings -------------------------------------------------------------------------------

    def sync(self) -> int:
        """Settings from the proxy, then what they ask for, then a report. Works through the stored settings
        when the proxy is away, refuses, or sends what cannot be used: what is due is due."""
        codes = [EX_OK]
        link: Link | None = None
        try:
            link = self.proxy()
            self.renew_identity(link)
            self._report(link)
            self._fetch(link)
        except Error as err:
            if not os.path.exists(self._path("settings.json")):
                raise
            self.log.error(str(err))
            self.log.hint(err.hint)
            self.log.info("going on with the stored settings")
            codes.append(code_of(err))
        finally:
            if link:
                link.close()
        settings = load_settings(self._path("settings.json"))
        codes.append(self.run().apply(settings))
        try:
            with self.proxy() as again:
                self._report(again, self._certs_json(settings))
        except Error as err:
            self.log.warning(f"the report did not arrive: {err}")
            codes.append(EX_TEMPFAIL)
        return exit_code(codes)

    def _fetch(self, link: Link) -> None:
        """Stores what the proxy sends when it is valid; otherwise the stored settings stay."""
        etag = self._tag()
        headers = (("If-None-Match", etag),) if etag else ()
        answer = link.send(Request("GET", "/rmagent/settings", headers))
        if answer.status == 304:
            return
        _json(answer, "settings")
        try:
            settings = parse_settings(answer.body)
        except SettingsError as err:
            raise RemoteProtocolError(
                f"the settings from the proxy are not valid, the old ones stay: {err}", hint=err.hint
            ) from None
        # 0600: the document holds key passwords
        files.replace(self._path("settings.json"), answer.body, 0o600)
        files.replace(self._path("settings.etag"), answer.header("ETag").encode(), 0o600)
        self.log.info(f"new settings with {len(settings.certs)} certificate(s)")

    def _tag(self) -> str:
        """The tag of the stored settings; "" when they must come again: none are there, or they are damaged."""
        try:
            load_settings(self._path("settings.json"))
            tag = files.read(self._path("settings.etag")).decode("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError, Error):
            return ""
        return tag if tag.isprintable() else ""

    def _certs_json(self, settings: Settings) -> list[dict[str, Any]]:
        run = self.run()
        found = []
        for cert in settings.certs:
            live = keys.live(run.tree, cert.friendly_name, cert.key.password).cert
            state = run.tree.state(cert.friendly_name)
            found.append(
                {
                    "friendly_name": cert.friendly_name,
                    "state": "valid" if live and live.not_after > _now() else "missing",
                    "serial": live.serial_hex if live else "",
                    "not_after": live.not_after if live else None,
                    "error": str(state.get("error", ""))[:500],
                }
            )
        return found

    def _report(self, link: Link, certs: list[dict[str, Any]] | None = None) -> None:
        body = {**self._facts_json(), **({"certs": certs} if certs is not None else {})}
        answer = link.send(Request("POST", "/rmagent/report", JSON, json.dumps(body).encode()))
        if answer.status not in {200, 204}:
            raise _refused("report", answer)

    # ---- the way to a certificate's CA ----------------------------------------------------------

    def connect(self, cert: CertSettings, current: crypto.Certificate | None) -> Way:
        """Through the proxy, or straight to the CA; `current` authenticates a renewal straight to the CA."""
        enrollment = cert.enrollment
        if enrollment.est is None and enrollment.scep is None:
            link = self.proxy()
            try:
                self._report(link)  # the proxy computes subject and names from what the device is now
            except Error:
                link.close()
                raise
            return straight.EstWay(link, cert.friendly_name)
        home = os.path.join(self.run().tree.path, cert.friendly_name)
        renew = current is not None
        if enrollment.est is not None:
            return straight.straight_est(self.config, enrollment.est, home, cert, renew=renew)
        assert enrollment.scep is not None
        return straight.straight_scep(self.config, enrollment.scep, home, cert, renew=renew)


def _now() -> int:
    return int(time.time())


def _json(response: Response, what: str) -> dict[str, Any]:
    if response.status != 200:
        raise _refused(what, response)
    try:
        found = load_json(response.body)
    except SettingsError as err:
        raise RemoteProtocolError(f"the answer to the {what} is not JSON: {err}") from None
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"the answer to the {what} is not an object")
    return found


def _refused(what: str, response: Response) -> Error:
    text = f"the proxy refused the {what} ({response.status}): {plain_reason(response) or 'no reason given'}"
    if response.status in {429, 503} or response.status >= 500:
        return TransportError(text, link="http")
    return RemoteProtocolError(text)


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
