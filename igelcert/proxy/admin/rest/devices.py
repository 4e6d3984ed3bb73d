"""Devices and their directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flask import Response, request

from ....errors import SettingsError
from ... import audit, devices, inventory, renewals
from ...context import Context
from ...importing import Import
from ..guard import Caller
from .errors import failure
from .operations import JSON, NDJSON, PAGED, WORD, Call, Missing, Operation, page

__all__ = ["OPERATIONS", "import_lines"]

UNIT = "/devices/{unit_id}"
NO_DEVICE = {404: "no such device is known"}


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
    return page(found, lambda device: device.as_json())


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
    return {"renewing": renewals.renew_now(call.context, _must_know(call), name)}


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


OPERATIONS = (
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
)
