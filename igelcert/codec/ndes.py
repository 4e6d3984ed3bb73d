"""The administration page of Microsoft's NDES (mscep_admin): HTML that shows a one-time challenge. Both ends."""

from __future__ import annotations

import re
from html import unescape

from ..errors import RemoteProtocolError
from .http import plain_line

__all__ = ["FULL", "admin_page", "read_challenge"]

MAX_PAGE = 262_144
MAX_CHALLENGE = 128
FULL = "the password cache of NDES is full"
# after the words, never the first hexadecimal digits: those are the CA's thumbprint
_CHALLENGE = re.compile(r"challenge password is:?\s*([0-9A-Za-z]{4,128})(?![0-9A-Za-z])", re.IGNORECASE)
_HEAD = (
    '<HTML><Head><Meta HTTP-Equiv="Content-Type" Content="text/html; charset=UTF-16"><Title>Network Device Enrollment'
    " Service</Title></Head><Body><P>Network Device Enrollment Service"
)


def read_challenge(body: bytes) -> str:
    """The challenge that the page shows; RemoteProtocolError says why it shows none. UTF-16 or UTF-8.

    status_hint 503: the cache of challenges is full, which passes; 403: this account may not.
    """
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", _decode(body[:MAX_PAGE]))).split())
    low = text.lower()
    if "password cache is full" in low:
        raise RemoteProtocolError(
            FULL,
            status_hint=503,
            hint="it holds five by default, each for an hour: raise PasswordMax in the registry of NDES, or wait",
        )
    if "sufficient permission" in low:
        raise RemoteProtocolError(
            "the account is not allowed to get challenges from NDES",
            status_hint=403,
            hint="give it the right to enroll for the templates of NDES, or use another account",
        )
    found = _CHALLENGE.search(text)
    if found is None:
        raise RemoteProtocolError(
            "the page shows no challenge password",
            status_hint=502,
            hint="is the address that of mscep_admin, and does NDES ask for passwords?"
            + (f" It says: {plain_line(text, 120)}" if text and "thumbprint" not in low else ""),
        )
    return found[1]


def _decode(body: bytes) -> str:
    if body[:2] == b"\xff\xfe":
        return body[2:].decode("utf-16-le", "replace")
    if body[:2] == b"\xfe\xff":
        return body[2:].decode("utf-16-be", "replace")
    if body[1:2] == b"\0":  # IIS without a byte order mark
        return body.decode("utf-16-le", "replace")
    return body.decode("utf-8", "replace").removeprefix("\ufeff")


def admin_page(thumbprint: str, challenge: str | None) -> bytes:
    """The page as IIS sends it, UTF-16LE; challenge None: the cache is full."""
    if challenge is None:
        tail = "</P><P> The password cache is full.</P>"
    else:
        tail = (
            f"</P><P> The thumbprint (hash value) for the CA certificate is: <B> {thumbprint} </B>"
            f"<P> The enrollment challenge password is: <B> {challenge} </B>"
            "<P> This password can be used only once and will expire within 60 minutes."
        )
    return b"\xff\xfe" + (_HEAD + tail + "</Body></HTML>").encode("utf-16-le")
