"""A person at a browser that knows no script: forms, cookies, redirects. Over a real socket."""

from __future__ import annotations

import http.client
import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode

from tests.support.chain import Proxy

__all__ = ["PASSWORD", "Answer", "Person"]

PASSWORD = "correct horse battery staple"


@dataclass
class Answer:
    """took: seconds until it was whole."""

    status: int
    headers: http.client.HTTPMessage
    text: str
    took: float

    @property
    def place(self) -> str:
        return self.headers.get("Location", "")


@dataclass
class Person:
    port: int
    cookie: str = ""
    said: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, gate: Proxy, name: str = "admin", password: str = "") -> Person:
        """Logged in, with a password of its own."""
        made = cls(gate.admin_port)
        first = password or gate.password
        assert made.log_in(name, first).status == 303
        form = {"old_password": first, "new_password": PASSWORD, "again": PASSWORD}
        assert made.post("/password", form).status == 303
        return made

    def log_in(self, name: str, password: str) -> Answer:
        answer = self.ask("POST", "/login", {"name": name, "password": password})
        if set_cookie := answer.headers.get("Set-Cookie"):
            self.cookie = set_cookie.partition(";")[0]
        return answer

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, path: str, form: dict[str, str] | None = None) -> Answer:
        token = re.search(r'name="csrf" value="(\w+)"', self.get("/password").text)
        return self.ask("POST", path, {"csrf": token[1] if token else "", **(form or {})})

    def ask(
        self,
        method: str,
        path: str,
        form: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = {"Accept": "text/html", **({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})}
        body = None if form is None else urlencode(form)
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        return self._exchange(method, path, body, sent)

    def send(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """A body as it is."""
        sent = {"Accept": "text/html", "Cookie": self.cookie, **headers}
        return self._exchange("POST", path, body, sent)

    def _exchange(self, method: str, path: str, body: str | bytes | None, sent: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        start = time.monotonic()
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            text = answer.read().decode()
            self.said.append(text)
            return Answer(answer.status, answer.headers, text, time.monotonic() - start)
        finally:
            connection.close()
