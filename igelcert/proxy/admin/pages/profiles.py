"""The pages of profiles: Security > Certificates."""

from __future__ import annotations

import json
from typing import Any

from flask import Blueprint, make_response, render_template, request

from ....errors import ConflictError, SettingsError
from ....model import KEY_TYPES
from ... import devices, inventory, profiles
from ...context import Context
from ...profiles import Stored
from ..forms import Problems, document_of, form_of
from .base import Answer, caller, done, form, partial, show

__all__ = ["add"]

KEY_NAMES = {
    "rsa_2048": "RSA 2048",
    "rsa_3072": "RSA 3072",
    "rsa_4096": "RSA 4096",
    "rsa_8192": "RSA 8192",
    "ecdsa_ed25519": "ECDSA ed25519",
    **{kind: f"EC {kind[3:]}" for kind in KEY_TYPES if kind.startswith("ec_")},
}


def add(routes: Blueprint, context: Context) -> None:
    @routes.get("/profiles")
    @show(context)
    def profiles_page() -> Answer:
        return render_template("profiles.html", found=profiles.listing(context))

    @routes.get("/profiles/new")
    @form(context)
    def profile_new() -> Answer:
        values = {**form_of({"certs": [{}]}), "name": "", "version": "0"}
        return render_template("profile.html", **_page(context, None, values, Problems()))

    @routes.get("/profiles/p/<name>")
    @show(context)
    def profile(name: str) -> Answer:
        found = profiles.get(context, name)
        if found is None:
            text = f"There is no profile {name[:80]!r}."
            return make_response(render_template("problem.html", title="Unknown profile", text=text), 404)
        return render_template("profile.html", **_page(context, found, _values(found), Problems()))

    @routes.post("/profiles")
    @form(context)
    def profile_save() -> Answer:
        values, problems = request.form.to_dict(), Problems()
        name, version = values.get("name", "").strip(), values.get("version", "0")
        expected = int(version) if version.isascii() and version.isdecimal() and len(version) < 16 else -1
        document = document_of(values)
        _unique(document, values, problems)
        conflict = None
        try:
            if not problems:
                profiles.store(
                    context,
                    name,
                    json.dumps(document).encode(),
                    keep_secrets=True,
                    renamed=_renamed(values),
                    expected=expected,
                )
                _passthrough(context, name, "passthrough" in values)
                return done("profile", "stored", name=name)
        except ConflictError as err:
            problems.add(err)
            conflict = profiles.get(context, name)
        except SettingsError as err:
            problems.add(err, values)
        stored = profiles.get(context, name) if expected else None
        page = _page(context, stored, values, problems, conflict)
        return partial("profile.html", 409 if conflict else 422, **page)

    @routes.post("/profiles/preview")
    @form(context, changes=False)
    def profile_preview() -> Answer:
        problems, found = Problems(), []
        device = devices.get(context, request.form.get("preview_device", "").strip())
        if device is None:
            problems.others.append("No such device is known: give a unit ID.")
        else:
            try:
                found = profiles.preview(document_of(request.form), device)
            except SettingsError as err:
                problems.add(err)
        return render_template("_preview.html", found=found, problems=problems, device=device)

    @routes.post("/profiles/p/<name>/assign")
    @form(context)
    def profile_assign(name: str) -> Answer:
        kind, target = request.form.get("kind", ""), request.form.get("target", "").strip()
        where = {"device": target} if kind == "device" else {"directory": target}
        if request.form.get("do") == "unassign":
            profiles.unassign(context, name, **where)
            return done("profile", "unassigned", name=name)
        profiles.assign(context, name, **where)
        return done("profile", "assigned", name=name)

    @routes.post("/profiles/p/<name>/remove")
    @form(context)
    def profile_remove(name: str) -> Answer:
        profiles.remove(context, name)
        return done("profiles_page", "removed")


def _values(found: Stored) -> dict[str, Any]:
    values = {**form_of(found.document), "name": found.name, "version": str(found.version)}
    for index, cert in enumerate(found.document.get("certs", [])):
        values[f"c{index}.was"] = cert.get("friendly_name", profiles.DEFAULT_NAME)
    if found.passthrough:
        values["passthrough"] = "on"
    return values


def _renamed(values: dict[str, str]) -> dict[str, str]:
    """New friendly name -> the one that it had, so that its passwords stay."""
    found = {}
    for name, was in values.items():
        if name.endswith(".was") and was:
            found[values.get(f"{name.removesuffix('.was')}.friendly_name", "")] = was
    return found


def _unique(document: dict[str, Any], values: dict[str, str], problems: Problems) -> None:
    """A friendly name is a directory on the device: a second one would be passed over."""
    seen: set[str] = set()
    for name in sorted(name for name in values if name.endswith(".friendly_name")):
        if values[name] in seen:
            problems.fields[name] = "Another certificate of this profile has this name."
        seen.add(values[name])


def _passthrough(context: Context, name: str, wanted: bool) -> None:
    found = profiles.must_find(context, name)
    if found.passthrough != wanted:
        profiles.allow_passthrough(context, name, wanted)


def _page(
    context: Context,
    stored: Stored | None,
    values: dict[str, Any],
    problems: Problems,
    conflict: Stored | None = None,
) -> dict[str, Any]:
    indexes = sorted(
        {int(name[1:].partition(".")[0]) for name in values if name[:1] == "c" and name[1:2].isdigit()}
    )
    clean = {key: value for key, value in values.items() if ".crypt_" not in key and key != "csrf"}
    secrets = stored.secrets if stored else ()
    clashes = profiles.clashes(context, stored.name, stored.document) if stored and not problems else []
    if conflict is not None:
        clean["version"] = str(conflict.version)
    return {
        "stored": stored,
        "v": clean,
        "indexes": indexes,
        "set": _secret_fields(stored, values, secrets),
        "problems": problems,
        "conflict": conflict,
        "clashes": clashes,
        "key_names": KEY_NAMES,
        "editable": caller().may_change,
        "directories": [each.path for each in inventory.tree(context)],
        "blank": _blank(),
    }


def _blank() -> dict[str, Any]:
    """The fields of a certificate that is added in the browser, which puts its number in place of 999."""
    values = form_of({"certs": [{"friendly_name": ""}]})
    return {name.replace("c0.", "c999.", 1): value for name, value in values.items()}


def _secret_fields(stored: Stored | None, values: dict[str, Any], secrets: tuple[str, ...]) -> set[str]:
    """Names of the form's password fields that are set; a certificate is known by the name it had."""
    if stored is None:
        return set()
    places = {f"c{i}.was": values.get(f"c{i}.was") for i in range(100) if f"c{i}.was" in values}
    found = set()
    for index, cert in enumerate(stored.document.get("certs", [])):
        name = cert.get("friendly_name", profiles.DEFAULT_NAME)
        for field, was in places.items():
            if was == name:
                prefix = f"certs[{index}]."
                found |= {
                    f"{field.removesuffix('was')}{path.removeprefix(prefix)}"
                    for path in secrets
                    if path.startswith(prefix)
                }
    return found
