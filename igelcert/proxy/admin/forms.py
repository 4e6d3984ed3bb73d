"""Between forms and settings documents: names of fields, what was typed, where an error belongs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConflictError, SettingsError
from ...settings import DEFAULTS
from .rest.errors import field_of

__all__ = ["Difference", "Problems", "cert_indexes", "differences", "document_of", "form_of"]

TEXTS = {
    "subject": ("auto_cn", "cn", "ou", "org", "locality", "state", "country", "email"),
    "key": ("type",),
    "enrollment": ("proto", "renewal_period_units"),
    "est": ("server", "label", "username", "client_certificate", "client_key", "ca_file", "ca_fingerprint"),
    "scep": ("url", "profile", "fingerprint", "ca_file"),
}
LISTS = ("hostname", "ip", "email", "uri")
SECRETS = {
    "key.crypt_password": "Key password",
    "enrollment.crypt_challenge_password": "Challenge password",
    "enrollment.est.crypt_password": "HTTP password",
    "enrollment.est.crypt_client_key_password": "Password of the client key",
}
MAX_CERTS = 100
_PLACE = re.compile(r"certs\[(\d+)\]\.(.+?)(\[\d+\])?\Z")


@dataclass(slots=True)
class Problems:
    """What is wrong with a form: a sentence at each field, and those that belong to none."""

    fields: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.fields or self.others)

    def as_json(self) -> dict[str, Any]:
        return {"fields": self.fields, "others": self.others}

    def add(self, err: SettingsError | ConflictError, known: Collection[str] | None = None) -> None:
        """known: the names of the form's fields; an error of another place is shown on top."""
        hint = f" {err.hint[0].upper()}{err.hint[1:]}." if err.hint and "ca-proxy " not in err.hint else ""
        text = f"{err.reason[0].upper()}{err.reason[1:]}.{hint}" if err.reason else "Is not valid."
        name = _form_name(field_of(err.path), known or ())
        if name and (known is None or name in known):
            self.fields[name] = text
        else:
            self.others.append(f"{name}: {text}" if name and known is not None else text)


def _form_name(path: str, known: Collection[str]) -> str:
    """certs[0].san.ip[2] is the field c0.san.ip, or of whichever certificate is the first of the form."""
    if place := _PLACE.match(path):
        index, indexes = int(place[1]), cert_indexes(known)
        return f"c{indexes[index] if index < len(indexes) else index}.{place[2]}"
    return path


def document_of(form: Mapping[str, str]) -> dict[str, Any]:
    """A settings document from the fields of the profile's form; numbers that are none stay text, and are refused."""
    return {
        "show_user_notifications": "show_user_notifications" in form,
        "certs": [_cert(form, f"c{index}.") for index in cert_indexes(form)],
    }


def cert_indexes(form: Collection[str]) -> list[int]:
    """The numbers of the form's certificates: c0.friendly_name is of the certificate 0."""
    found = {int(place[1]) for name in form if (place := re.match(r"c([0-9]{1,3})\.", name))}
    return sorted(found)[:MAX_CERTS]


def _cert(form: Mapping[str, str], prefix: str) -> dict[str, Any]:
    def text(name: str) -> str:
        return form.get(prefix + name, "").strip()

    enrollment: dict[str, Any] = {name: text(f"enrollment.{name}") for name in TEXTS["enrollment"]}
    enrollment["auto_renewal"] = f"{prefix}enrollment.auto_renewal" in form
    for name in ("renewal_period", "renewal_period_days"):  # the one that is not active is not sent
        if text(f"enrollment.{name}"):
            enrollment[name] = _number(text(f"enrollment.{name}"))
    proto = enrollment["proto"]
    if proto in {"est", "scep"}:
        enrollment[proto] = {name: text(f"enrollment.{proto}.{name}") for name in TEXTS[proto]}
    cert: dict[str, Any] = {
        "friendly_name": form.get(f"{prefix}friendly_name", ""),
        "subject": {name: text(f"subject.{name}") for name in TEXTS["subject"]},
        "subjaltname": {
            "auto_hostname": f"{prefix}subjaltname.auto_hostname" in form,
            "auto_ip": f"{prefix}subjaltname.auto_ip" in form,
            **{
                name: _entries(text(f"subjaltname.{name}"), "\r\n" if name == "uri" else "\r\n,;")
                for name in LISTS
            },
        },
        "key": {"type": text("key.type")},
        "enrollment": enrollment,
    }
    for place in SECRETS:
        _secret(cert, place, form.get(prefix + place, ""), f"{prefix}{place}.clear" in form)
    return cert


