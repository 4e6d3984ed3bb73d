"""The REST interface /api/v1: one table of operations, from which routes, checks and the OpenAPI document are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from flask import Blueprint, Response, jsonify, request

from ... import __version__
from ...codec.http import plain_line
from ...errors import ConflictError, SettingsError
from ...settings import load_json
from .. import audit, ca, certificates, devices, enrollments, inventory, paging, profiles
from ..context import Context
from ..database import now
from ..importing import Import
from ..upstream import config as ca_config
from . import guard
from .guard import Caller
from .schemas import SCHEMAS, Schema, check, ref

__all__ = ["document", "failure", "field_of", "make"]

PREFIX = "/api/v1"
NDJSON = "application/x-ndjson"
LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": paging.MAX_LIMIT, "default": 100}
OFFSET: Schema = {"type": "integer", "minimum": 0, "maximum": 1_000_000_000, "default": 0}
WORD: Schema = {"type": "string", "maxLength": 512, "default": ""}
MOMENT: Schema = {"type": "integer", "minimum": 0, "maximum": 1 << 40, "default": 0}
YES: Schema = {"type": "boolean", "default": False}
PAGED = {"limit": LIMIT, "offset": OFFSET}
COMMON = {400: "malformed", 401: "no token, or none that counts", 413: "too large"}


class Missing(Exception):
    """There is no such thing: 404."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was checked: parameters of path and query, and its body."""

    context: Context
    caller: Caller
    path: dict[str, str]
    query: dict[str, Any]
    body: Any = None


