"""JSON schemas of the REST interface: they are served as they are, and bodies are held against these very ones."""

from __future__ import annotations

import re
from typing import Any

from ...errors import SettingsError
from ...model import KEY_TYPES
from ...settings import MOMENT_MAX
from ..enrollment_log import STATES as ENROLLMENT_STATES
from ..inventory import STATES as DEVICE_STATES
from ..renewals import WITHIN_MAX
from ..upstream.config import RATE_MAX

__all__ = ["SCHEMAS", "Schema", "check", "ref"]

Schema = dict[str, Any]
SECRET = {"type": "string", "maxLength": 1000, "writeOnly": True}
BASE64 = {"type": "string", "contentEncoding": "base64", "maxLength": 1_500_000, "writeOnly": True}
TIME = {"type": "integer", "description": "seconds since 1970, UTC"}
MAYBE_TIME = {"type": ["integer", "null"], "description": "seconds since 1970, UTC"}
TEXT = {"type": "string"}
MAYBE_TEXT = {"type": ["string", "null"]}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(limit: int, description: str = "", *, least: int = 0) -> Schema:
    found: Schema = {"type": "string", "maxLength": limit}
    if least:
        found["minLength"] = least
    if description:
        found["description"] = description
    return found


def _number(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Schema, limit: int | None = None) -> Schema:
    return {"type": "array", "items": items, **({"maxItems": limit} if limit else {})}


