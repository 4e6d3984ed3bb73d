"""What all pages share: who may see them, forged forms, messages, times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from flask import (
    Blueprint,
    Response,
    g,
    make_response,
    redirect,
    render_template,
    request,
    stream_with_context,
    url_for,
)
from werkzeug.exceptions import HTTPException

from .... import __version__
from ....errors import ConflictError, Error, SettingsError
from ...context import Context
from ...database import now
from ...framing import CUT
from .. import guard, sessions
from ..forms import Problems
from ..guard import Caller
from ..rest.operations import NDJSON

__all__ = [
    "Answer",
    "Page",
    "caller",
    "done",
    "dress",
    "form",
    "lines",
    "number",
    "offset_links",
    "partial",
    "problem_lines",
    "retype",
    "show",
    "takes_cut",
    "to_login",
    "unsure",
    "upload",
    "wants_lines",
]

PAGE_SIZE = 50
DAY = 86_400
UPLOADS = {"pages.ca_save", "pages.ca_test", "pages.ca_readout", "pages.device_import"}
Answer = Response | str
Page = Callable[..., Answer]

# what a page says after something was done; the address carries the word alone
DONE = {
    "saved": "Saved. It counts from the next request on.",
    "stored": "Saved. Its devices are told at once.",
    "removed": "Removed.",
    "moved": "Moved.",
    "assigned": "Assigned. The devices are told at once.",
    "unassigned": "Taken back. The devices are told at once.",
    "asked": "Asked. The devices are told at once, and each renews in its window.",
    "asked-fast": "Asked. The devices are told at once; it is more than the CA's rate allows in that time, and some will "
    "wait for their turn.",
    "renewing": "The device is told to renew at once.",
    "password": "The new password counts. Other sessions of this account have ended.",
    "made": "Made.",
    "changed": "Changed.",
    "out": "You have logged out.",
    "over": "Please log in. A session ends after half an hour without use.",
}


def caller() -> Caller:
    found: Caller = g.caller
    return found


def dress(routes: Blueprint, context: Context) -> None:
    """Filters, and what every template sees."""
    routes.add_app_template_filter(_when, "when")
    routes.add_app_template_filter(_day, "day")
    routes.add_app_template_filter(_left, "left")
    routes.add_app_template_filter(_expiry, "expiry")

    @routes.app_context_processor
    def common() -> dict[str, Any]:
        who: Caller | None = g.get("caller")
        return {
            "who": who,
            "may_change": who is not None and who.may_change,
            "csrf": who.session.csrf if who is not None and who.session else "",
            "said": DONE.get(request.args.get("said", ""), ""),
            "version": __version__,
            "now": now(),
            "retype": retype,
        }


def form(context: Context, *, changes: bool = True) -> Callable[[Page], Page]:
    """A page that changes something: an administrator's session, and a form that is its own."""
    return _page(context, posts=True, changes=changes)


def show(context: Context) -> Callable[[Page], Page]:
    """A page that is only looked at."""
    return _page(context, posts=False, changes=False)


def _page(context: Context, *, posts: bool, changes: bool) -> Callable[[Page], Page]:
    def wrap(view: Page) -> Page:
        @wraps(view)
        def answer(*args: Any, **kwargs: Any) -> Answer:
            found = guard.browser(context)
            if found is None or found.session is None:
                return to_login()
            g.caller = found
            if found.session.account.must_change and request.endpoint not in {
                "pages.password",
                "pages.log_out",
                "pages.session",
            }:
                return make_response(redirect(url_for("pages.password")))
            if posts and request.method == "POST":
                given = request.form.get("csrf") or request.headers.get("X-CSRF-Token", "")
                if sessions.forged(found.session, given):
                    return _refused(
                        403, "This form is not of this session. Load the page anew and try again."
                    )
            if changes and not found.may_change:
                return _refused(403, "You are a viewer: you can look at everything and change nothing.")
            with guard.stand_as(found):
                try:
                    return view(*args, **kwargs)
                except (SettingsError, ConflictError) as err:
                    return _refused(422, _sentence(err))

        return answer

    return wrap


def _refused(status: int, text: str, title: str = "That did not work") -> Response:
    if wants_lines():
        return problem_lines(Problems(others=[text]), status)
    return make_response(render_template("problem.html", title=title, text=text), status)


def _sentence(err: SettingsError | ConflictError) -> str:
    hint = f" {err.hint[0].upper()}{err.hint[1:]}." if err.hint and "ca-proxy " not in err.hint else ""
    return f"{err.reason[0].upper()}{err.reason[1:]}.{hint}"


def to_login() -> Response:
    """Where somebody without a session goes; htmx is told so that no login page ends up in a table."""
    place = url_for("pages.log_in", said="over" if sessions.COOKIE in request.cookies else None)
    if request.headers.get("HX-Request") or wants_lines():
        response = make_response("", 401)
        response.headers["HX-Redirect"] = place
        return response
    return make_response(redirect(place))


