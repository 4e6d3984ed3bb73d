"""Where the agent registers, gets its settings and reports."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from ..errors import RemoteProtocolError, SettingsError
from ..settings import load_json
from . import challenges, devices, profiles
from .context import Context
from .identity import client_of

__all__ = ["make"]


def make(context: Context) -> Blueprint:
    routes = Blueprint("rmagent", __name__, url_prefix="/rmagent")

    @routes.get("/cacerts")
    def cacerts() -> Response:
        """The management CA, for a device that knows its fingerprint."""
        return Response(context.management_ca.pem, content_type="application/x-pem-file")

    @routes.post("/register")
    def register() -> Response:
        body = _object()
        if "token" in body:
            return jsonify(devices.register(context, body))
        device = client_of(context, request.environ).device()
        g.unit_id = device.unit_id
        return jsonify(devices.renew_identity(context, device, body))

    @routes.get("/settings")
    def settings() -> Response:
        device = client_of(context, request.environ).device()
        g.unit_id = device.unit_id
        found = challenges.hand_out(context, device, profiles.effective(context, device))
        if found.etag in [
            tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")
        ]:
            response = Response(status=304)
        else:
            response = jsonify(found.document)
        response.headers["ETag"] = found.etag
        return response

    @routes.post("/report")
    def report() -> Response:
        device = client_of(context, request.environ).device()
        g.unit_id = device.unit_id
        devices.report(context, device, _object())
        return Response(status=204)

    return routes


def _object() -> dict[str, Any]:
    try:
        body = load_json(request.get_data())
    except SettingsError as err:
        raise RemoteProtocolError(f"the body is not JSON: {err}") from None
    if not isinstance(body, dict):
        raise RemoteProtocolError("the body is not a JSON object")
    return body
