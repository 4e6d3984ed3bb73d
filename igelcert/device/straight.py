"""The ways to a certificate's CA: EST, through the proxy or straight, and SCEP straight.

A way asks for one certificate and says what the CA answered; the checks are the flow's.
"""

from __future__ import annotations

import base64
import os
import time

from .. import crypto
from ..codec import est, pkcs10
from ..codec.http import plain_line
from ..codec.pem import encode_pem
from ..errors import CheckError, SettingsError
from ..model import Outcome, Pending, Refused
from ..settings import CertSettings, EstSettings, ScepSettings
from . import files, keys
from .config import Config
from .transport import Link, client_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

    from ..codec.pkimessage import Identity
    from ..codec.scep import Authorities, Capabilities

__all__ = ["EstWay", "ScepWay", "by_fingerprint", "straight_est", "straight_scep"]

SELF_SIGNED_DAYS = 30
BACKDATE = 3600


class EstWay:
    """EST on a link, under a label."""

    def __init__(self, link: Link, label: str | None) -> None:
        self._link = link
        self._label = label

    def enroll(self, key: crypto.Key, csr: bytes, *, renew: bool, kept: bool) -> Outcome:
        answer = self._link.send(est.enroll_request(csr, self._label, renew=renew))
        return est.enroll_reply(answer, int(time.time()))

    def cacerts(self) -> list[bytes]:
        return est.cacerts_reply(self._link.send(est.cacerts_request(self._label)))

    def close(self) -> None:
        self._link.close()


def straight_est(
    config: Config, straight: EstSettings, home: str, cert: CertSettings, *, renew: bool
) -> EstWay:
    """`home`: directory of the live certificate, which authenticates its renewal."""
    context = _est_trust(config, straight)
    try:
        if renew:
            password = cert.key.crypt_password or None
            context.load_cert_chain(os.path.join(home, "cert.pem"), os.path.join(home, "pkey.pem"), password)
        elif straight.client_certificate:
            pair = (straight.client_certificate, straight.client_key or straight.client_certificate)
            at = [config.at(path) for path in pair]
            context.load_cert_chain(at[0], at[1], straight.crypt_client_key_password or None)
    except OSError as err:
        raise SettingsError(
            "enrollment.est.client_certificate", f"cannot be used: {plain_line(str(err))}"
        ) from None
    authorization = ""
    if straight.username:
        pair_text = f"{straight.username}:{straight.crypt_password}".encode()
        authorization = f"Basic {base64.b64encode(pair_text).decode()}"
    return EstWay(Link(straight.server, context, authorization=authorization), straight.label or None)


def _est_trust(config: Config, straight: EstSettings) -> ssl.SSLContext:
    if straight.ca_file:
        return client_context(ca_pem=_ca_file(config, "enrollment.est.ca_file", straight.ca_file))
    if straight.ca_fingerprint:
        # nothing is sent, and what comes counts only by its fingerprint (RFC 7030 4.1.1)
        with Link(straight.server, client_context(verify=False)) as link:
            cas = est.cacerts_reply(link.send(est.cacerts_request(straight.label or None)))
        return client_context(ca_pem=by_fingerprint(cas, straight.ca_fingerprint))
    return client_context(ca_dir=config.at(config.ca_store))


def _ca_file(config: Config, option: str, name: str) -> str:
    path = config.at(name)
    try:
        return files.read(path).decode("ascii", "replace")
    except FileNotFoundError:
        raise SettingsError(option, f"{path} is not there") from None


def by_fingerprint(certs: list[bytes], fingerprint: str) -> str:
    """PEM of the certificate that has that SHA-256; CheckError when none has."""
    wanted = fingerprint.replace(":", "").replace(" ", "").lower()
    if len(wanted) != 64:
        raise SettingsError("ca_fingerprint", "is not a SHA-256 fingerprint of 64 hexadecimal digits")
    for der in certs:
        if crypto.sha256(der).hex() == wanted:
            return encode_pem(der)
    raise CheckError(
        "no certificate of the server has that fingerprint",
        hint="compare the fingerprint; this may not be the server you think it is",
    )


# ---- SCEP ---------------------------------------------------------------------------------------


