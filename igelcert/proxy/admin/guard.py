"""Who is asking, and what an answer must say to browsers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Response, g, request

from .. import audit
from ..context import Context
from ..identity import address_of, is_frontend
from . import accounts, sessions
from .sessions import Session

__all__ = ["Caller", "address", "bearer", "browser", "is_secure", "protect", "stand_as"]

log = logging.getLogger("igelcert.proxy")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """A person with a session, or a program with a token."""

    name: str
    role: str
    session: Session | None = None

    @property
    def may_change(self) -> bool:
        return self.role == "admin"


def bearer(context: Context) -> Caller | None:
    """The program whose token the request carries; LoginRefused when that does not count."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        return None
    found = accounts.who_has(context, secret.strip())
    if found is not None:
        return Caller(f"token {found.name}", found.role)
    if accounts.note_token(context, address(context)):
        log.warning(
            "%s -: a token that does not count: it is not known here, or has expired", address(context)
        )
    raise accounts.LoginRefused("this token does not count: it is not known here, or has expired")


def browser(context: Context) -> Caller | None:
    """The person whose session the request's cookie is."""
    secret = request.cookies.get(sessions.COOKIE, "")
    session = sessions.find(context, secret) if secret else None
    return Caller(session.account.name, session.account.role, session) if session is not None else None


@contextmanager
def stand_as(caller: Caller) -> Iterator[None]:
    """What is done in this block is recorded as the caller's doing."""
    g.unit_id = caller.name  # for the log line
    with audit.acts(caller.name):
        yield


def is_secure(context: Context) -> bool:
    """Did the browser come over TLS? Only a front end that is trusted can say so."""
    if request.is_secure:
        return True
    trusted = is_frontend(context, request.remote_addr or "")
    return trusted and request.headers.get("X-Forwarded-Proto", "").lower() == "https"


def address(context: Context) -> str:
    """Where the request comes from."""
    return address_of(context, request.environ)


def protect(response: Response) -> Response:
    """The headers that every answer to a browser has."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
