"""The pages of devices: the tree, the list, one device, import."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, make_response, render_template, request

from ....errors import ConflictError, SettingsError
from ... import certificates, inventory, merging, profiles, renewals
from ... import devices as registry
from ...context import Context
from ...importing import MAX_SHEET, Import, token_sheet
from ...inventory import Directory
from ..forms import Problems
from ..rest.devices import import_lines
from ..rest.operations import NDJSON
from .base import (
    PAGE_SIZE,
    Answer,
    caller,
    done,
    form,
    number,
    offset_links,
    problem_lines,
    show,
    unsure,
    upload,
    wants_lines,
)

__all__ = ["add"]


def add(routes: Blueprint, context: Context) -> None:
    @routes.get("/devices")
    @show(context)
    def devices() -> Answer:
        return render_template("devices.html", **_list(context))

    @routes.route("/devices/add", methods=["GET", "POST"])
    @form(context)
    def device_add() -> Answer:
        problems = Problems()
        given = request.form if request.method == "POST" else request.args
        values = {name: given.get(name, "").strip() for name in ("unit_id", "directory", "hostname")}
        if request.method == "POST":
            try:
                token = registry.add(
                    context, values["unit_id"], values["directory"] or "/", values["hostname"]
                )
                return token_page(token, fresh=True)
            except SettingsError as err:
                problems.add(err, values)
        known = registry.get(context, values["unit_id"]) if problems else None
        page = render_template(
            "device_add.html", values=values, problems=problems, known=known, tree=inventory.tree(context)
        )
        return make_response(page, 422 if problems else 200)

    def token_page(token: registry.Token, *, fresh: bool) -> Answer:
        return render_template("device_token.html", token=token, fresh=fresh, server=context.address)

    def add_again(unit_id: str, values: dict[str, str]) -> Answer:
        """The form of a new device, with what was entered for one that is gone."""
        text = (
            f"The device {unit_id[:64]} was removed meanwhile. What you entered is still here: add it anew, if it is "
            "to come back."
        )
        page = render_template(
            "device_add.html",
            values={"directory": "", "hostname": "", **values, "unit_id": unit_id},
            problems=Problems(others=[text]),
            known=None,
            tree=inventory.tree(context),
        )
        return make_response(page, 409)

    def list_again(err: SettingsError, at: str, **entered: Any) -> Answer:
        """The list with what was entered, and what is wrong with it at the field `at`."""
        problems = Problems()
        problems.add(SettingsError(at, err.reason, hint=err.hint))
        return make_response(render_template("devices.html", **_list(context, problems, entered)), 422)

    @routes.post("/devices/bulk")
    @form(context)
    def devices_bulk() -> Answer:
        chosen, to = request.form.getlist("unit_id"), request.form.get("to", "").strip()
        try:
            if not chosen:
                raise SettingsError("to", "no device is chosen")
            if request.form.get("do") == "remove":
                if question := unsure(f"Remove {len(chosen)} devices? Their next request is refused."):
                    return question
                registry.remove(context, *chosen)
                return done("devices", "removed", directory=request.args.get("directory"))
            inventory.move(context, chosen, to)
            return done("devices", "moved", directory=to)
        except SettingsError as err:
            return list_again(err, "to", chosen=chosen, to=to)

    @routes.route("/devices/import", methods=["GET", "POST"])
    @form(context)
    def device_import() -> Answer:
        problems, made = Problems(), ""
        if request.method == "GET":
            return render_template("device_import.html", problems=problems, made=made)
        try:
            data = upload("sheet", MAX_SHEET)
            if data is None:
                raise SettingsError("sheet", "no file is chosen")
            try:
                sheet = Import(data.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise SettingsError("sheet", "is not UTF-8") from None
            if wants_lines():
                return Response(import_lines(context, caller(), sheet), content_type=NDJSON)
            for _ in sheet.check():
                pass
            made = token_sheet(sheet.write(context))
        except SettingsError as err:
            text = err.reason if err.path == "sheet" else f"{err.path}: {err.reason}"
            problems.add(SettingsError("sheet", text, hint=err.hint))
            if wants_lines():
                return problem_lines(problems)
        page = render_template("device_import.html", problems=problems, made=made)
        return make_response(page, 422 if problems else 200)

    @routes.get("/devices/u/<unit_id>")
    @show(context)
    def device(unit_id: str) -> Answer:
        return _device(context, unit_id, Problems())

    @routes.post("/devices/u/<unit_id>")
    @form(context)
    def device_change(unit_id: str) -> Answer:
        problems, values = Problems(), request.form
        try:
            inventory.change(
                context,
                unit_id,
                directory=values.get("directory", "/").strip(),
                hostname=values.get("hostname", "").strip(),
                seen=(values.get("seen_directory", ""), values.get("seen_hostname", "")),
            )
            return done("device", "changed", unit_id=unit_id)
        except ConflictError as err:
            problems.add(err)
        except SettingsError as err:
            problems.add(err, values)
        if registry.get(context, unit_id) is None:
            return add_again(unit_id, values.to_dict())
        return _device(context, unit_id, problems, values.to_dict())

    @routes.post("/devices/u/<unit_id>/token")
    @form(context)
    def device_token(unit_id: str) -> Answer:
        return token_page(registry.new_token(context, unit_id), fresh=False)

    @routes.post("/devices/u/<unit_id>/renew")
    @form(context)
    def device_renew(unit_id: str) -> Answer:
        renewals.renew_now(context, unit_id, request.form.get("name", ""))
        return done("device", "renewing", unit_id=unit_id)

    @routes.post("/devices/u/<unit_id>/remove")
    @form(context)
    def device_remove(unit_id: str) -> Answer:
        if question := unsure(f"Remove the device {unit_id}? Its next request is refused."):
            return question
        registry.remove(context, unit_id)
        return done("devices", "removed")

    @routes.post("/devices/u/<unit_id>/profiles")
    @form(context)
    def device_profiles(unit_id: str) -> Answer:
        name = request.form.get("profile", "")
        if request.form.get("do") == "unassign":
            profiles.unassign(context, name, device=unit_id)
            return done("device", "unassigned", unit_id=unit_id)
        profiles.assign(context, name, device=unit_id)
        return done("device", "assigned", unit_id=unit_id)

    @routes.post("/directories")
    @form(context)
    def directory_do() -> Answer:
        path, to = request.form.get("path", "").strip(), request.form.get("to", "").strip()
        what, name = request.form.get("do", ""), request.form.get("profile", "")
        try:
            match what:
                case "add":
                    return done("devices", "made", directory=inventory.make_directory(context, path))
                case "remove":
                    if question := unsure(f"Remove the directory {path} and what is assigned to it?"):
                        return question
                    inventory.remove_directory(context, path)
                    return done("devices", "removed")
                case "move":
                    inventory.move_directory(context, path, to)
                    return done("devices", "moved", directory=to)
                case "unassign":
                    profiles.unassign(context, name, directory=path)
                    return done("devices", "unassigned", directory=path)
            profiles.assign(context, name, directory=path)
            return done("devices", "assigned", directory=path)
        except SettingsError as err:
            at = {"add": "new-dir", "move": "move-dir", "remove": "move-dir"}.get(what, "assign")
            return list_again(err, at, **({"path": path} if what == "add" else {"move": to} if to else {}))


def _list(
    context: Context, problems: Problems | None = None, entered: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What is to be seen of the list. A directory or state that is none shows all, and is said."""
    problems = problems or Problems()
    text, state = request.args.get("search", "").strip()[:200], request.args.get("state", "")
    tree = inventory.tree(context)
    directory = request.args.get("directory", "/")
    here = next((each for each in tree if each.path == directory), tree[0])
    if here.path != directory:
        problems.others.append(f"There is no directory {directory[:80]!r}: all devices are shown.")
    if state and state not in inventory.STATES:
        problems.fields["state"] = f"There is no state {state[:40]!r}: all are shown."
        state = ""
    offset = number("offset")
    found = inventory.search(
        context, text=text, directory=here.path, state=state, limit=PAGE_SIZE, offset=offset
    )
    filters = {"search": text, "state": state, "directory": here.path}
    return {
        "found": found.items,
        "problems": problems,
        "entered": entered or {},
        "place": {**{key: value for key, value in filters.items() if value}, "offset": offset or None},
        "until": certificates.soonest(context, [device.unit_id for device in found.items]),
        "pages": offset_links("devices", found.total, offset, **filters),
        "tree": nested(tree, here.path),
        "directories": tree,
        "here": here,
        "search": text,
        "state": state,
        "states": inventory.STATES,
        "profiles": [each.name for each in profiles.listing(context)] if caller().may_change else [],
    }


