"""Profiles: settings documents, kept sealed, and which devices they are assigned to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from ..codec.est import OPERATIONS
from ..errors import ConflictError, SettingsError
from ..model import check_text
from ..settings import load_json, parse_document
from . import changes
from .audit import actor
from .context import Context
from .database import now
from .devices import Device, check_directory
from .merging import assigned, opened, place
from .schema import assignments, devices, profiles

__all__ = [
    "Loss",
    "Preview",
    "Profile",
    "Stored",
    "allow_passthrough",
    "assign",
    "assigned_to",
    "clashes",
    "get",
    "listing",
    "loss",
    "must_find",
    "place",
    "preview",
    "remove",
    "store",
    "unassign",
    "with_secrets",
    "without_secrets",
]

DEFAULT_NAME = "Device certificate"  # of a certificate that names none
LABELS = {
    "C": "2.5.4.6",
    "ST": "2.5.4.8",
    "L": "2.5.4.7",
    "O": "2.5.4.10",
    "OU": "2.5.4.11",
    "CN": "2.5.4.3",
    "emailAddress": "1.2.840.113549.1.9.1",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile for lists: certificates as (friendly name, key type), assignments as (kind, target)."""

    name: str
    certs: tuple[tuple[str, str], ...]
    assigned: tuple[tuple[str, str], ...]
    updated: int
    passthrough: bool


def check_name(name: str) -> str:
    if not name or name != name.strip():
        raise SettingsError("profile", "its name is empty, or begins or ends with a blank")
    if "/" in name:
        raise SettingsError("profile", "its name holds a slash")
    return check_text("profile", name, 128)


def store(
    context: Context,
    name: str,
    text: bytes,
    *,
    keep_secrets: bool = False,
    renamed: Mapping[str, str] | None = None,
    expected: int | None = None,
) -> tuple[str, ...]:
    """Checks a document and keeps it under that name, in place of an older one. Returns warnings.

    keep_secrets: a password that is not given stays what it is in the certificate of that friendly name, or of the
    one that `renamed` has for it.
    expected: the version that its editor saw (0: there was none); ConflictError when it is another one by now,
    unless that is the same document: somebody pressed the button twice.
    """
    check_name(name)
    document = load_json(text)
    settings = parse_document(document)
    for index, cert in enumerate(settings.certs):
        if cert.friendly_name in OPERATIONS:
            raise SettingsError(
                f"certs[{index}].friendly_name",
                f"{cert.friendly_name!r} is the name of an EST operation and cannot stand in a URL",
            )
    with context.db.begin() as connection:
        row = connection.execute(sa.select(profiles).where(profiles.c.name == name)).one_or_none()
        old = opened(context, name, row.sealed) if row is not None else {}
        if keep_secrets:
            document = with_secrets(document, old, renamed or {})
            parse_document(document)
        version = row.version if row is not None else 0
        if expected is not None and expected != version:
            if row is not None and document == old:
                return settings.warnings
            raise ConflictError(
                "version",
                f"profile {name!r} was changed by somebody else meanwhile"
                if row is not None
                else f"profile {name!r} was removed by somebody else meanwhile",
                hint="compare it with what is there now, and save again to put yours in its place",
            )
        sealed = context.sealer.seal(connection, json.dumps(document).encode(), place(name))
        values = {"sealed": sealed, "updated": now(), "version": version + 1}
        if row is not None:
            connection.execute(profiles.update().where(profiles.c.name == name).values(values))
        else:
            connection.execute(profiles.insert().values(name=name, **values))
        context.db.record(connection, actor(), "profile set", name)
        changes.note(connection, _targets(connection, name))
    return settings.warnings


@dataclass(frozen=True, slots=True)
class Stored:
    """A profile to be edited. document: it holds no secret; secrets: the paths of those that are set."""

    name: str
    document: dict[str, Any]
    secrets: tuple[str, ...]
    version: int
    updated: int
    passthrough: bool
    assigned: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "document": self.document,
            "secrets": list(self.secrets),
            "assigned": [{"kind": kind, "target": target} for kind, target in self.assigned],
            "passthrough": self.passthrough,
            "version": self.version,
            "updated": self.updated,
        }


def must_find(context: Context, name: str) -> Stored:
    found = get(context, name)
    if found is None:
        raise _unknown(name)
    return found


def get(context: Context, name: str) -> Stored | None:
    with context.db.read() as connection:
        row = connection.execute(sa.select(profiles).where(profiles.c.name == name)).one_or_none()
        links = connection.execute(
            sa.select(assignments)
            .where(assignments.c.profile == name)
            .order_by(assignments.c.kind, assignments.c.target)
        ).all()
    if row is None:
        return None
    document, secrets = without_secrets(opened(context, name, row.sealed))
    assigned = tuple((link.kind, link.target) for link in links)
    return Stored(name, document, secrets, row.version, row.updated, row.passthrough, assigned)


