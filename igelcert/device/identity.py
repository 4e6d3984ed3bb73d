"""The management identity: what makes this device known to the proxy. Its key, certificate, trust and server."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .. import crypto
from ..codec import pkcs10
from ..codec.http import Request, Response, plain_line, plain_reason
from ..codec.pem import decode_pem, encode_pem
from ..errors import (
    CheckError,
    CryptoError,
    Error,
    RemoteProtocolError,
    SettingsError,
    StorageError,
    TransportError,
)
from ..model import CsrSpec, DeviceFacts, Subject
from ..settings import load_json
from . import files, keys, straight
from .config import Config
from .store import Lock
from .transport import Link, client_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any

__all__ = ["JSON", "Identity", "json_object", "refusal"]

KEY_TYPE = "ec_prime256v1"
LOCK = ".lock"
LOCK_SECONDS = 30.0
RENEW_PERCENT = 20  # of the management certificate's life left
JSON = (("Content-Type", "application/json"),)


class Identity:
    """What lies in <wfs>/igel-rmagent. `facts`: asked for when they are needed. `now`: seconds since 1970."""

    def __init__(self, config: Config, facts: Callable[[], DeviceFacts], now: Callable[[], int]) -> None:
        self._config = config
        self._facts = facts
        self._now = now
        self.dir = config.agent_dir
        self._alone = False

    def path(self, *names: str) -> str:
        return os.path.join(self.dir, *names)

    # ---- what is there --------------------------------------------------------------------------

    def certificate(self) -> crypto.Certificate | None:
        """The management certificate; None when the device is not registered."""
        try:
            blocks = decode_pem(files.read(self.path("cert.pem")))
            return crypto.parse_certificate(blocks[0]) if blocks else None
        except (FileNotFoundError, Error):
            return None

    @property
    def server(self) -> str:
        """The proxy's URL: what registration noted, else the image's."""
        try:
            noted = json.loads(files.read(self.path("server.json")))
            return str(noted["server"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return self._config.server

    def check_registered(self) -> None:
        # one that lies ready comes into force as soon as somebody is alone here
        if self.certificate() is None and not os.path.exists(self.path("cert.new")):
            raise SettingsError("rmagent", "this device is not registered", hint="run: rmagent register")

    def link(self) -> Link:
        """A link to the proxy with the management certificate."""
        self.check_registered()
        if not self.server:
            raise SettingsError("server", "no server is known", hint="run: rmagent register --server URL")
        try:
            trust = files.read(self.path("trust-store", "cacerts.pem")).decode("ascii", "replace")
        except FileNotFoundError:
            raise SettingsError(
                "rmagent", "the trust store is missing", hint="run: rmagent register"
            ) from None
        context = client_context(ca_pem=trust)
        try:
            self._load(context)
        except SettingsError:
            if self._alone:
                raise
            with self.alone():  # a renewal is at its last steps, or was cut there
                self._load(context)
        return Link(self.server, context)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.path("cert.pem"), self.path("key.pem"))
        except OSError as err:
            raise SettingsError(
                "rmagent",
                f"the management certificate and its key cannot be used: {plain_line(str(err))}",
                hint="run: rmagent register",
            ) from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes what lies here meanwhile. What a run left that was cut is ended or removed first."""
        with Lock(self.path(LOCK), LOCK_SECONDS, "rmagent"):
            self._alone = True
            try:
                files.sweep(self.dir)
                files.sweep(self.path("trust-store"))
                self._finish_renewal()
                yield
            finally:
                self._alone = False

    def facts_json(self) -> dict[str, Any]:
        facts = self._facts()
        return {"unit_id": facts.unit_id, "hostname": facts.hostname, "ips": list(facts.ips)}

    # ---- becoming known and staying known -------------------------------------------------------

    def register(self, server: str, token: str, ca_file: str, fingerprint: str) -> None:
        """Key, CSR, token; writes the management identity. The key survives failed tries."""
        files.need_mount(self._config.tree_root, self._config.root)
        files.make_lasting_dir(self.dir, 0o700)
        files.make_lasting_dir(self.path("trust-store"), 0o700)
        with self.alone():
            trust = _trust(server, ca_file, fingerprint)
            csr = self._csr()
            body = {"token": token, **self.facts_json(), "csr": base64.b64encode(csr).decode()}
            with Link(server, client_context(ca_pem=trust)) as link:
                answer = _post(link, body, "registration")
            self._keep(answer, trust)
            files.replace(self.path("server.json"), json.dumps({"server": server}).encode(), 0o644)

    def renewal_at(self) -> int | None:
        """From when on the management certificate is renewed; None when there is none."""
        cert = self.certificate()
        if cert is None:
            return None
        return cert.not_after - (cert.not_after - cert.not_before) * RENEW_PERCENT // 100

    def renew(self, link: Link, issuer: str = "") -> bool:
        """Renews the management certificate when RENEW_PERCENT of its life are left, or when it is not from the CA with
        that SHA-256, which issues now; True when it did."""
        due = self.renewal_at()
        if due is None or (self._now() < due and self._is_from(issuer)):
            return False
        body = {**self.facts_json(), "csr": base64.b64encode(self._csr(fresh=True)).decode()}
        self._keep(_post(link, body, "renewal"), None)
        return True

    def _is_from(self, issuer: str) -> bool:
        """Is the management certificate from that CA? Yes, too, when we do not know the CA (yet)."""
        cert = self.certificate()
        for der in self._anchors():
            if cert is not None and crypto.sha256(der).hex() == issuer:
                try:
                    crypto.verify_chain(cert.der, [], [der], self._now(), partial=True)
                except CryptoError:
                    return False
        return True

    def _anchors(self) -> list[bytes]:
        try:
            return decode_pem(files.read(self.path("trust-store", "cacerts.pem")))
        except FileNotFoundError:
            return []

    @property
    def trust(self) -> str:
        """SHA-256 over the CAs that the proxy is known by, hexadecimal: by it the proxy knows which we trust."""
        return crypto.sha256(b"".join(self._anchors())).hex()

    def take_trust(self, link: Link, wanted: str) -> bool:
        """Trusts the CAs that the proxy names, and no others, when their SHA-256 (as of `trust`) is another than ours;
        True when it did. The proxy itself must be known by them first: else the old ones stay, and an Error says so."""
        if not wanted or wanted == self.trust:
            return False
        found = decode_pem(self._cacerts(link))
        if crypto.sha256(b"".join(found)).hex() != wanted:
            return False  # they changed meanwhile: we hear of it again
        text = "".join(encode_pem(der) for der in found)
        context = client_context(ca_pem=text)
        self._load(context)
        with Link(self.server, context) as other:
            self._cacerts(other)
        files.replace(self.path("trust-store", "cacerts.pem"), text.encode(), 0o644)
        return True

    def _cacerts(self, link: Link) -> bytes:
        answer = link.send(Request("GET", "/rmagent/cacerts"))
        if answer.status != 200:
            raise refusal("question for its CAs", answer)
        return answer.body

    def _csr(self, *, fresh: bool = False) -> bytes:
        """A CSR over the key in key.pem (registration) or over key.new (renewal), which is kept until it is used."""
        path = self.path("key.new" if fresh else "key.pem")
        try:
            key = keys.read_key(path, None)
        except (FileNotFoundError, Error):
            key = crypto.Key.generate(KEY_TYPE)
            files.replace(path, lambda fd: key.write(fd, None), 0o600)
        return pkcs10.build(CsrSpec(key.type, Subject(cn=self._facts().unit_id)), key)

    def _keep(self, answer: dict[str, Any], trust: str | None) -> None:
        """Writes certificate and trust, and at a renewal swaps key and certificate. A cut at any step leaves the
        old pair, or what `_finish_renewal` completes."""
        blocks = decode_pem(str(answer.get("certificate", "")).encode())
        if not blocks:
            raise RemoteProtocolError("the answer to the registration holds no certificate")
        cert = crypto.parse_certificate(blocks[0])
        source = "key.new" if trust is None else "key.pem"
        if keys.read_key(self.path(source), None).spki() != cert.spki:
            raise CheckError("the management certificate does not belong to our key")
        cas = decode_pem(str(answer.get("ca", "")).encode())
        anchors = decode_pem((trust or files.read(self.path("trust-store", "cacerts.pem")).decode()).encode())
        # the proxy is known by its TLS certificate: what it gives as its CAs counts as much as what we trusted before, and
        # of one that changes its CA we may trust the old one alone
        crypto.verify_chain(cert.der, [], [*anchors, *cas], self._now(), partial=True)
        bundle = "".join(dict.fromkeys(encode_pem(der) for der in [*anchors, *cas]))
        files.replace(self.path("trust-store", "cacerts.pem"), bundle.encode(), 0o644)
        if trust is not None:
            files.remove_tree(self.path("key.new"))  # of a renewal that this registration overtook
        files.replace(self.path("cert.new"), encode_pem(cert.der).encode(), 0o644)
        self._finish_renewal()

    def _finish_renewal(self) -> None:
        """A renewed certificate that lies ready beside the old pair comes into force, after its key."""
        if os.path.exists(self.path("cert.new")):
            if os.path.exists(self.path("key.new")):
                files.rename(self.path("key.new"), self.path("key.pem"))
            files.rename(self.path("cert.new"), self.path("cert.pem"))


