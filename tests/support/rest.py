"""A program that uses the REST interface."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any

from tests.support.chain import Proxy

__all__ = ["Rest"]


@dataclass
class Rest:
    """answers: everything that the proxy ever said to this program, for those who look for secrets in it."""

    port: int
    token: str = field(repr=False)
    answers: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, proxy: Proxy, role: str = "admin", name: str = "") -> Rest:
        made = proxy.cli("token", "add", name or f"test-{role}", "--role", role).strip()
        return cls(proxy.admin_port, made)

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            connection.request(method, f"/api/v1{path}", body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        self.answers.append(text)
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, text

    def ask(self, method: str, path: str, body: Any = None, *, status: int | None = None) -> Any:
        """The decoded answer, which must have that status (2xx when none is named)."""
        data = None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data else {}
        code, _, text = self.raw(method, path, data, kind)
        assert code == status if status else 200 <= code < 300, f"{method} {path}: {code} {text}"
        return json.loads(text) if text else None