Handler = Callable[[Call], Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """answer: (status, schema or None for no body, media type). errors: further statuses and when they come."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: tuple[int, str | None, str] = (204, None, "")
    query: dict[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    body: str = ""
    body_required: bool = True
    csv_body: bool = False
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        return self.method != "GET"

    @property
    def statuses(self) -> dict[int, str]:
        found = {**COMMON, **self.errors}
        if self.changes:
            found[403] = "a viewer changes nothing"
        if self.body or self.csv_body:
            found[415] = "the Content-Type is another one"
        if self.body or self.csv_body or self.query:
            found.setdefault(422, "a value is not allowed; `field` names it")
        return found


# ---- what the operations do ---------------------------------------------------------------------


def _page(found: paging.Page[Any], shown: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "items": [shown(item) for item in found.items],
        "total": found.total,
        "limit": found.limit,
        "offset": found.offset,
    }


def _ca_get(call: Call) -> Any:
    found = ca.describe(call.context)
    if found is None:
        raise Missing("no CA is configured")
    return found


def _ca_put(call: Call) -> Any:
    config = ca.of_json(call.context, call.body)
    ca.save(call.context, config, replace=call.query["replace"], expected=call.body.get("version"))
    return ca.describe(call.context)


def _ca_delete(call: Call) -> Any:
    if not ca_config.clear(call.context, expected=call.query.get("version")):
        raise Missing("no CA is configured")
    return None


def _ca_test(call: Call) -> Any:
    if call.body is None and not ca_config.current_version(call.context):
        raise Missing("no CA is configured")
    config = None if call.body is None else ca.of_json(call.context, call.body)
    steps = [
        {"step": step.name, "ok": step.ok, "text": step.text, "hint": step.hint}
        for step in ca.test(call.context, config)
    ]
    return {"ok": bool(steps) and all(step["ok"] for step in steps), "steps": steps}


def _ca_keystore(call: Call) -> Any:
    return ca.readout(ca.keystore_octets(call.body["keystore"]), call.body["keystore_password"])


def _overview(call: Call) -> Any:
    context = call.context
    with context.db.read() as connection:
        ages = certificates.by_age(connection, now())
    return {
        "devices": inventory.counts(context),
        "certificates_by_days_to_expiry": ages,
        "expiries_by_week": [
            {"begin": begin, "count": count} for begin, count in certificates.by_week(context, 26)
        ],
        "results_by_day": [
            {"begin": begin, "results": results} for begin, results in enrollments.by_day(context, 30)
        ],
    }


def _devices(call: Call) -> Any:
    query = call.query
    found = inventory.search(
        call.context,
        text=query["search"],
        directory=query["directory"],
        below=query["below"],
        state=query["state"],
        limit=query["limit"],
        offset=query["offset"],
    )
    return _page(found, lambda device: device.as_json())


def _device_add(call: Call) -> Any:
    body = call.body
    made = devices.add(call.context, body["unit_id"], body.get("directory", "/"), body.get("hostname", ""))
    return {"unit_id": made.unit_id, "token": made.token, "expires": made.expires}


def _device_detail(call: Call) -> Any:
    found = inventory.detail(call.context, call.path["unit_id"])
    if found is None:
        raise Missing("no such device is known")
    asks = [
        {"friendly_name": name, "state": row.state, "reason": row.reason, "updated": row.updated}
        for name, row in sorted(found.last.items())
    ]
    return {
        **found.device.as_json(),
        "management": [asdict(each) for each in found.management],
        "profiles": [{"name": name, "kind": kind, "target": target} for name, kind, target in found.profiles],
        "certificates": [asdict(each) for each in found.certs],
        "last_requests": asks,
        "token_until": found.token_until,
    }


def _must_know(call: Call) -> str:
    unit_id = call.path["unit_id"]
    if devices.get(call.context, unit_id) is None:
        raise Missing("no such device is known")
    return unit_id


def _device_change(call: Call) -> Any:
    unit_id = _must_know(call)
    return inventory.change(call.context, unit_id, **call.body).as_json()


def _device_remove(call: Call) -> Any:
    devices.remove(call.context, _must_know(call))


def _device_token(call: Call) -> Any:
    made = devices.new_token(call.context, _must_know(call))
    return {"unit_id": made.unit_id, "token": made.token, "expires": made.expires}


def _device_renew(call: Call) -> Any:
    name = (call.body or {}).get("friendly_name", "")
    return {"renewing": certificates.renew_now(call.context, _must_know(call), name)}


def _device_move(call: Call) -> Any:
    return {"moved": inventory.move(call.context, call.body["unit_ids"], call.body["directory"])}


def _device_import(call: Call) -> Any:
    sheet = Import(call.body)
    if NDJSON in request.headers.get("Accept", ""):
        return Response(import_lines(call.context, call.caller, sheet), content_type=NDJSON)
    for _ in sheet.check():
        pass
    return {"devices": [asdict(token) for token in sheet.write(call.context)]}


def import_lines(context: Context, caller: Caller, sheet: Import) -> Iterator[str]:
    """A line of JSON for each step: {"done", "total"}, and at the end {"devices"} or {"error", "field", "hint"}."""
    try:
        for done in sheet.check():
            yield json.dumps({"done": done, "total": max(done, sheet.total)}) + "\n"
        with audit.acts(caller.name):
            made = sheet.write(context)
        yield json.dumps({"devices": [asdict(token) for token in made]}) + "\n"
    except SettingsError as err:
        yield json.dumps(failure(err)) + "\n"


def _directories(call: Call) -> Any:
    return [
        {"path": each.path, "devices": each.devices, "below": each.below, "profiles": list(each.profiles)}
        for each in inventory.tree(call.context)
    ]


def _directory_add(call: Call) -> Any:
    return {"path": inventory.make_directory(call.context, call.body["path"])}


def _directory_move(call: Call) -> Any:
    return {"moved": inventory.move_directory(call.context, call.body["path"], call.body["to"])}


def _directory_remove(call: Call) -> Any:
    inventory.remove_directory(call.context, call.query["path"])


def _profiles(call: Call) -> Any:
    return [
        {
            "name": each.name,
            "certs": [{"friendly_name": name, "key_type": kind} for name, kind in each.certs],
            "assigned": [{"kind": kind, "target": target} for kind, target in each.assigned],
            "passthrough": each.passthrough,
            "updated": each.updated,
        }
        for each in profiles.listing(call.context)
    ]


def _stored(call: Call) -> profiles.Stored:
    found = profiles.get(call.context, call.path["name"])
    if found is None:
        raise Missing("there is no such profile")
    return found


def _profile(call: Call) -> Any:
    return _stored(call).as_json()


def _profile_put(call: Call) -> Any:
    body, name = call.body, call.path["name"]
    text = json.dumps(body["document"]).encode()
    warnings = list(profiles.store(call.context, name, text, keep_secrets=True, expected=body.get("version")))
    if "passthrough" in body:
        profiles.allow_passthrough(call.context, name, body["passthrough"])
    warnings += profiles.clashes(call.context, name, body["document"])
    return {"warnings": warnings, "version": profiles.must_find(call.context, name).version}


def _profile_remove(call: Call) -> Any:
    profiles.remove(call.context, _stored(call).name)


def _target(values: dict[str, Any]) -> dict[str, str]:
    return {values["kind"]: values["target"]}


def _profile_assign(call: Call) -> Any:
    profiles.assign(call.context, _stored(call).name, **_target(call.body))


def _profile_unassign(call: Call) -> Any:
    profiles.unassign(call.context, _stored(call).name, **_target(call.query))


def _profile_preview(call: Call) -> Any:
    stored, device = _stored(call), devices.get(call.context, call.query["unit_id"])
    if device is None:
        raise Missing("no such device is known")
    return [each.as_json() for each in profiles.preview(stored.document, device)]


def _enrollment_rows(call: Call, **bounds: int) -> paging.Page[Any]:
    query = call.query
    return enrollments.search(
        call.context,
        text=query["search"],
        unit_id=query["unit_id"],
        state=query["state"],
        since=query["since"],
        until=query["until"],
        **bounds,
    )


def _enrollments(call: Call) -> Any:
    found = _enrollment_rows(call, limit=call.query["limit"], offset=call.query["offset"])
    return _page(found, enrollments.as_json)


def _enrollments_csv(call: Call) -> Any:
    rows = _enrollment_rows(call, limit=0).items
    return Response("".join(enrollments.sheet(rows)), content_type="text/csv; charset=utf-8")


def _audit(call: Call) -> Any:
    query = call.query
    found = audit.listing(
        call.context,
        search=query["search"],
        action=query["action"],
        limit=query["limit"],
        offset=query["offset"],
    )
    return _page(found, lambda row: {key: getattr(row, key) for key in ("at", "actor", "action", "detail")})


# ---- the table ----------------------------------------------------------------------------------

JSON = "application/json"
NO_DEVICE = {404: "no such device is known"}
NO_PROFILE = {404: "there is no such profile"}
NO_CA = {404: "no CA is configured"}
CHANGED = {409: "somebody else changed it meanwhile"}
FOUND = {"search": WORD, "unit_id": WORD, "state": {"enum": ["", *enrollments.STATES], "default": ""}}
FOUND |= {"since": MOMENT, "until": MOMENT}
UNIT = "/devices/{unit_id}"
PROFILE = "/profiles/{name}"
OPERATIONS = (
    Operation("GET", "/overview", _overview, "Figures of the whole", (200, "Overview", JSON)),
    Operation(
        "GET", "/ca", _ca_get, "The CA's configuration, without secrets", (200, "Ca", JSON), errors=NO_CA
    ),
    Operation(
        "PUT",
        "/ca",
        _ca_put,
        "Put a CA in place of the present one; replace=true is needed when that is of the other kind",
        (200, "Ca", JSON),
        query={"replace": YES},
        body="CaInput",
        errors={409: "somebody else changed it meanwhile, or a CA of the other kind would go"},
    ),
    Operation(
        "DELETE",
        "/ca",
        _ca_delete,
        "Remove the CA's configuration and its secrets",
        query={"version": {"type": "integer", "minimum": 0, "maximum": 1 << 53}},
        errors={**NO_CA, **CHANGED},
    ),
    Operation(
        "POST",
        "/ca/test",
        _ca_test,
        "Try every link to the CA: the configured one, or one given in the body",
        (200, "TestResult", JSON),
        body="CaInput",
        body_required=False,
        errors=NO_CA,
    ),
    Operation(
        "POST",
        "/ca/keystore",
        _ca_keystore,
        "What a keystore holds",
        (200, "Keystore", JSON),
        body="KeystoreInput",
    ),
    Operation(
        "GET",
        "/devices",
        _devices,
        "Devices, page by page",
        (200, "DevicePage", JSON),
        query={
            "search": WORD,
            "directory": WORD,
            "below": {"type": "boolean", "default": True},
            "state": {"enum": ["", *inventory.STATES], "default": ""},
            **PAGED,
        },
    ),
    Operation(
        "POST", "/devices", _device_add, "Make a device known", (201, "Token", JSON), body="DeviceInput"
    ),
    Operation(
        "POST",
        "/device-imports",
        _device_import,
        "Add devices from CSV, all or none; with Accept: application/x-ndjson the answer tells how far it is",
        (200, "Tokens", JSON),
        csv_body=True,
    ),
    Operation("POST", "/device-moves", _device_move, "Move devices", (200, "Moved", JSON), body="Move"),
    Operation(
        "GET", UNIT, _device_detail, "All about a device", (200, "DeviceDetail", JSON), errors=NO_DEVICE
    ),
    Operation(
        "PATCH",
        UNIT,
        _device_change,
        "Move a device, or fix its host name",
        (200, "Device", JSON),
        body="DeviceChange",
        errors=NO_DEVICE,
    ),
    Operation("DELETE", UNIT, _device_remove, "Forget a device", errors=NO_DEVICE),
    Operation(
        "POST",
        f"{UNIT}/token",
        _device_token,
        "A new registration token",
        (201, "Token", JSON),
        errors=NO_DEVICE,
    ),
    Operation(
        "POST",
        f"{UNIT}/renew",
        _device_renew,
        "Tell the device to renew a certificate, or all, now",
        (202, "Renewing", JSON),
        body="RenewInput",
        body_required=False,
        errors=NO_DEVICE,
    ),
    Operation("GET", "/directories", _directories, "The tree of directories", (200, "Directories", JSON)),
    Operation(
        "POST",
        "/directories",
        _directory_add,
        "Make a directory",
        (201, "DirectoryInput", JSON),
        body="DirectoryInput",
    ),
    Operation(
        "POST",
        "/directory-moves",
        _directory_move,
        "Move a directory with all that is in it",
        (200, "Moved", JSON),
        body="DirectoryMove",
    ),
    Operation(
        "DELETE",
        "/directories",
        _directory_remove,
        "Remove an empty directory",
        query={"path": {"type": "string", "maxLength": 512}},
        required=("path",),
    ),
    Operation("GET", "/profiles", _profiles, "All profiles", (200, "Profiles", JSON)),
    Operation(
        "GET",
        PROFILE,
        _profile,
        "A profile, without its passwords",
        (200, "Profile", JSON),
        errors=NO_PROFILE,
    ),
    Operation(
        "PUT",
        PROFILE,
        _profile_put,
        "Store a profile; a password that is not given stays, an empty one is taken away",
        (200, "ProfileStored", JSON),
        body="ProfileInput",
        errors={**CHANGED, 404: "the name is none that a profile can have"},
    ),
    Operation("DELETE", PROFILE, _profile_remove, "Remove a profile", errors=NO_PROFILE),
    Operation(
        "POST",
        f"{PROFILE}/assignments",
        _profile_assign,
        "Assign a profile to a device or a directory",
        body="Assignment",
        errors=NO_PROFILE,
    ),
    Operation(
        "DELETE",
        f"{PROFILE}/assignments",
        _profile_unassign,
        "Take an assignment back",
        query={"kind": {"enum": ["device", "directory"]}, "target": {"type": "string", "maxLength": 512}},
        required=("kind", "target"),
        errors=NO_PROFILE,
    ),
    Operation(
        "GET",
        f"{PROFILE}/preview",
        _profile_preview,
        "Subject and names that the profile gives a device",
        (200, "Preview", JSON),
        query={"unit_id": {"type": "string", "maxLength": 64}},
        required=("unit_id",),
        errors={404: "there is no such profile or device"},
    ),
    Operation(
        "GET",
        "/enrollments",
        _enrollments,
        "Requests and what came of them, the newest first",
        (200, "EnrollmentPage", JSON),
        query={**FOUND, **PAGED},
    ),
    Operation(
        "GET", "/enrollments.csv", _enrollments_csv, "The same as CSV", (200, None, "text/csv"), query=FOUND
    ),
    Operation(
        "GET",
        "/audit",
        _audit,
        "Who changed what, the newest first",
        (200, "AuditPage", JSON),
        query={"search": WORD, "action": {"enum": ["", *audit.ACTIONS], "default": ""}, **PAGED},
    ),
)


# ---- routes -------------------------------------------------------------------------------------


def make(context: Context) -> Blueprint:
    routes = Blueprint("api", __name__, url_prefix=PREFIX)
    served = document()

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
        caller = guard.bearer(context)
        if caller is None:
            response = _error(401, "a token is needed: Authorization: Bearer ...", hint="ca-proxy token add")
            response.headers["WWW-Authenticate"] = 'Bearer realm="ca-proxy"'
            return response
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
        raise Unreadable(400, f"the body is not JSON: {err}") from None
    check(ref(operation.body), value)
    return value


def _json(value: Any, status: int) -> Response:
    response = jsonify(value)
    response.status_code = status
    return response


def _error(status: int, text: str, hint: str = "") -> Response:
    return _json({"error": plain_line(text, 1000), **({"hint": hint} if hint else {})}, status)


def field_of(path: str) -> str:
    """The field that an error is about, as forms and bodies name it: "--keystore-password-file" is keystore_password."""
    if path.startswith("--"):
        return path[2:].removesuffix("-file").replace("-", "_")
    return path


def failure(err: SettingsError | ConflictError) -> dict[str, str]:
    """An error for programs. What to do is left out where it is a command of this machine."""
    found = {"error": plain_line(err.reason if err.path else str(err), 1000)}
    if err.path:
        found["field"] = field_of(err.path)
        found["error"] = f"{found['field']}: {found['error']}"
    if err.hint and "ca-proxy " not in err.hint:
        found["hint"] = plain_line(err.hint, 1000)
    return found


# ---- OpenAPI ------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    """OpenAPI 3.1, made of the table above."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "igelcert ca-proxy",
            "version": __version__,
            "description": "Administration of the proxy. Nothing here gives out a password or a key; "
            "a registration token is in the one answer that makes it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": PREFIX}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "ca-proxy token add NAME --role admin",
                }
            },
            "schemas": SCHEMAS,
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    status, schema, media = operation.answer
    answer: dict[str, Any] = {"description": "done"}
    if media:
        answer["content"] = {media: {"schema": ref(schema) if schema else {"type": "string"}}}
    if operation.csv_body:
        answer["content"][NDJSON] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {str(status): answer}
    for code, when in sorted(operation.statuses.items()):
        content: dict[str, Any] = {JSON: {"schema": ref("Error")}}
        if code in {
            400,
            413,
        }:  # what cannot even be read as HTTP is refused before anybody looks at its address
            content["text/plain"] = {"schema": {"type": "string"}}
        responses[str(code)] = {"description": when, "content": content}
    name = operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", "").replace(".", "_")
    found: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}_{name}",
        "summary": operation.summary,
        "tags": [operation.path.split("/")[1].partition(".")[0]],
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation)],
        "responses": responses,
    }
    if operation.csv_body:
        sheet = {
            "schema": {"type": "string", "example": "unit_id,directory,hostname\n00E0C5123456,/Berlin,\n"}
        }
        found["requestBody"] = {"required": True, "content": {"text/csv": sheet}}
    elif operation.body:
        found["requestBody"] = {
            "required": operation.body_required,
            "content": {JSON: {"schema": ref(operation.body)}},
        }
    return found


def _path_parameters(path: str) -> list[dict[str, Any]]:
    examples = {"unit_id": "00E0C5123456", "name": "lan"}
    return [
        {
            "name": part[1:-1],
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": 128},
            "example": examples[part[1:-1]],
        }
        for part in path.split("/")
        if part.startswith("{")
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": name in operation.required, "schema": schema}
        for name, schema in operation.query.items()
    ]