def _trust(server: str, ca_file: str, fingerprint: str) -> str:
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
    # nothing is sent, and what comes counts only when its fingerprint is the one that was given (RFC 7030 4.1.1)
    with Link(server, client_context(verify=False)) as link:
        answer = link.send(Request("GET", "/rmagent/cacerts"))
    if answer.status != 200:
        raise RemoteProtocolError(
            f"{server} does not hand out its CA: {answer.status} {plain_reason(answer)}"
        )
    return straight.by_fingerprint(decode_pem(answer.body), fingerprint)


def _post(link: Link, body: dict[str, Any], what: str) -> dict[str, Any]:
    return json_object(link.send(Request("POST", "/rmagent/register", JSON, json.dumps(body).encode())), what)


def json_object(response: Response, what: str) -> dict[str, Any]:
    """The object of a 200; another status is an error with the proxy's sentence. what: "registration" ..."""
    if response.status != 200:
        raise refusal(what, response)
    try:
        found = load_json(response.body)
    except SettingsError as err:
        raise RemoteProtocolError(f"the answer to the {what} cannot be read: {err}") from None
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"the answer to the {what} is not an object")
    return found


def refusal(what: str, response: Response) -> Error:
    text = f"the proxy refused the {what} ({response.status}): {plain_reason(response) or 'no reason given'}"
    if response.status in {429, 503} or response.status >= 500:
        return TransportError(text, link="http")
    return RemoteProtocolError(text)
