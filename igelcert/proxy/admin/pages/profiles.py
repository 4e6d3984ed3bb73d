"""The pages of profiles: Security > Certificates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, make_response, render_template, request

from ....errors import ConflictError, SettingsError
from ....model import KEY_TYPES
from ... import devices, inventory, profiles
from ...context import Context
from ...profiles import Preview, Stored
from ..forms import Problems, cert_indexes, differences, document_of, form_of
from .base import Answer, caller, done, form, lines, partial, problem_lines, show, unsure, wants_lines

__all__ = ["add"]

GONE = (
    "This profile was removed by somebody else meanwhile. What you entered is still here: Save makes it anew, assigned to "
    "nothing; passwords that were set are to be typed again."
)
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
        return stored_page(name, Problems(), {})

    def stored_page(name: str, assigning: Problems, assign: dict[str, str]) -> Answer:
        """A profile as it is stored; what was wrong with an assignment stands at its field."""
        found = profiles.get(context, name)
        if found is None:
            text = f"There is no profile {name[:80]!r}."
            return make_response(render_template("problem.html", title="Unknown profile", text=text), 404)
        page = _page(context, found, _values(found), Problems())
        text = render_template("profile.html", **page, assigning=assigning, assign=assign)
        return make_response(text, 422 if assigning else 200)

    def again(values: dict[str, str], problems: Problems, status: int, **more: Any) -> Answer:
        """The form with what was entered."""
        stored = profiles.get(context, values.get("name", "").strip()) if _version(values) else None
        return partial("profile.html", status, **_page(context, stored, values, problems, **more))

    @routes.post("/profiles")
    @form(context)
    def profile_save() -> Answer:
        values, problems = request.form.to_dict(), Problems()
        name, document = values.get("name", "").strip(), document_of(values)
        _unique(values, problems)
        conflict = None
        try:
            if not problems:
                profiles.store(
                    context,
                    name,
                    json.dumps(document).encode(),
                    keep_secrets=True,
                    renamed=_renamed(values),
                    expected=_version(values),
                )
                _passthrough(context, name, "passthrough" in values)
                return done("profile", "stored", name=name)
        except ConflictError as err:
            conflict = profiles.get(context, name)
            if conflict is None:
                values["version"] = "0"
                problems.others.append(GONE)
            else:
                problems.add(err)
        except SettingsError as err:
            problems.add(err, values)
        gone = GONE in problems.others
        return again(values, problems, 409 if conflict or gone else 422, conflict=conflict)

    @routes.post("/profiles/draft")
    @form(context)
    def profile_draft() -> Answer:
        """Where no script does it: one certificate more, or one less."""
        values, what = request.form.to_dict(), request.form.get("draft", "")
        if what == "add":
            values |= _blank(str(max(cert_indexes(values), default=-1) + 1))
        else:
            gone = f"{what.removeprefix('remove ')}."
            values = {name: value for name, value in values.items() if not name.startswith(gone)}
        return again(values, Problems(), 200)

    @routes.post("/profiles/preview")
    @form(context, changes=False)
    def profile_preview() -> Answer:
        values, problems, found = request.form.to_dict(), Problems(), []
        device = devices.get(context, values.get("preview_device", "").strip())
        if device is None:
            problems.fields["preview_device"] = "No such device is known: give a unit ID."
        else:
            try:
                if caller().may_change:
                    document = document_of(values)
                else:  # whose form is not active: it sends none of its fields
                    document = profiles.must_find(context, values.get("name", "")).document
                found = profiles.preview(document, device)
            except SettingsError as err:
                problems.add(err, values)
        if not wants_lines():
            return again(values, problems, 422 if problems else 200, previews=found)
        if problems:
            return problem_lines(problems)
        return lines([{"html": render_template("_preview.html", previews=found)}])

    @routes.post("/profiles/p/<name>/assign")
    @form(context)
    def profile_assign(name: str) -> Answer:
        kind, target = request.form.get("kind", ""), request.form.get("target", "").strip()
        where = {"device": target} if kind == "device" else {"directory": target}
        try:
            if request.form.get("do") == "unassign":
                profiles.unassign(context, name, **where)
                return done("profile", "unassigned", name=name)
            profiles.assign(context, name, **where)
            return done("profile", "assigned", name=name)
        except SettingsError as err:
            problems = Problems()
            problems.add(SettingsError("target", err.reason, hint=err.hint))
            return stored_page(name, problems, {"kind": kind, "target": target})

    @routes.post("/profiles/p/<name>/remove")
    @form(context)
    def profile_remove(name: str) -> Answer:
        if question := unsure(_removal(context, name)):
            return question
        profiles.remove(context, name, force=True)
        return done("profiles_page", "removed")


def _removal(context: Context, name: str) -> str:
    """The question before a profile is removed."""
    lost = profiles.loss(context, name)
    return f"Remove the profile {name}? " + (f"{lost}." if lost else "No device has certificates of it.")


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


def _version(values: dict[str, str]) -> int:
    """The version that the form was made of; -1 for nonsense."""
    text = values.get("version", "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else -1


def _unique(values: dict[str, str], problems: Problems) -> None:
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
    *,
    conflict: Stored | None = None,
    previews: Sequence[Preview] = (),
) -> dict[str, Any]:
    indexes = cert_indexes(values)
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
        "differences": differences(form_of(conflict.document), clean) if conflict else (),
        "previews": previews,
        "clashes": clashes,
        "key_names": KEY_NAMES,
        "editable": caller().may_change,
        "removal": _removal(context, stored.name) if stored else "",
        "directories": [each.path for each in inventory.tree(context)],
        "blank": _blank("999"),
    }


def _blank(index: str) -> dict[str, Any]:
    """The fields of a certificate that is added. In the browser its number takes the place of 999."""
    values = form_of({"certs": [{"friendly_name": ""}]})
    return {
        name.replace("c0.", f"c{index}.", 1): value
        for name, value in values.items()
        if name.startswith("c0.")
    }


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