def nested(tree: list[Directory], here: str) -> dict[str, Any]:
    """The tree as nodes {directory, open, children}; open: on the way to where one stands."""
    nodes: dict[str, dict[str, Any]] = {}
    for each in tree:
        path = each.path.rstrip("/") + "/"
        node = {"directory": each, "open": each.path == "/" or f"{here}/".startswith(path), "children": []}
        nodes[each.path] = node
        if each.path != "/":
            nodes[each.path.rpartition("/")[0] or "/"]["children"].append(node)
    return nodes["/"]


def _device(
    context: Context, unit_id: str, problems: Problems, values: dict[str, str] | None = None
) -> Answer:
    found = inventory.detail(context, unit_id)
    if found is None:
        text = f"No device {unit_id[:64]!r} is known: it was removed, or never added."
        return make_response(render_template("problem.html", title="Unknown device", text=text), 404)
    given = merging.effective(context, found.device)
    names = dict.fromkeys([cert.friendly_name for cert in given.certs])
    names |= dict.fromkeys([cert.friendly_name for cert in found.certs])
    shown = {
        "directory": found.device.directory,
        "hostname": found.device.hostname if found.device.hostname_fixed else "",
    }
    page = render_template(
        "device.html",
        d=found,
        names=list(names),
        wanted={cert.friendly_name for cert in given.certs},
        certs={cert.friendly_name: cert for cert in found.certs},
        problems=problems,
        shown=shown,
        values=values or shown,
        every=[each.name for each in profiles.listing(context)],
        directories=inventory.tree(context),
    )
    return make_response(page, 422 if problems else 200)