def without_secrets(value: Any, path: str = "") -> tuple[Any, tuple[str, ...]]:
    """A document without its passwords, and the paths of those that are set."""
    found: list[str] = []
    if isinstance(value, dict):
        kept = {}
        for key, each in value.items():
            place = f"{path}.{key}" if path else key
            if key.startswith("crypt_"):
                found += [place] if each else []
                continue
            kept[key], more = without_secrets(each, place)
            found += more
        return kept, tuple(found)
    if isinstance(value, list):
        entries = [without_secrets(each, f"{path}[{index}]") for index, each in enumerate(value)]
        return [entry for entry, _ in entries], tuple(place for _, more in entries for place in more)
    return value, ()


def with_secrets(
    document: dict[str, Any], old: dict[str, Any], renamed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The document with passwords of the old one where it names none; "" takes one away."""
    before = {_name_of(entry): entry for entry in reversed(old.get("certs", []))}
    certs = [
        _with(entry, before.get(renamed.get(_name_of(entry), _name_of(entry)), {}))
        for entry in document.get("certs", [])
    ]
    return {**document, "certs": certs} if "certs" in document else document


def _name_of(entry: dict[str, Any]) -> str:
    return str(entry.get("friendly_name", DEFAULT_NAME))


def _with(fresh: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fresh)
    for key, value in old.items():
        if key.startswith("crypt_"):
            merged.setdefault(key, value)
        elif key in {"est", "scep"} and key not in fresh:
            continue  # another way to the CA has no use for them
        elif isinstance(value, dict):
            inner = fresh.get(key, {})
            kept = _with(inner, value) if isinstance(inner, dict) else inner
            if kept:
                merged[key] = kept
    return merged


@dataclass(frozen=True, slots=True)
class Preview:
    """What a certificate of a profile is for one device. problem: why it cannot be, "" when it can."""

    friendly_name: str
    key_type: str
    subject: str
    names: tuple[tuple[str, str], ...]
    problem: str

    def as_json(self) -> dict[str, Any]:
        return {
            "friendly_name": self.friendly_name,
            "key_type": self.key_type,
            "subject": self.subject,
            "names": [{"kind": kind, "value": value} for kind, value in self.names],
            "problem": self.problem,
        }


def preview(document: dict[str, Any], device: Device) -> list[Preview]:
    """Subject and alternative names that the document gives the device. SettingsError for a bad document."""
    found = []
    for cert in parse_document(document).certs:
        try:
            spec = cert.csr_spec(device.facts)
        except SettingsError as err:
            found.append(Preview(cert.friendly_name, cert.key.type, "", (), str(err)))
            continue
        labels = {oid: label for label, oid in LABELS.items()}
        subject = ", ".join(f"{labels[oid]}={value}" for oid, value in spec.subject.attributes())
        kinds = (("DNS", "hostname"), ("IP", "ip"), ("email", "email"), ("URI", "uri"))
        names = tuple((kind, value) for kind, field in kinds for value in getattr(spec.san, field))
        found.append(Preview(cert.friendly_name, cert.key.type, subject, names, ""))
    return found


def clashes(context: Context, name: str, document: dict[str, Any]) -> list[str]:
    """Friendly names of the document that another profile gives to the same devices, in sentences."""
    mine = {cert.friendly_name for cert in parse_document(document).certs}
    every = listing(context)
    here = next((each.assigned for each in every if each.name == name), ())
    found = []
    for other in every:
        if other.name == name or not any(_meet(a, b) for a in here for b in other.assigned):
            continue
        found += [
            f"{friendly!r} is also in profile {other.name!r}, which reaches some of the same devices: the nearer one counts"
            for friendly, _ in other.certs
            if friendly in mine
        ]
    return found


def _meet(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Can an assignment reach a device of the other? Of a device's own, its directory is not looked up."""
    if one[0] != other[0]:
        return False
    if one[0] == "device":
        return one[1] == other[1]
    a, b = (each[1].rstrip("/") + "/" for each in (one, other))
    return a.startswith(b) or b.startswith(a)


def assigned_to(context: Context, device: Device) -> list[tuple[str, str, str]]:
    """(profile, kind, target) of what reaches the device, the nearest first: as it counts."""
    return [(row.name, row.kind, row.target) for row in assigned(context, device)]


def allow_passthrough(context: Context, name: str, allowed: bool) -> None:
    """May SCEP clients of the devices talk to the CA themselves? What they ask for, the proxy cannot see."""
    with context.db.begin() as connection:
        changed = connection.execute(
            profiles.update()
            .where(profiles.c.name == name)
            .values(passthrough=allowed, version=profiles.c.version + 1)
        ).rowcount
        if not changed:
            raise _unknown(name)
        context.db.record(connection, actor(), "profile passthrough", f"{name}: {'on' if allowed else 'off'}")


@dataclass(frozen=True, slots=True)
class Loss:
    """What goes with a profile: the certificates `names`, and their keys, at so many devices."""

    devices: int
    names: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.devices and self.names)

    def __str__(self) -> str:
        many, several = self.devices != 1, len(self.names) != 1
        return (
            f"{self.devices} device{'s' if many else ''} lose{'' if many else 's'} the certificate{'s' if several else ''} "
            f"{', '.join(self.names)}, and {'their keys' if many or several else 'its key'}"
        )


