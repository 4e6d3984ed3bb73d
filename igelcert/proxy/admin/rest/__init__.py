"""The REST interface /api/v1: one table of operations, from which routes, checks and the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, jsonify, request

from ....codec.http import plain_line
from ....errors import ConflictError, SettingsError
from ....settings import load_json
from ...context import Context
from .. import guard
from ..accounts import LoginRefused
from ..schemas import Schema, check, ref
from . import ca, devices, profiles, records, renewals
from .errors import failure
from .openapi import PREFIX, document
from .operations import JSON, Call, Missing, Operation

__all__ = ["OPERATIONS", "make"]

OPERATIONS = (
    *ca.OPERATIONS,
    *devices.OPERATIONS,
    *profiles.OPERATIONS,
    *renewals.OPERATIONS,
    *records.OPERATIONS,
)


def make(context: Context) -> Blueprint:
    routes = Blueprint("api", __name__, url_prefix=PREFIX)
    served = document(OPERATIONS)

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(served)

    for operation in OPERATIONS:
        routes.add_url_rule(
            operation.path.replace("{", "<").replace("}", ">"),
            f"{operation.method} {operation.path}".replace(".", "_"),
            _route(context, operation),
            methods=[operation.method],
        )
    return routes


def _route(context: Context, operation: Operation) -> Callable[..., Response]:
    def answer(**path: str) -> Response:
        try:
            caller = guard.bearer(context)
        except LoginRefused as err:
            return _not_let_in(str(err))
        if caller is None:
            return _not_let_in("a token is needed: Authorization: Bearer ...")
        if operation.changes and not caller.may_change:
            return _error(403, f"{caller.name} is a viewer, who changes nothing")
        try:
            call = Call(context, caller, path, _query(operation), _body(operation))
            with guard.stand_as(caller):
                found = operation.handler(call)
        except Missing as err:
            return _error(404, str(err))
        except Unreadable as err:
            return _error(err.status, str(err))
        except ConflictError as err:
            return _json(failure(err), 409)
        except SettingsError as err:
            return _json(failure(err), 422 if 422 in operation.statuses else 404)
        status, schema, _ = operation.answer
        if isinstance(found, Response):
            return found
        return _json(found, status) if schema is not None else Response(status=status)

    return answer


def _not_let_in(text: str) -> Response:
    response = _error(401, text, hint="ca-proxy token add")
    response.headers["WWW-Authenticate"] = 'Bearer realm="ca-proxy"'
    return response


class Unreadable(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _query(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in request.args:
        if name not in operation.query or len(request.args.getlist(name)) > 1:
            raise Unreadable(400, f"the parameter {plain_line(name, 60)} is not known here, or given twice")
    for name, schema in operation.query.items():
        if name not in request.args:
            if name in operation.required:
                raise Unreadable(400, f"the parameter {name} is missing")
            if "default" in schema:
                found[name] = schema["default"]
            continue
        found[name] = _parsed(name, request.args[name], schema)
        check(schema, found[name], name)
    return found


def _parsed(name: str, text: str, schema: Schema) -> Any:
    kind = schema.get("type")
    if kind == "boolean":
        if text not in {"true", "false"}:
            raise SettingsError(name, "is neither true nor false")
        return text == "true"
    if kind == "integer":
        if not text.isascii() or not text.removeprefix("-").isdecimal() or len(text) > 20:
            raise SettingsError(name, "is not a whole number")
        return int(text)
    return text


def _body(operation: Operation) -> Any:
    if not operation.body and not operation.csv_body:
        return None
    data = request.get_data()
    if not data and not operation.body_required:
        return None
    if operation.csv_body:
        if request.mimetype != "text/csv":
            raise Unreadable(415, "the body must be text/csv")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SettingsError("line 1", "the sheet is not UTF-8") from None
    if request.mimetype != JSON:
        raise Unreadable(415, "the body must be application/json")
    try:
        value = load_json(data)
    except SettingsError as err:
        raise Unreadable(400, f"the body cannot be read: {err}") from None
    check(ref(operation.body), value)
    return value


def _json(value: Any, status: int) -> Response:
    response = jsonify(value)
    response.status_code = status
    return response


def _error(status: int, text: str, hint: str = "") -> Response:
    return _json({"error": plain_line(text, 1000), **({"hint": hint} if hint else {})}, status)
