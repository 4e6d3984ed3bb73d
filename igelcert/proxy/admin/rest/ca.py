"""The CA behind the proxy."""

from __future__ import annotations

from typing import Any

from ... import ca
from ...upstream import config as ca_config
from .operations import CHANGED, JSON, YES, Call, Missing, Operation

__all__ = ["OPERATIONS"]

NO_CA = {404: "no CA is configured"}


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


OPERATIONS = (
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
)