def done(endpoint: str, said: str, **values: Any) -> Response:
    """To a page, with a word of what was done."""
    place = url_for(f"pages.{endpoint}", said=said, **values)
    if request.headers.get("HX-Request"):
        response = make_response("", 200)
        response.headers["HX-Redirect"] = place
        return response
    return make_response(redirect(place, 303))


def partial(template: str, status: int = 200, /, **values: Any) -> Response:
    """A page, or for htmx the part of it that stands in _TEMPLATE."""
    name = f"_{template}" if request.headers.get("HX-Request") else template
    return make_response(render_template(name, **values), status)


def wants_lines() -> bool:
    """Does a script of the page ask, which reads an answer line by line?"""
    return request.headers.get("Accept") == NDJSON


def lines(found: Iterable[dict[str, Any]], status: int = 200) -> Response:
    """An answer for such a script, sent as it comes. {"html": to be shown}, {"end": shown after all others}, ..."""
    text = (f"{json.dumps(each)}\n" for each in found)
    return Response(stream_with_context(text), status, content_type=NDJSON)


def problem_lines(problems: Problems, status: int = 422) -> Response:
    return lines([problems.as_json()], status)


def retype() -> bool:
    """Was something entered that an answer without scripts cannot hold: a password, a file?"""
    if request.method != "POST" or request.headers.get("HX-Request"):
        return False
    typed = any(value for name, value in request.form.items() if "password" in name)
    return typed or any(file.filename for file in request.files.values())


def unsure(question: str) -> Response | None:
    """A page that asks before something is gone for good; None when the form says that its sender was asked."""
    if request.form.get("sure") == "yes":
        return None
    kept = [(name, value) for name, value in request.form.items(multi=True) if name != "csrf"]
    return make_response(render_template("sure.html", question=question, kept=kept))


def takes_cut() -> bool:
    """Is this a form with a file, which is answered even if the file was too large to be kept (framing.Cut)?"""
    return request.endpoint in UPLOADS and request.mimetype == "multipart/form-data"


def upload(name: str, most: int) -> bytes | None:
    """The file of a field, None when none is chosen; SettingsError when it has more than `most` octets."""
    found = request.files.get(name)
    data = found.read(most + 1) if found is not None and found.filename else None
    if request.environ.get(CUT) or len(data or b"") > most:
        raise SettingsError(name, f"is larger than {most / (1 << 20):.3g} MiB: it was not taken")
    return data


def number(name: str, default: int = 0, most: int = 1_000_000_000) -> int:
    """A number of the address; nonsense is the default."""
    text = request.args.get(name, "")
    return min(int(text), most) if text.isascii() and text.isdecimal() and len(text) < 12 else default


def offset_links(endpoint: str, total: int, offset: int, **filters: Any) -> dict[str, Any]:
    """Where the pages before and after this one are."""
    kept = {key: value for key, value in filters.items() if value}

    def link(at: int) -> str:
        return url_for(f"pages.{endpoint}", offset=at or None, **kept)

    return {
        "first": min(offset + 1, total),
        "last": min(offset + PAGE_SIZE, total),
        "total": total,
        "before": link(max(0, offset - PAGE_SIZE)) if offset else "",
        "after": link(offset + PAGE_SIZE) if offset + PAGE_SIZE < total else "",
    }


def problem_page(context: Context, err: Exception) -> Response | None:
    """For browsers that ask for a page that is not there, and the like; None for programs."""
    if not request.accept_mimetypes.accept_html or request.path.startswith(
        ("/api/", "/metrics", "/healthz", "/readyz")
    ):
        return None
    if request.accept_mimetypes["text/html"] <= request.accept_mimetypes["text/plain"]:
        return None
    code = err.code or 500 if isinstance(err, HTTPException) else 500
    texts = {
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
        413: "What you sent is too large: at most 4 MiB are taken.",
    }
    text = texts.get(code, "An internal error occurred; the log of the proxy says more.")
    if isinstance(err, Error):
        text = f"{err}."
    elif "caller" not in g and code != 500:
        g.caller = guard.browser(context)
    return _refused(code, text, *(["Not found"] if code == 404 else []))


# ---- times --------------------------------------------------------------------------------------


def _when(moment: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment)) if moment else "never"


def _day(moment: int | None) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment)) if moment else "-"


def _left(moment: int) -> str:
    """How long until, or since, in words."""
    seconds = moment - now()
    size = abs(seconds)
    for unit, length in (("day", DAY), ("hour", 3600), ("minute", 60)):
        if size >= length:
            count = size // length
            text = f"{count} {unit}{'s' if count != 1 else ''}"
            return f"in {text}" if seconds > 0 else f"{text} ago"
    return "now"


def _expiry(moment: int) -> str:
    """The class of a date: over, soon or good."""
    seconds = moment - now()
    return "bad" if seconds <= 0 else "soon" if seconds <= 30 * DAY else "good"
