"""The EST front (RFC 7030): the proxy is an EST server to devices."""

from __future__ import annotations

from flask import Blueprint, Response, g, request

from ..codec import est, http, pkcs10
from ..errors import Error, RemoteProtocolError
from . import cacerts, challenges, enrollments, merging, policy
from .context import Context
from .identity import Client, client_of
from .relay import Answer, relay
from .upstream.config import current_version, standing

__all__ = ["make"]


def make(context: Context) -> Blueprint:
    routes = Blueprint("est", __name__)

    @routes.route("/.well-known/est/<path:_rest>", methods=["GET", "HEAD", "POST"])
    def answer(_rest: str) -> Response:
        target = est.route(request.path, decoded=True)
        if target is None:
            raise RemoteProtocolError("this is not an EST operation", status_hint=404)
        operation, label = target
        client = client_of(context, request.environ)
        if operation in {"simpleenroll", "simplereenroll"}:
            _method("POST")
            return _wsgi(_enroll(context, client, operation, label))
        if operation == "cacerts":
            _method("GET")
            return _wsgi(est.certs_response(_cacerts(context, client)))
        if operation == "csrattrs":
            _method("GET")
            g.unit_id = client.device().unit_id
            # what a CSR must be is the profile's business, and the device has its profile
            return _wsgi(est.csrattrs_response(()))
        raise RemoteProtocolError(f"{operation} is not offered here", status_hint=501)

    return routes


def _method(wanted: str) -> None:
    if request.method != wanted and not (wanted == "GET" and request.method == "HEAD"):
        raise RemoteProtocolError(f"use {wanted}", status_hint=405)


def _wsgi(answer: http.Response) -> Response:
    return Response(answer.body, status=answer.status, headers=list(answer.headers))


def _cacerts(context: Context, client: Client) -> list[bytes]:
    """Anybody may have what is known already; only a device makes the proxy ask the CA."""
    if client.certificate is None:
        certs, _ = cacerts.known(context, current_version(context))
        if not certs:
            raise RemoteProtocolError(
                "the CA certificates are not known here yet; ask with a management certificate",
                status_hint=401,
            )
        return certs
    with context.db.read():
        device, _ = client.renewing_device()
        version = current_version(context)
    g.unit_id = device.unit_id
    try:
        return cacerts.fresh(context, context.upstreams.current(version))
    except Error as err:
        raise RemoteProtocolError(
            f"the CA cannot be asked for its certificates: {err}", status_hint=503
        ) from None


def _enroll(context: Context, client: Client, operation: str, label: str | None) -> http.Response:
    with context.db.read():
        if operation == "simplereenroll":
            device, renewing = client.renewing_device()
        else:
            device, renewing = client.device(), None
        assigned = merging.effective(context, device)
        version, wanted = standing(context)
        challenged = challenges.in_force(context, wanted)
    g.unit_id = device.unit_id
    csr = pkcs10.parse(est.csr_from_request(request.get_data(), request.headers.get("Content-Type", "")))
    if renewing is not None and not pkcs10.matches_certificate(csr, renewing):
        # RFC 7030 4.2.2; whoever wants other names enrolls anew with the management certificate
        raise RemoteProtocolError(
            "subject or alternative names differ from the certificate that is renewed", status_hint=403
        )
    certs = challenges.check(challenged, assigned).certs
    try:
        chosen = policy.choose(csr, device.facts, certs, label)
    except RemoteProtocolError as err:
        ask = enrollments.Ask(device.unit_id, (label or "")[:256], csr, operation)
        enrollments.refuse(context, ask, "refused", str(err))
        raise
    ask = enrollments.Ask(device.unit_id, chosen.friendly_name, csr, operation, chosen.enrollment)
    try:
        challenges.spend(context, challenged, ask)
    except RemoteProtocolError as err:
        enrollments.refuse(context, ask, "refused", str(err))  # the next settings bring a new one
        return est.error_response(err.status_hint, str(err), challenges.RETRY_SECONDS)
    return _message(relay(context, ask, version))


def _message(answer: Answer) -> http.Response:
    if answer.certificate is not None:
        return est.certs_response([answer.certificate], enroll=True)
    if answer.status == 202:
        return est.pending_response(answer.retry_after or 60, answer.text)
    return est.error_response(answer.status, answer.text, answer.retry_after)
