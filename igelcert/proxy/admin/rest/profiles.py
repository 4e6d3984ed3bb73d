"""Profiles and their assignments."""

from __future__ import annotations

import json
from typing import Any

from ... import devices, profiles
from .operations import CHANGED, JSON, YES, Call, Missing, Operation

__all__ = ["OPERATIONS"]

PROFILE = "/profiles/{name}"
NO_PROFILE = {404: "there is no such profile"}


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
    profiles.remove(call.context, _stored(call).name, force=call.query["force"])


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


OPERATIONS = (
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
    Operation(
        "DELETE",
        PROFILE,
        _profile_remove,
        "Remove a profile; force=true is needed while devices would lose certificates, and their keys, with it",
        query={"force": YES},
        errors={**NO_PROFILE, 409: "devices would lose certificates"},
    ),
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
)
