"""Where the agent registers, gets its settings and reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from ..errors import RemoteProtocolError, SettingsError
from ..settings import EnrollmentSettings, load_json
from . import certificates, challenges, changes, devices, merging, registration, rollover
from .context import Context
from .identity import client_of
from .upstream.config import standing
from .waiting import KEY, Place, Visit, preferred_wait, retry_soon

__all__ = ["WAIT_MAX", "make"]

WAIT_MAX = 600  # seconds


def make(context: Context) -> Blueprint:
    routes = Blueprint("rmagent", __name__, url_prefix="/rmagent")

    @routes.get("/cacerts")
    def cacerts() -> Response:
        """The management CAs that count, for a device that knows the fingerprint of one, or hears of a change."""
        return Response(rollover.standing(context).pem, content_type="application/x-pem-file")

    @routes.post("/register")
    def register() -> Response:
        body = _object()
        if "token" in body:
            return jsonify(registration.register(context, body))
        device = client_of(context, request.environ).device()
        g.unit_id = device.unit_id
        return jsonify(registration.renew_identity(context, device, body))

    @routes.get("/settings")
    def settings() -> Response:
        client = client_of(context, request.environ)
        seconds = preferred_wait(request.headers.get("Prefer", ""), WAIT_MAX)
        with context.db.read():  # one view: what changes later has a later id
            since = changes.newest(context) if seconds else 0
            device = client.device()
            found = merging.effective(context, device)
            challenged = challenges.in_force(context, standing(context)[1])
            cas = rollover.standing(context)
        g.unit_id = device.unit_id
        found = challenges.hand_out(context, challenged, device, found)
        etag = cas.tagged(found.etag)
        visit: Visit | None = request.environ.get(KEY)
        if not _is_known(etag):
            response = jsonify(found.document)
            # ten thousand devices hear of a change at once; that they act on it at once helps none of them
            if visit and visit.seconds and (turn := context.upstreams.gate.news()):
                response.headers["Retry-After"] = str(turn)
        else:
            response = Response(status=304)
            if seconds:
                place = Place(device.unit_id, device.directory, etag, since)
                if found.incomplete:
                    seconds = min(seconds, challenges.RETRY_SECONDS)
                # without a visit: a server of somebody else, which cannot park
                if later := visit.wait(place, seconds) if visit else retry_soon():
                    response.headers["Retry-After"] = str(later)
        if visit and visit.seconds:
            response.headers["Preference-Applied"] = f"wait={visit.seconds}"
        response.headers["ETag"] = etag
        response.headers["Management-Trust"] = cas.trust
        response.headers["Management-Issuer"] = cas.issuer
        return response

    @routes.post("/report")
    def report() -> Response:
        client = client_of(context, request.environ)
        device = client.device()
        g.unit_id = device.unit_id
        body = _object()
        said = registration.report(context, device, body, client.certificate)
        if said is None:
            return Response(status=204)
        failing = {entry["friendly_name"] for entry in said if entry["error"]}
        found = certificates.told_windows(context, device.unit_id, lambda: _rules(device), failing)
        return jsonify(windows=found) if found else Response(status=204)

    def _rules(device: devices.Device) -> dict[str, EnrollmentSettings]:
        return {cert.friendly_name: cert.enrollment for cert in merging.effective(context, device).certs}

    return routes


def _is_known(etag: str) -> bool:
    """Does the client have this version (If-None-Match, weak comparison)?"""
    given = request.headers.get("If-None-Match", "").split(",")
    return etag in [tag.strip().removeprefix("W/") for tag in given]


def _object() -> dict[str, Any]:
    try:
        body = load_json(request.get_data())
    except SettingsError as err:
        raise RemoteProtocolError(f"the body cannot be read: {err}") from None
    if not isinstance(body, dict):
        raise RemoteProtocolError("the body is not a JSON object")
    if not all(map(_is_storable, _texts(body))):
        raise RemoteProtocolError(
            "the body holds a text with NUL or with half a character (a lone surrogate)"
        )
    return body


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys as well; a stranger's nesting costs no stack."""
    rest = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            rest += each
            rest += each.values()
        elif isinstance(each, list):
            rest += each


def _is_storable(text: str) -> bool:
    """Is it text to hashes and databases, too?"""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