def _entries(text: str, ends: str) -> list[str]:
    """What stands between the characters `ends`; a URI may hold commas and semicolons itself."""
    return [part for each in re.split(f"[{ends}]", text) if (part := each.strip())]


def _secret(cert: dict[str, Any], place: str, typed: str, clear: bool) -> None:
    """Typed: it is set. Ticked "remove": it goes. Neither: it stays, so it is not named."""
    if not typed and not clear:
        return
    at: Any = cert
    *way, last = place.split(".")
    for step in way:
        at = at.get(step)
        if at is None:
            return
    at[last] = typed


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def form_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a document: what the form shows. Passwords are not in it."""
    found: dict[str, Any] = {}
    if document.get("show_user_notifications", True):
        found["show_user_notifications"] = "on"
    for index, cert in enumerate(document.get("certs", [])):
        for name, value in _flat(_filled(DEFAULTS, cert)):
            if isinstance(value, bool):
                if value:
                    found[f"c{index}.{name}"] = "on"
            elif isinstance(value, (list, tuple)):
                found[f"c{index}.{name}"] = "\n".join(value)
            else:
                found[f"c{index}.{name}"] = str(value)
    return found


def _filled(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(defaults)
    for key, value in given.items():
        before = found.get(key)
        if isinstance(value, Mapping):
            found[key] = _filled(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(before, (list, tuple)) and isinstance(value, str):
            found[key] = [value]
        else:
            found[key] = value
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if key.startswith("crypt_"):
            continue
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return found


# ---- two administrators at one profile ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """certificate: its friendly name, "" for a field of the whole; field: as in the settings document."""

    certificate: str
    field: str
    stored: str
    entered: str


def differences(stored: Mapping[str, Any], entered: Mapping[str, Any]) -> list[Difference]:
    """What differs between the fields of a stored document (form_of) and those of a form; passwords are in neither.

    A certificate is the same where its friendly name is, or was when the form was made.
    """
    found = _compared("", stored, entered, "", "")
    there = {str(stored.get(f"c{index}.friendly_name", "")): index for index in cert_indexes(stored)}
    for index in cert_indexes(entered):
        name = str(entered.get(f"c{index}.friendly_name", ""))
        known = next((each for each in (str(entered.get(f"c{index}.was", "")), name) if each in there), None)
        if known is None:
            found.append(Difference(name, "certificate", "", "there"))
        else:
            found += _compared(name, stored, entered, f"c{there.pop(known)}.", f"c{index}.")
    return found + [Difference(name, "certificate", "there", "") for name in there]


def _compared(
    name: str, stored: Mapping[str, Any], entered: Mapping[str, Any], ours: str, theirs: str
) -> list[Difference]:
    """The fields below these prefixes; "" for those of the whole."""
    mine = _below(stored, ours)
    other = _below(entered, theirs)
    if not ours:
        names = ["show_user_notifications"]
    else:
        # a form has not every field of a document, and does not send those that are not active, nor boxes without a tick
        names = [field for field in dict.fromkeys([*mine, *other]) if field in other or mine[field] == "on"]
        names = [field for field in names if field != "was"]
    pairs = ((field, _plain(mine.get(field, "")), _plain(other.get(field, ""))) for field in names)
    return [Difference(name, field, before, after) for field, before, after in pairs if before != after]


def _below(fields: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in fields.items()
        if name.startswith(prefix) and ".crypt_" not in name
    }


def _plain(value: Any) -> str:
    return ", ".join(_entries(str(value), "\r\n"))