def loss(context: Context, name: str) -> Loss:
    """What devices would lose with the profile."""
    with context.db.read() as connection:
        return _loss(context, connection, name)


def _loss(context: Context, connection: sa.Connection, name: str) -> Loss:
    sealed = connection.execute(sa.select(profiles.c.sealed).where(profiles.c.name == name)).scalar()
    if sealed is None:
        raise _unknown(name)
    reached = []
    for kind, target in _targets(connection, name):
        if kind == "device":
            reached.append(devices.c.unit_id == target)
        elif target == "/":
            reached.append(sa.true())
        else:
            below = devices.c.directory.startswith(f"{target}/", autoescape=True)
            reached.append(sa.or_(devices.c.directory == target, below))
    query = sa.select(sa.func.count()).select_from(devices).where(sa.or_(sa.false(), *reached))
    names = tuple(cert.friendly_name for cert in parse_document(opened(context, name, sealed)).certs)
    return Loss(connection.execute(query).scalar_one(), names)


def remove(context: Context, name: str, *, force: bool = False) -> None:
    """Removes a profile and its assignments. Devices then remove its certificates: ConflictError where some would lose
    one, unless force."""
    with context.db.begin() as connection:
        if not force and (lost := _loss(context, connection, name)):
            raise ConflictError(
                "force",
                f"{lost}, when the profile {name!r} is removed",
                replaces=name,
                hint="agree to it, or unassign it",
            )
        targets = _targets(connection, name)
        if not connection.execute(profiles.delete().where(profiles.c.name == name)).rowcount:
            raise _unknown(name)
        context.db.record(connection, actor(), "profile remove", name)
        changes.note(connection, targets)


def assign(context: Context, name: str, *, device: str = "", directory: str = "") -> None:
    """To one device or to all devices in and below a directory."""
    kind, target = ("device", device) if device else ("directory", check_directory(directory))
    row = {"profile": name, "kind": kind, "target": target}
    with context.db.begin() as connection:
        if not connection.execute(sa.select(profiles.c.name).where(profiles.c.name == name)).scalar():
            raise _unknown(name)
        known = sa.select(devices.c.unit_id).where(devices.c.unit_id == device)
        if device and not connection.execute(known).scalar():
            raise SettingsError(
                "--device", f"no device {device[:80]!r} is known", hint="ca-proxy device list"
            )
        connection.execute(assignments.delete().where(*(assignments.c[key] == row[key] for key in row)))
        connection.execute(assignments.insert().values(row))
        context.db.record(connection, actor(), "profile assign", f"{name} to {kind} {target}")
        changes.note(connection, [(kind, target)])


def unassign(context: Context, name: str, *, device: str = "", directory: str = "") -> None:
    kind, target = ("device", device) if device else ("directory", check_directory(directory))
    row = {"profile": name, "kind": kind, "target": target}
    with context.db.begin() as connection:
        done = connection.execute(
            assignments.delete().where(*(assignments.c[key] == row[key] for key in row))
        )
        if not done.rowcount:
            raise SettingsError(
                "profile", f"{name!r} is not assigned to {kind} {target}", hint="ca-proxy profile list"
            )
        context.db.record(connection, actor(), "profile unassign", f"{name} from {kind} {target}")
        changes.note(connection, [(kind, target)])


def _targets(connection: sa.Connection, name: str) -> list[tuple[str, str]]:
    """(kind, target) of whom the profile is assigned to."""
    query = sa.select(assignments.c.kind, assignments.c.target).where(assignments.c.profile == name)
    return [(row.kind, row.target) for row in connection.execute(query)]


def listing(context: Context) -> list[Profile]:
    with context.db.read() as connection:
        rows = connection.execute(sa.select(profiles).order_by(profiles.c.name)).all()
        links = connection.execute(sa.select(assignments).order_by(assignments.c.target)).all()
    found = []
    for row in rows:
        certs = parse_document(opened(context, row.name, row.sealed)).certs
        found.append(
            Profile(
                row.name,
                tuple((cert.friendly_name, cert.key.type) for cert in certs),
                tuple((link.kind, link.target) for link in links if link.profile == row.name),
                row.updated,
                row.passthrough,
            )
        )
    return found


def _unknown(name: str) -> SettingsError:
    return SettingsError("profile", f"there is no profile {name[:80]!r}", hint="ca-proxy profile list")