def _object(properties: dict[str, Schema], required: tuple[str, ...] | None = None) -> Schema:
    """An object of these properties alone; all of them are there unless `required` says which."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }


def _page(item: str) -> Schema:
    return _object({"items": _list(ref(item)), "total": COUNT, "limit": COUNT, "offset": COUNT})


UNIT_ID = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}
DIRECTORY = {"type": "string", "pattern": "^/", "maxLength": 512, "description": "/A/B; / is the root"}
VERSION = {
    "type": "integer",
    "minimum": 0,
    "description": "the version that was read (0: there was none); the answer is 409 when it is another one by now",
}
RATE = {
    **_number(0, RATE_MAX),
    "description": "certificates an hour that the CA may be asked for; 0: nothing is said, devices go by their own rule",
}
WITHIN = {**_number(0, WITHIN_MAX), "description": "seconds over which it is spread; 0: at once"}
_STEP = _object({"step": TEXT, "ok": FLAG, "text": TEXT, "hint": TEXT})
_TOKEN = _object({"unit_id": TEXT, "token": TEXT, "expires": TIME})
_DEVICE = {
    "unit_id": TEXT,
    "directory": TEXT,
    "hostname": TEXT,
    "hostname_fixed": FLAG,
    "ips": _list(TEXT),
    "state": {"enum": ["added", "registered"]},
    "created": TIME,
    "registered_at": MAYBE_TIME,
    "last_seen": MAYBE_TIME,
}
_ASSIGNMENT = _object({"kind": {"enum": ["device", "directory"]}, "target": _text(512, least=1)})
_KEYSTORE = {
    "client_certificate": ref("Certificate"),
    "chain": _list(ref("Certificate")),
    "server_certificates": _list(ref("Certificate")),
    "trusted": _list(ref("Certificate")),
    "warnings": _list(TEXT),
}
_CA: dict[str, Schema] = {
    "name": TEXT,
    "rate": RATE,
    "version": COUNT,
    "updated": TIME,
    "ca_certificates": _list(ref("Certificate")),
    "ca_certificates_fetched": MAYBE_TIME,
    "last_exchange": {
        "oneOf": [{"type": "null"}, _object({"up": FLAG, "at": TIME, "text": TEXT})],
        "description": "what the last request of a device, or the last test, showed",
    },
}
_SETTINGS_CERT = _object(
    {
        "friendly_name": _text(128, least=1),
        "subject": _object(
            {
                "auto_cn": {"enum": ["hostname", "unitid", "off"]},
                "cn": _text(64),
                "ou": _text(64),
                "org": _text(64),
                "locality": _text(128),
                "state": _text(128),
                "country": _text(2),
                "email": _text(255),
            },
            (),
        ),
        "subjaltname": _object(
            {
                "auto_hostname": FLAG,
                "auto_ip": FLAG,
                **{name: _list(_text(2048), 100) for name in ("hostname", "ip", "email", "uri")},
            },
            (),
        ),
        "key": _object({"type": {"enum": list(KEY_TYPES)}, "crypt_password": SECRET}, ()),
        "enrollment": _object(
            {
                "proto": {"enum": ["igelums", "est", "scep"]},
                "auto_renewal": FLAG,
                "renewal_period_units": {"enum": ["percent", "days"]},
                "renewal_period": _number(1, 99),
                "renewal_period_days": _number(1, 36_500),
                "crypt_challenge_password": {**SECRET, "maxLength": 255},
                "renew_serial": _text(64),
                "renew_from": _number(0, MOMENT_MAX),
                "renew_until": _number(0, MOMENT_MAX),
                "est": _object(
                    {
                        **{name: _text(2048) for name in ("server", "ca_fingerprint")},
                        "label": _text(128),
                        "username": _text(255),
                        **{name: _text(1000) for name in ("client_certificate", "client_key", "ca_file")},
                        "crypt_password": SECRET,
                        "crypt_client_key_password": SECRET,
                    },
                    (),
                ),
                "scep": _object(
                    {
                        "url": _text(2048),
                        "profile": _text(128),
                        "fingerprint": _text(200),
                        "ca_file": _text(1000),
                    },
                    (),
                ),
            },
            (),
        ),
    },
    (),
)

SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        {
            "error": TEXT,
            "field": {**TEXT, "description": "where it is, as in the request"},
            "hint": {**TEXT, "description": "what to do about it"},
        },
        ("error",),
    ),
    "Certificate": _object(
        {
            "subject": TEXT,
            "issuer": TEXT,
            "serial": TEXT,
            "key_type": TEXT,
            "not_before": TIME,
            "not_after": TIME,
            "sha256": TEXT,
        }
    ),
    "Keystore": _object(_KEYSTORE),
    "KeystoreInput": _object({"keystore": BASE64, "keystore_password": SECRET}),
    "EstCa": _object(
        {"kind": {"const": "est"}, "host": TEXT, "port": COUNT, "label": TEXT, **_CA, **_KEYSTORE}
    ),
    "ScepCa": _object(
        {
            "kind": {"const": "scep"},
            "url": TEXT,
            "profile": TEXT,
            "fingerprint": MAYBE_TEXT,
            "trusted": _list(ref("Certificate")),
            "renewal": TEXT,
            "legacy": FLAG,
            "poll": COUNT,
            "ndes_url": MAYBE_TEXT,
            "ndes_user": MAYBE_TEXT,
            "warnings": _list(TEXT),
            **_CA,
        }
    ),
    "Ca": {"oneOf": [ref("EstCa"), ref("ScepCa")]},
    "EstInput": _object(
        {
            "kind": {"const": "est"},
            "name": _text(128, least=1),
            "host": _text(255, least=1),
            "port": _number(1, 65_535),
            "label": {"type": "string", "pattern": "^[A-Za-z0-9_-]{0,128}$"},
            "keystore": {**BASE64, "description": "PKCS#12; without it the stored one stays"},
            "keystore_password": SECRET,
            "rate": RATE,
            "version": VERSION,
        },
        ("kind", "name", "host"),
    ),
    "ScepInput": _object(
        {
            "kind": {"const": "scep"},
            "name": _text(128, least=1),
            "url": _text(2048, least=1),
            "profile": _text(128),
            "fingerprint": _text(200),
            "certificate": _text(100_000, "PEM; without it the one that is stored for this URL stays"),
            "renewal": {"enum": ["pkcsreq", "renewalreq"]},
            "legacy": FLAG,
            "poll": _number(1, 86_400),
            "ndes_url": _text(2048),
            "ndes_user": _text(256),
            "ndes_password": SECRET,
            "rate": RATE,
            "version": VERSION,
        },
        ("kind", "name", "url"),
    ),
    "CaInput": {
        "oneOf": [ref("EstInput"), ref("ScepInput")],
        "discriminator": {
            "propertyName": "kind",
            "mapping": {"est": "#/components/schemas/EstInput", "scep": "#/components/schemas/ScepInput"},
        },
    },
    "TestResult": _object({"ok": FLAG, "steps": _list(_STEP)}),
    "Device": _object(_DEVICE),
    "DevicePage": _page("Device"),
    "DeviceInput": _object(
        {
            "unit_id": UNIT_ID,
            "directory": DIRECTORY,
            "hostname": _text(64, "fixed; else the device reports it"),
        },
        ("unit_id",),
    ),
    "DeviceChange": _object(
        {"directory": DIRECTORY, "hostname": _text(64, "fixed; empty: the device reports it")}, ()
    ),
    "DeviceDetail": _object(
        {
            **_DEVICE,
            "management": _list(
                _object(
                    {"serial": TEXT, "not_before": TIME, "not_after": TIME, "sha256": TEXT, "key_type": TEXT}
                )
            ),
            "profiles": _list(_object({"name": TEXT, "kind": TEXT, "target": TEXT})),
            "certificates": _list(
                _object(
                    {
                        "friendly_name": TEXT,
                        "serial": TEXT,
                        "subject": TEXT,
                        "not_before": TIME,
                        "not_after": TIME,
                        "issued": TIME,
                        "asked": {**MAYBE_TIME, "description": "when somebody asked for its renewal"},
                        "window_from": {**MAYBE_TIME, "description": "begin of its window for renewal"},
                        "window_until": MAYBE_TIME,
                        "issuer": TEXT,
                        "issuer_sha256": TEXT,
                    }
                )
            ),
            "last_requests": _list(
                _object({"friendly_name": TEXT, "state": TEXT, "reason": TEXT, "updated": TIME})
            ),
            "token_until": MAYBE_TIME,
        }
    ),
    "Token": _TOKEN,
    "Tokens": _object({"devices": _list(ref("Token"))}),
    "Move": _object({"unit_ids": {**_list(UNIT_ID, 10_000), "minItems": 1}, "directory": DIRECTORY}),
    "Moved": _object({"moved": COUNT}),
    "RenewInput": _object({"friendly_name": _text(256)}, ()),
    "RenewalInput": _object(
        {
            "device": UNIT_ID,
            "directory": {**DIRECTORY, "description": "devices in it and below; / for all"},
            "issuer": _text(256, "common name of the CA, or SHA-256 of its certificate", least=1),
            "friendly_name": _text(256, "certificates of this name alone"),
            "within": WITHIN,
        },
        (),
    ),
    "RenewalsAsked": _object(
        {
            "certificates": {**COUNT, "description": "how many are to be renewed"},
            "from": MAYBE_TIME,
            "until": {**MAYBE_TIME, "description": "when the last one is to be renewed; null: at once"},
            "warnings": _list(TEXT),
        }
    ),
    "Renewing": _object({"renewing": _list(TEXT)}),
    "Directory": _object({"path": TEXT, "devices": COUNT, "below": COUNT, "profiles": _list(TEXT)}),
    "Directories": _list(ref("Directory")),
    "DirectoryInput": _object({"path": DIRECTORY}),
    "DirectoryMove": _object({"path": DIRECTORY, "to": DIRECTORY}),
    "Settings": _object({"show_user_notifications": FLAG, "certs": _list(_SETTINGS_CERT, 100)}, ()),
    "Assignment": _ASSIGNMENT,
    "ProfileSummary": _object(
        {
            "name": TEXT,
            "certs": _list(_object({"friendly_name": TEXT, "key_type": TEXT})),
            "assigned": _list(_ASSIGNMENT),
            "passthrough": FLAG,
            "updated": TIME,
        }
    ),
    "Profiles": _list(ref("ProfileSummary")),
    "Profile": _object(
        {
            "name": TEXT,
            "document": ref("Settings"),
            "secrets": {
                **_list(TEXT),
                "description": "paths of the passwords that are set; none is ever given out",
            },
            "assigned": _list(_ASSIGNMENT),
            "passthrough": FLAG,
            "version": COUNT,
            "updated": TIME,
        }
    ),
    "ProfileInput": _object(
        {"document": ref("Settings"), "passthrough": FLAG, "version": VERSION}, ("document",)
    ),
    "ProfileStored": _object({"warnings": _list(TEXT), "version": COUNT}),
    "Preview": _list(
        _object(
            {
                "friendly_name": TEXT,
                "key_type": TEXT,
                "subject": TEXT,
                "names": _list(_object({"kind": TEXT, "value": TEXT})),
                "problem": {**TEXT, "description": "why it cannot be for this device, empty when it can"},
            }
        )
    ),
    "Enrollment": _object(
        {
            "unit_id": TEXT,
            "friendly_name": TEXT,
            "operation": TEXT,
            "state": {"enum": list(ENROLLMENT_STATES)},
            "reason": TEXT,
            "warnings": _list(TEXT),
            "subject": TEXT,
            "serial": MAYBE_TEXT,
            "not_before": MAYBE_TIME,
            "not_after": MAYBE_TIME,
            "created": TIME,
            "updated": TIME,
        }
    ),
    "EnrollmentPage": _page("Enrollment"),
    "AuditLine": _object({"at": TIME, "actor": TEXT, "action": TEXT, "detail": TEXT}),
    "AuditPage": _page("AuditLine"),
    "Overview": _object(
        {
            "devices": _object(dict.fromkeys(DEVICE_STATES, COUNT)),
            "certificates_by_days_to_expiry": {"type": "object", "additionalProperties": COUNT},
            "expiries_by_week": _list(_object({"begin": TIME, "count": COUNT})),
            "results_by_day": _list(
                _object({"begin": TIME, "results": {"type": "object", "additionalProperties": COUNT}})
            ),
        }
    ),
}


# ---- holding a value against a schema -----------------------------------------------------------

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
_SAID = {
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
}


def check(schema: Schema, value: object, path: str = "") -> None:
    """SettingsError with the place of the first thing that does not fit. As much of JSON Schema as is used above."""
    if "$ref" in schema:
        check(SCHEMAS[schema["$ref"].rpartition("/")[2]], value, path)
    elif "oneOf" in schema:
        _check_kind(schema, value, path)
    elif "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        if not isinstance(value, str) or value not in allowed:
            raise SettingsError(path, "is not one of: " + " ".join(allowed))
    else:
        kind = schema["type"]
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise SettingsError(path or "body", f"is not {_SAID[kind]}")
        _LIMITS[kind](schema, value, path)


def _check_kind(schema: Schema, value: object, path: str) -> None:
    if not isinstance(value, dict):
        raise SettingsError(path or "body", "is not an object")
    mapping = schema["discriminator"]["mapping"]
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in mapping:
        raise SettingsError("kind", "is not one of: " + " ".join(mapping))
    check({"$ref": mapping[kind]}, value, path)


def _check_string(schema: Schema, value: Any, path: str) -> None:
    if len(value) < schema.get("minLength", 0):
        raise SettingsError(path, "is empty")
    if len(value) > schema.get("maxLength", 1 << 20):
        raise SettingsError(path, f"is longer than {schema['maxLength']} characters")
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        raise SettingsError(path, f"does not look like {schema['pattern']}")


def _check_integer(schema: Schema, value: Any, path: str) -> None:
    low, high = schema.get("minimum"), schema.get("maximum", (1 << 53) - 1)
    if (low is not None and value < low) or value > high:
        raise SettingsError(path, f"is not from {low} to {high}")


def _check_array(schema: Schema, value: Any, path: str) -> None:
    if len(value) < schema.get("minItems", 0):
        raise SettingsError(path, "is empty")
    if len(value) > schema.get("maxItems", 1 << 20):
        raise SettingsError(path, f"has more than {schema['maxItems']} entries")
    for index, each in enumerate(value):
        check(schema["items"], each, f"{path}[{index}]")


def _check_object(schema: Schema, value: Any, path: str) -> None:
    properties = schema["properties"]
    for key in value:
        if key not in properties:
            shown = key if key.isprintable() and len(key) < 80 else "a key"
            raise SettingsError(f"{path}.{shown}" if path else shown, "is not known here")
    for key in schema["required"]:
        if key not in value:
            raise SettingsError(f"{path}.{key}" if path else key, "is missing")
    for key, each in value.items():
        check(properties[key], each, f"{path}.{key}" if path else key)


_LIMITS = {
    "string": _check_string,
    "integer": _check_integer,
    "boolean": lambda schema, value, path: None,
    "object": _check_object,
    "array": _check_array,
}
