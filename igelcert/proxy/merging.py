"""What a device gets: the profiles assigned to it and to its directories, as one document."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from .. import record
from ..settings import MAX_CERTS, CertSettings, parse_document
from . import renewals
from .context import Context
from .devices import Device
from .schema import assignments, profiles

__all__ = ["Effective", "assigned", "effective", "merge", "opened", "place", "tag"]


@dataclass(frozen=True, slots=True)
class Effective:
    """What one device gets. document: as pushed; it holds secrets. certs: the same, parsed. passthrough: friendly
    names whose profile lets the device's own SCEP client through to the CA. incomplete: something in it is still to
    come, though nobody will change the settings."""

    document: dict[str, Any]
    certs: tuple[CertSettings, ...]
    etag: str
    passthrough: frozenset[str] = frozenset()
    incomplete: bool = False


def effective(context: Context, device: Device) -> Effective:
    """The documents assigned to the device as one: its own first, then those of its directories upwards.

    Of equal friendly names the first one stands.
    """
    with context.db.read():
        rows = assigned(context, device)
        wanted = renewals.wanted(context, device.unit_id)
    found: Effective = context.merged(tuple((row.name, row.sealed, row.passthrough) for row in rows))
    return _renewing(context, found, wanted) if wanted else found


def merge(context: Context, rows: tuple[tuple[str, bytes, bool], ...]) -> Effective:
    """The profiles (name, sealed document, passthrough), the nearest first, as one. Context.merged keeps some."""
    found = [(opened(context, name, sealed), passthrough) for name, sealed, passthrough in rows]
    documents = [document for document, _ in found]
    certs: dict[str, tuple[Any, CertSettings]] = {}
    passed = set()
    for document, passthrough in found:
        entries = document.get("certs", [])
        for entry in entries:
            parsed = parse_document({"certs": [entry]}).certs[0]
            if len(certs) < MAX_CERTS:
                if passthrough and parsed.friendly_name not in certs:
                    passed.add(parsed.friendly_name)
                certs.setdefault(parsed.friendly_name, (entry, parsed))
    shown = next(
        (doc["show_user_notifications"] for doc in documents if "show_user_notifications" in doc), True
    )
    merged = {"show_user_notifications": shown, "certs": [entry for entry, _ in certs.values()]}
    return Effective(
        merged,
        tuple(parsed for _, parsed in certs.values()),
        tag(context, merged),
        frozenset(passed),
    )


def _renewing(context: Context, found: Effective, wanted: dict[str, dict[str, Any]]) -> Effective:
    """The same, with the serial numbers of certificates that are to be renewed, and when."""
    document = copy.deepcopy(found.document)
    certs = list(found.certs)
    for index, cert in enumerate(certs):
        if asked := wanted.get(cert.friendly_name):
            document["certs"][index].setdefault("enrollment", {}).update(asked)
            certs[index] = record.replace(cert, enrollment=record.replace(cert.enrollment, **asked))
    return replace(found, document=document, certs=tuple(certs), etag=tag(context, document))


def tag(context: Context, document: dict[str, Any]) -> str:
    """The ETag of a settings document. Keyed: it is no way to guess at passwords."""
    mark = hmac.new(context.etag_key, json.dumps(document).encode(), hashlib.sha256)
    return f'"{mark.hexdigest()[:32]}"'


_ASSIGNED = (
    sa.select(
        assignments.c.kind,
        assignments.c.target,
        profiles.c.name,
        profiles.c.sealed,
        profiles.c.passthrough,
    )
    .join(profiles, profiles.c.name == assignments.c.profile)
    .where(
        sa.or_(
            sa.and_(assignments.c.kind == "device", assignments.c.target == sa.bindparam("unit_id")),
            sa.and_(
                assignments.c.kind == "directory",
                assignments.c.target.in_(sa.bindparam("above", expanding=True)),
            ),
        )
    )
)

_ANY_TO_DEVICES = sa.select(assignments.c.target).where(assignments.c.kind == "device").limit(1)


def assigned(context: Context, device: Device) -> list[Any]:
    """Rows (name, sealed, passthrough) of the device's profiles, the nearest first."""
    parts = [part for part in device.directory.split("/") if part]
    above = ["/" + "/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
    # where there is nothing of devices' own, those of one directory have the same
    unit_id = "" if context.db.seen_empty(_ANY_TO_DEVICES) else device.unit_id
    rows = context.db.once(
        (_ASSIGNED, unit_id, device.directory),
        lambda connection: connection.execute(_ASSIGNED, {"unit_id": unit_id, "above": above}).all(),
    )
    rank = {target: index for index, target in enumerate(above)}
    ordered = sorted(rows, key=lambda row: (-1 if row.kind == "device" else rank[row.target], row.name))
    found: dict[str, Any] = {}
    for row in ordered:  # assigned twice, it counts where it counts most
        found.setdefault(row.name, row)
    return list(found.values())


def opened(context: Context, name: str, sealed: bytes) -> Any:
    return json.loads(context.sealer.unseal(sealed, place(name)))


def place(name: str) -> str:
    return f"profiles/{name}"
