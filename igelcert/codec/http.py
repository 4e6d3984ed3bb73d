"""HTTP messages as values, and the few header fields that EST and SCEP need."""

from __future__ import annotations

import re

from ..record import record

__all__ = ["Request", "Response", "parse_retry_after", "plain_line", "plain_reason"]

RETRY_MAX = 86_400
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# IMF-fixdate, RFC 850 and asctime (RFC 9110 5.6.7); compiled when one comes
_DATES = (
    r"[a-z]{3}, (?P<d>\d{2}) (?P<m>[a-z]{3}) (?P<y>\d{4}) (?P<t>\d{2}:\d{2}:\d{2}) gmt",
    r"[a-z]{6,9}, (?P<d>\d{2})-(?P<m>[a-z]{3})-(?P<y>\d{2}) (?P<t>\d{2}:\d{2}:\d{2}) gmt",
    r"[a-z]{3} (?P<m>[a-z]{3}) (?P<d>[ \d]\d) (?P<t>\d{2}:\d{2}:\d{2}) (?P<y>\d{4})",
)

Headers = tuple[tuple[str, str], ...]


def _header(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key.lower() == name.lower()), "")


@record
class Request:
    """`path` is percent-encoded and begins with a slash."""

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        """The first field of that name, "" when there is none."""
        return _header(self.headers, name)


@record
class Response:
    status: int
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        """The first field of that name, "" when there is none."""
        return _header(self.headers, name)


def parse_retry_after(value: str, now: int, default: int = 60) -> int:
    """Retry-After (RFC 9110 10.2.3) as seconds from `now`, within 1 .. 86400; `default` when unreadable."""
    text = value.strip().lower()
    if text.isdecimal() and text.isascii():
        return _bounded(int(text[:12]))
    moment = _http_date(text)
    return default if moment is None else _bounded(moment - now)


def _bounded(seconds: int) -> int:
    return max(1, min(RETRY_MAX, seconds))


def _http_date(text: str) -> int | None:
    for pattern in _DATES:
        found = re.fullmatch(pattern, text)
        if found and found["m"] in _MONTHS:
            year = int(found["y"])
            if year < 100:
                year += 2000 if year < 70 else 1900
            hour, minute, second = map(int, found["t"].split(":"))
            day = int(found["d"])
            if not (1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
                return None
            import calendar  # rarely needed, and it brings locale along

            return calendar.timegm((year, _MONTHS.index(found["m"]) + 1, day, hour, minute, second))
    return None


def plain_line(text: str, limit: int = 300) -> str:
    """Foreign text as one printable line of at most `limit` characters."""
    cut = text[: 4 * limit]
    clean = "".join(char if char.isprintable() else " " for char in cut)
    line = " ".join(clean.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plain_reason(response: Response, limit: int = 300) -> str:
    """What a refusal says, for people: text, HTML without its tags, or the "error" of a JSON object."""
    text = response.body[:65_536].decode("utf-8", "replace")
    kind = response.header("Content-Type").lower()
    if "json" in kind:
        found = re.search(r'"(?:error|message|detail)"\s*:\s*"((?:[^"\\]|\\.){1,2000})"', text)
        text = re.sub(r"\\(.)", r"\1", found[1]) if found else text
    elif "html" in kind or text.lstrip()[:1] == "<":
        text = re.sub(r"(?is)<(script|style|head)\b.*?</\1\s*>", " ", text)
        text = re.sub(r"<[^>]*>", " ", text)
        for entity, char in (("&nbsp;", " "), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
            text = text.replace(entity, char)
    elif response.body[:1] in {b"\x30", b"\x00"}:
        return ""
    return plain_line(text, limit)