class ScepWay:
    """SCEP (RFC 8894) with the device's own RSA key, which opens the answer.

    old: the live key with its certificate, which sign a renewal. A request that was sent before is asked after
    with CertPoll first.
    """

    def __init__(self, link: Link, path: str, straight: ScepSettings, old: Identity | None) -> None:
        self._link = link
        self._path = path
        self._straight = straight
        self._old = old
        self._found: tuple[Capabilities, Authorities, crypto.CertificateSet] | None = None

    def close(self) -> None:
        self._link.close()

    def cacerts(self) -> list[bytes]:
        return [cert.der for cert in self._server()[1].cas]

    def enroll(self, key: crypto.Key, csr: bytes, *, renew: bool, kept: bool) -> Outcome:
        from ..codec import pkimessage

        request = pkcs10.parse(csr, verify=False)  # our own: we signed it
        mine = self._old if renew and self._old else self._self_signed(key, request)
        if kept:
            authorities = self._server()[1]
            ca = next((c for c in authorities.cas if c.is_ca), authorities.recipient)
            if authorities.recipient.is_ca:
                ca = authorities.recipient
            asked = pkimessage.issuer_and_subject(ca.subject_der, request.subject_der)
            outcome = self._exchange(pkimessage.CERT_POLL, asked, request, mine)
            # a refusal: the server takes no polls, or never got the request, or lets us try again
            if not isinstance(outcome, Refused):
                return outcome
        # RenewalReq (17) is announced by servers that refuse it; a PKCSReq signed by the old key is a renewal, too
        return self._exchange(pkimessage.PKCS_REQ, csr, request, mine)

    def _server(self) -> tuple[Capabilities, Authorities, crypto.CertificateSet]:
        from ..codec import scep

        if self._found is None:
            profile = self._straight.profile
            caps = scep.caps_reply(self._link.send(scep.caps_request(self._path, profile)))
            certs = scep.cacert_reply(self._link.send(scep.cacert_request(self._path, profile)))
            authorities = scep.authorities(certs, self._straight.fingerprint)
            self._found = caps, authorities, authorities.signers
        return self._found

    def _self_signed(self, key: crypto.Key, request: pkcs10.CertificationRequest) -> Identity:
        from ..codec import pkimessage

        now = int(time.time())
        serial = int.from_bytes(crypto.sha256(request.der)[:8], "big") >> 1 | 1
        subject = request.subject_der
        return pkimessage.Identity(
            key,
            pkimessage.self_signed(key, subject, serial, now - BACKDATE, now + SELF_SIGNED_DAYS * 86_400),
        )

    def _exchange(
        self, kind: int, content: bytes, request: pkcs10.CertificationRequest, mine: Identity
    ) -> Outcome:
        from ..codec import pkimessage, scep

        caps, authorities, signers = self._server()
        nonce = os.urandom(pkimessage.NONCE_SIZE)
        transaction = scep.transaction_id(request.spki)
        message = pkimessage.write(
            kind,
            content,
            mine,
            transaction_id=transaction,
            sender_nonce=nonce,
            recipient=pkimessage.Recipient(authorities.recipient.der),
            algorithms=caps.algorithms(legacy=False),
        )
        response = self._link.send(scep.operation_request(self._path, message, post=caps.post))
        reply = scep.operation_reply(response, signers, transaction=transaction, nonce=nonce)
        if isinstance(reply, Refused):
            return reply
        outcome = scep.outcome(reply, mine)
        if isinstance(outcome, Pending):
            return Pending(outcome.retry_after, "the CA has not decided yet")
        return outcome


def straight_scep(
    config: Config, straight: ScepSettings, home: str, cert: CertSettings, *, renew: bool
) -> ScepWay:
    from urllib.parse import urlsplit

    from ..codec import pkimessage
    from ..codec.pem import decode_pem

    parts = urlsplit(straight.url)
    if parts.username is not None or parts.fragment:
        raise SettingsError("enrollment.scep.url", "is not the address of a SCEP server")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    old = None
    if renew:
        key = keys.read_key(os.path.join(home, "pkey.pem"), cert.key.password)
        old = pkimessage.Identity(key, decode_pem(files.read(os.path.join(home, "cert.pem")))[0])
    context = None
    if parts.scheme == "https":
        if straight.ca_file:
            context = client_context(ca_pem=_ca_file(config, "enrollment.scep.ca_file", straight.ca_file))
        else:
            context = client_context(ca_dir=config.at(config.ca_store))
    elif not straight.fingerprint:
        raise SettingsError(
            "enrollment.scep.fingerprint",
            "is missing, and the URL is plain http: anybody between could pose as the CA",
            hint="give the MD5, SHA-1 or SHA-256 fingerprint of the root CA certificate, or an https URL",
        )
    link = Link(f"{parts.scheme}://{parts.netloc}", context)
    return ScepWay(link, path, straight, old)
