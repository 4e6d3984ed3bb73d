"""The lab CA's imitation of NDES's administration page: one-time challenges, five at a time, an hour each."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import threading
import time

from ..codec.http import Request, Response
from ..codec.ndes import admin_page

__all__ = ["AdminPage"]

CACHE = 5
LIFE = 3600.0


class AdminPage:
    def __init__(self, user: str, password: str) -> None:
        self._login = f"{user}:{password}".encode()
        self._open = bool(user)
        self._lock = threading.Lock()
        self._challenges: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<AdminPage {len(self._challenges)} of {CACHE}>"

    def answer(self, request: Request) -> Response:
        if not self._open or not self._basic(request):
            return Response(401, (("WWW-Authenticate", 'Basic realm="lab-ca"'),))
        page = admin_page("00112233 44556677 8899AABB CCDDEEFF", self._fresh())
        return Response(200, (("Content-Type", "text/html"),), page)

    def take(self, challenge: str) -> bool:
        """Is it one of ours? It is used up by this."""
        with self._lock:
            made = self._challenges.pop(challenge, None)
        return made is not None and time.monotonic() - made < LIFE

    def _fresh(self) -> str | None:
        moment = time.monotonic()
        with self._lock:
            for each, made in list(self._challenges.items()):
                if moment - made >= LIFE:
                    del self._challenges[each]
            if len(self._challenges) >= CACHE:
                return None
            challenge = secrets.token_hex(8).upper()
            self._challenges[challenge] = moment
            return challenge

    def _basic(self, request: Request) -> bool:
        scheme, _, value = request.header("Authorization").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(value.strip(), validate=True)
        except binascii.Error:
            return False
        return hmac.compare_digest(given, self._login)
