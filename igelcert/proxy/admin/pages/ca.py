"""The page CA Proxy: which CA stands behind the proxy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, render_template, request

from ....errors import ConflictError, Error, SettingsError
from ....model import CA_LABEL_MAX
from ... import ca, renewals
from ...clitools import duration
from ...context import Context
from ...keystore import MAX_KEYSTORE
from ...upstream import Step
from ...upstream.config import CaConfig, EstSettings, ScepSettings, clear, load, rate_of
from ..forms import Problems
from .base import Answer, caller, done, form, lines, partial, problem_lines, show, unsure, upload, wants_lines

__all__ = ["add"]

FIELDS = {
    "est": ("name", "host", "port", "label", "rate"),
    "scep": ("name", "url", "profile", "fingerprint", "renewal", "poll", "ndes_url", "ndes_user", "rate"),
}
SHOWN = {
    "est": (*FIELDS["est"], "keystore", "keystore_password"),
    "scep": (*FIELDS["scep"], "certificate", "ndes_password"),
}
MAX_CERTIFICATE = 100_000
FRESH = {"port": "443", "renewal": "pkcsreq", "poll": "60"}


def add(routes: Blueprint, context: Context) -> None:
    def again(kind: str, problems: Problems, status: int = 0, **more: Any) -> Answer:
        """The page with what was entered."""
        page = _page(context, kind, request.form.to_dict(), problems)
        return partial("ca.html", status or (422 if problems else 200), **page, **more)

    @routes.get("/ca")
    @show(context)
    def ca_page() -> Answer:
        now = ca.describe(context)
        wanted = request.args.get("kind", "")
        kind = wanted if wanted in FIELDS else (now["kind"] if now else "est")
        values = _values(now) if now and now["kind"] == kind else dict(FRESH)
        return render_template("ca.html", **_page(context, kind, values, Problems()))

    @routes.post("/ca")
    @form(context)
    def ca_save() -> Answer:
        kind, problems, conflict = _kind(), Problems(), False
        try:
            config = _config(context, kind)
            ca.save(
                context, config, replace=request.form.get("replace") == "yes", expected=_version(request.form)
            )
            return done("ca_page", "saved")
        except ConflictError as err:
            problems.add(err)
            conflict = True
        except SettingsError as err:
            problems.add(err, SHOWN[kind])
        return again(kind, problems, 409 if conflict else 422, conflict=conflict)

    @routes.post("/ca/test")
    @form(context)
    def ca_test() -> Answer:
        """Link by link, what is in the form: it need not be saved."""
        kind, problems = _kind(), Problems()
        try:
            found = _steps(context, _config(context, kind))
        except SettingsError as err:
            problems.add(err, SHOWN[kind])
            return problem_lines(problems) if wants_lines() else again(kind, problems)
        if wants_lines():
            return lines(_step_lines(found))
        return again(kind, problems, steps=list(found))

    @routes.post("/ca/readout")
    @form(context)
    def ca_readout() -> Answer:
        """What the chosen keystore holds."""
        problems, found = Problems(), None
        try:
            data = upload("keystore", MAX_KEYSTORE)
            if data is None:
                raise SettingsError("--keystore", "no file is chosen")
            found = ca.readout(data, request.form.get("keystore_password", ""))
        except SettingsError as err:
            problems.add(err, SHOWN["est"])
        if not wants_lines():
            return again("est", problems, readout=found)
        if problems:
            return problem_lines(problems)
        return lines([{"html": render_template("_keystore.html", keystore=found)}])

    @routes.post("/ca/remove")
    @form(context)
    def ca_remove() -> Answer:
        if question := unsure("Remove the configuration of the CA and its secrets?"):
            return question
        clear(context, expected=_version(request.form))
        return done("ca_page", "removed")

    @routes.post("/ca/renew")
    @form(context)
    def ca_renew() -> Answer:
        """All that a CA issued, or all of a directory, within a time."""
        which, value = request.form.get("which", ""), request.form.get("value", "").strip()
        if which not in {"issuer", "directory", "device"}:
            raise SettingsError("which", "is not one of: issuer directory device")
        if not value:
            raise SettingsError("value", "is empty: say whose certificates are to be renewed")
        within = _within(request.form.get("within", "").strip())
        if question := unsure(f"Renew all certificates of the {which} {value}?"):
            return question
        asked = renewals.renew(context, **{which: value}, within=within)
        return done("ca_page", "asked-fast" if asked.warnings else "asked")


def _steps(context: Context, config: CaConfig) -> Iterator[Step]:
    try:
        yield from ca.test(context, None if _is_stored(context, config) else config)
    except Error as err:
        yield Step("configuration", False, str(err), err.hint)


def _step_lines(found: Iterator[Step]) -> Iterator[dict[str, str]]:
    step = None
    for step in found:
        yield {"html": render_template("_step.html", step=step)}
    yield {"end": render_template("_tested.html", step=step)}


def _kind() -> str:
    kind = request.form.get("kind", "")
    if kind not in FIELDS:
        raise SettingsError("kind", "is neither EST nor SCEP")
    return kind


def _within(text: str) -> int:
    try:
        return duration(text) if text else 0
    except argparse.ArgumentTypeError:
        raise SettingsError("within", "is no time such as 90s, 30m, 6h or 2d") from None


def _version(values: Any) -> int:
    text = values.get("version", "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else -1


def _page(context: Context, kind: str, values: dict[str, Any], problems: Problems) -> dict[str, Any]:
    now = ca.describe(context)
    secret = {"csrf", "keystore_password", "ndes_password", "version", "replace", "kind"}
    return {
        "label_max": CA_LABEL_MAX,
        "kind": kind,
        "values": {key: value for key, value in values.items() if key not in secret},
        "problems": problems,
        "ca": now,
        "stored_version": now["version"] if now else 0,
        "replaces": now if now and now["kind"] != kind else None,
        "agreed": values.get("replace") == "yes",
        "editable": caller().may_change,
    }


def _values(now: dict[str, Any]) -> dict[str, Any]:
    found = {name: "" if now.get(name) is None else str(now[name]) for name in FIELDS[now["kind"]]}
    found["rate"] = f"{now['rate']}/h" if now["rate"] else ""
    if now.get("legacy"):
        found["legacy"] = "on"
    return found


def _config(context: Context, kind: str) -> CaConfig:
    """What the form says. A file or password that is not given is the stored one."""
    values = {name: request.form.get(name, "").strip() for name in FIELDS[kind]}
    if kind == "est":
        port = values["port"] or "443"
        if not (port.isascii() and port.isdecimal() and len(port) < 6):
            raise SettingsError("--port", "is not a number")
        rate = rate_of(values["rate"] or "0")
        settings = EstSettings(values["name"], values["host"], int(port), values["label"], rate)
        password = request.form.get("keystore_password", "")
        keystore = upload("keystore", MAX_KEYSTORE)
        if keystore is None and password:
            raise SettingsError("--keystore", "no file is chosen, and a password is given")
        return ca.assemble(context, settings, keystore, password if keystore is not None else None)
    certificate = upload("certificate", MAX_CERTIFICATE)
    text = (
        ca.certificate_text(certificate) if certificate is not None else _stored_certificate(context, values)
    )
    poll = values["poll"] or "60"
    if not (poll.isascii() and poll.isdecimal() and len(poll) < 6):
        raise SettingsError("--poll", "is not a number")
    scep = ScepSettings(
        values["name"],
        values["url"],
        values["profile"],
        values["fingerprint"],
        text,
        values["renewal"] or "pkcsreq",
        "legacy" in request.form,
        int(poll),
        values["ndes_url"],
        values["ndes_user"],
        rate_of(values["rate"] or "0"),
    )
    return ca.assemble(context, scep, None, request.form.get("ndes_password") or None)


def _stored_certificate(context: Context, values: dict[str, str]) -> str:
    if "certificate_clear" in request.form:
        return ""
    return ca.certificate_of(context, {"url": values["url"]})


def _is_stored(context: Context, config: CaConfig) -> bool:
    """Is it the very configuration in use? Then the test says something of that, too."""
    now = load(context)
    return now is not None and (now.settings, now.keystore, now.password) == (
        config.settings,
        config.keystore,
        config.password,
    )
