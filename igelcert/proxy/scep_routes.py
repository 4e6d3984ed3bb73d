"""The SCEP front: /scep/<label>[/<secret>], for devices' own SCEP clients where a profile lets them through."""

from __future__ import annotations

from flask import Blueprint, Response, g, request

from ..errors import RemoteProtocolError, TransportError
from . import merging, passthrough
from .context import Context
from .identity import client_of

__all__ = ["make"]

RETRY_SECONDS = 60


def make(context: Context) -> Blueprint:
    routes = Blueprint("scep", __name__)

    @routes.route("/scep/<label>", methods=["GET", "POST"])
    @routes.route("/scep/<label>/<secret>", methods=["GET", "POST"])
    @routes.route("/scep/<label>/<secret>/pkiclient.exe", methods=["GET", "POST"])
    def answer(label: str, secret: str = "") -> Response:
        client = client_of(context, request.environ)
        device = passthrough.device_of(context, secret) if secret else client.device()
        g.unit_id = device.unit_id
        if label not in merging.effective(context, device).passthrough:
            raise RemoteProtocolError(
                f"no profile lets this device through to the CA for {label[:80]!r}", status_hint=403
            )
        query = request.query_string.decode("latin-1")
        try:
            found = passthrough.relay(context, device, label, request.method, query, request.get_data())
        except TransportError as err:
            response = Response(
                f"the CA cannot be asked now: {err}\n", status=503, content_type="text/plain; charset=utf-8"
            )
            response.headers["Retry-After"] = str(RETRY_SECONDS)
            return response
        response = Response(found.body, status=found.status)
        del response.headers["Content-Type"]
        for name, value in found.headers:
            response.headers[name] = value
        return response

    return routes
