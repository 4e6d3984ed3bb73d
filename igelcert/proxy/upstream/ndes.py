"""Fetches one-time challenges from the administration page of Microsoft's NDES, by NTLM or Basic.

NTLM authenticates a connection, so all of it goes over one. Kerberos is not tried: the proxy has no ticket.
"""

from __future__ import annotations

import base64
import binascii

import spnego
import urllib3
from spnego.exceptions import SpnegoError
from urllib3.exceptions import HTTPError

from ...codec import ndes
from ...errors import RemoteProtocolError, TransportError
from ..turns import waiting
from .channel import client_context
from .config import CaConfig

__all__ = ["fetch_challenge"]

MAX_PAGE = 262_144
HINT = "compare user (DOMAIN\\NAME) and password with NDES: ca-proxy ca set-scep"


def fetch_challenge(config: CaConfig, timeout: float) -> str:
    """A fresh challenge. TransportError: NDES cannot be reached, or its cache is full; RemoteProtocolError."""
    settings = config.scep
    tls, host, port, path = settings.ndes_where
    pool: urllib3.HTTPConnectionPool
    limits = urllib3.Timeout(connect=min(10.0, timeout), read=timeout)
    if tls:
        context = client_context(settings.certificate)
        pool = urllib3.HTTPSConnectionPool(host, port, ssl_context=context, maxsize=1, timeout=limits)
    else:
        pool = urllib3.HTTPConnectionPool(host, port, maxsize=1, timeout=limits)
    try:
        with waiting():
            status, body = _ask(pool, path, host, settings.ndes_user, config.password)
    except (HTTPError, OSError) as err:
        raise TransportError(
            f"the page of challenges on {host}:{port} cannot be reached ({type(err).__name__})", link="ndes"
        ) from None
    finally:
        pool.close()
    if status in {401, 403}:
        raise RemoteProtocolError(
            f"NDES does not let {settings.ndes_user} see its challenges ({status})",
            status_hint=502,
            hint=HINT,
        )
    if status != 200:
        raise RemoteProtocolError(f"the page of challenges answers {status}", status_hint=502)
    try:
        return ndes.read_challenge(body)
    except RemoteProtocolError as err:
        if err.status_hint == 503:
            raise TransportError(str(err), link="ndes", hint=err.hint) from None
        raise


def _ask(
    pool: urllib3.HTTPConnectionPool, path: str, host: str, user: str, password: str
) -> tuple[int, bytes]:
    status, offers, body = _get(pool, path, "")
    if status != 401:
        return status, body
    names = {offer.split(" ", 1)[0].lower() for offer in offers}
    if "ntlm" in names:
        return _ntlm(pool, path, host, user, password)
    if "basic" in names:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        status, _, body = _get(pool, path, f"Basic {token}")
        return status, body
    raise RemoteProtocolError(
        f"the page of challenges asks for {', '.join(sorted(names)) or 'an unknown'} authentication",
        status_hint=502,
        hint="allow NTLM or Basic for mscep_admin in IIS",
    )


def _ntlm(
    pool: urllib3.HTTPConnectionPool, path: str, host: str, user: str, password: str
) -> tuple[int, bytes]:
    try:
        client = spnego.client(user, password, hostname=host, service="http", protocol="ntlm")
        status, offers, body = _get(pool, path, _ntlm_header(client.step()))
        if status != 401:
            return status, body
        offer = next((each for each in offers if each.lower().startswith("ntlm ")), "")
        status, _, body = _get(pool, path, _ntlm_header(client.step(base64.b64decode(offer[5:]))))
    except (SpnegoError, binascii.Error, ValueError) as err:
        raise RemoteProtocolError(
            f"NTLM with the page of challenges failed ({type(err).__name__})", status_hint=502, hint=HINT
        ) from None
    return status, body


def _ntlm_header(token: bytes | None) -> str:
    return f"NTLM {base64.b64encode(token or b'').decode()}"


def _get(pool: urllib3.HTTPConnectionPool, path: str, authorization: str) -> tuple[int, list[str], bytes]:
    headers = {"Authorization": authorization} if authorization else {}
    answer = pool.urlopen("GET", path, headers=headers, redirect=False, retries=False, preload_content=False)
    body = answer.read(MAX_PAGE)
    if len(body) < MAX_PAGE:
        answer.release_conn()  # the next step must come over the same connection
    else:
        answer.close()
    return answer.status, answer.headers.getlist("WWW-Authenticate"), body
