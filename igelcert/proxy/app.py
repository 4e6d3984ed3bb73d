"""The two WSGI programs: one for devices, one for administration."""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import unquote_to_bytes

from flask import Flask, Response, current_app, g, jsonify, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from ..codec.http import plain_line
from ..errors import Error, RemoteProtocolError, StorageError
from . import admin_routes, est_routes, rmagent_routes, scep_routes
from .admin import guard, pages, rest
from .admin.pages.base import problem_page, takes_cut
from .context import Context
from .framing import ADMIN_BODY_MAX, CUT, DEVICE_BODY_MAX
from .identity import address_of, named

__all__ = ["make_admin_app", "make_device_app"]

log = logging.getLogger("igelcert.proxy")


def make_device_app(context: Context) -> Flask:
    app = _app("device", context)
    app.config["MAX_CONTENT_LENGTH"] = DEVICE_BODY_MAX
    app.register_blueprint(est_routes.make(context))
    app.register_blueprint(rmagent_routes.make(context))
    app.register_blueprint(scep_routes.make(context))
    return app


def make_admin_app(context: Context) -> Flask:
    app = _app("admin", context)
    app.config["MAX_CONTENT_LENGTH"] = ADMIN_BODY_MAX
    app.register_blueprint(admin_routes.make(context))
    app.register_blueprint(rest.make(context))
    app.register_blueprint(pages.make(context))
    app.after_request(guard.protect)

    @app.before_request
    def _cut() -> None:
        if request.environ.get(CUT) and not takes_cut():
            raise RequestEntityTooLarge

    return app


def _app(name: str, context: Context) -> Flask:
    app = Flask(f"igelcert-{name}", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # another address, and not one that is answered by a redirection

    @app.before_request
    def _start() -> None:
        g.started = time.monotonic()
        if not _is_text(request.environ):
            raise RemoteProtocolError("the address of the request is not UTF-8")

    @app.after_request
    def _log(response: Response) -> Response:
        level = _level(name, response.status_code)
        took = (time.monotonic() - g.get("started", time.monotonic())) * 1000
        who = g.get("unit_id", "-")
        path = _loggable(request.path)
        log.log(
            level,
            "%s %s %s %s %d %.0f ms",
            address_of(context, request.environ),
            who,
            request.method,
            path,
            response.status_code,
            took,
        )
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(RemoteProtocolError)
    def _refused(err: RemoteProtocolError) -> Response:
        if err.status_hint in {401, 403}:
            if name == "device" and "unit_id" not in g:
                g.unit_id = named(context, request.environ)
            log.warning("%s %s: %s", address_of(context, request.environ), g.get("unit_id", "-"), err)
        return _sentence(err.status_hint, str(err))

    @app.errorhandler(StorageError)
    def _unavailable(err: StorageError) -> Response:
        log.error("%s", err)
        if name == "admin" and (page := problem_page(context, err)) is not None:
            return page
        return _sentence(503, "the proxy cannot use its database now; its log says more", 60)

    @app.errorhandler(Error)
    @app.errorhandler(SQLAlchemyError)
    @app.errorhandler(Exception)
    def _failed(err: Exception) -> Response:
        page = problem_page(context, err) if name == "admin" else None
        if isinstance(err, HTTPException):
            return page or _http_error(err)
        log.exception("%s %s failed", request.method, _loggable(request.path))
        return page or _sentence(500, "an internal error occurred; the log of the proxy says more")

    return app


def _level(name: str, status: int) -> int:
    """Of a request's line. The administration's port: what is done, and who is not let in; what monitoring asks every few
    seconds is no news, and mistakes of people and programs are theirs."""
    if name == "admin":
        if request.path in admin_routes.PATHS:
            return logging.DEBUG
        if status >= 400 and status not in {401, 403, 429}:
            return logging.DEBUG
    return logging.INFO


_HTTP = {
    404: "there is nothing at this address",
    405: "this address does not take that method",
    415: "this kind of content is not taken here",
}


def _http_error(err: HTTPException) -> Response:
    code = err.code or 500
    text = _HTTP.get(code, plain_line(err.name.lower()))
    if code == 413:
        text = f"the body is larger than {current_app.config['MAX_CONTENT_LENGTH'] // 1024} KiB"
    response = _sentence(code, text)
    if isinstance(err, MethodNotAllowed) and err.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(err.valid_methods))
    return response


def _is_text(environ: dict[str, Any]) -> bool:
    """Octets that are not UTF-8 would come as U+FFFD to who looks at path and query, and be kept so."""
    try:
        environ.get("PATH_INFO", "").encode("latin-1").decode()
        unquote_to_bytes(environ.get("QUERY_STRING", "")).decode()
    except UnicodeError:
        return False
    return True


def _loggable(path: str) -> str:
    """Without the secret that a SCEP address may hold."""
    parts = path.split("/")
    if len(parts) > 3 and parts[1] == "scep":
        path = "/".join([*parts[:3], "***"])
    return plain_line(path, 200)


def _sentence(status: int, text: str, retry_after: int | None = None) -> Response:
    """One plain sentence: JSON for the agent, text for EST clients."""
    line = plain_line(text, 1000)
    if request.path.startswith(("/rmagent/", "/api/")):
        response = jsonify(error=line)
    else:
        response = Response(line + "\n", content_type="text/plain; charset=utf-8")
    response.status_code = status
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response
