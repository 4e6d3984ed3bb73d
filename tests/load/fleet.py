"""Many devices at once: written straight into the proxy's database, their management certificates signed by its CA.

The certificates are what `rmagent register` would have brought, each device its own; a few private keys serve all of
them. A handshake costs the same: no party keeps anything by key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from igelcert.model import DeviceFacts
from igelcert.proxy.context import Context
from igelcert.proxy.database import now
from igelcert.proxy.schema import certificates, devices, enrollments, management_certificates
from igelcert.settings import CertSettings, parse_document

__all__ = ["DIRECTORY", "PROFILE", "Fleet", "facts", "fill", "make", "profile"]

KEYS = 16
BATCH = 2_000
DIRECTORY = "/Load"
DAY = 86_400
PROFILE: dict[str, Any] = {
    "friendly_name": "lan",
    "key": {"type": "ec_prime256v1"},
    "subject": {"auto_cn": "hostname", "org": "Load"},
    "subjaltname": {"auto_hostname": True},
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """dir: `units`, a unit ID a line, and UNIT.pem with certificate and key of each."""

    dir: Path

    @property
    def units(self) -> list[str]:
        return (self.dir / "units").read_text().split()


def facts(unit: str) -> DeviceFacts:
    """What a device of the fleet knows of itself; the database has the same."""
    return DeviceFacts(f"tc-{unit.lower()}", unit, ())


def profile() -> CertSettings:
    return parse_document({"certs": [PROFILE]}).certs[0]


def make(data: Path, to: Path, count: int, prefix: str = "LOAD") -> Fleet:
    """`count` devices in DIRECTORY of the proxy with that data directory, registered."""
    to.mkdir(parents=True)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(KEYS)]
    units = [f"{prefix}{number:06d}" for number in range(count)]
    context = Context.open(data)
    try:
        for batch in _batches(units):
            rows = []
            for unit in batch:
                key = keys[len(rows) % KEYS]
                rows.append(_identity(context, unit, key, to / f"{unit}.pem"))
            with context.db.begin() as connection:
                connection.execute(devices.insert(), [_device(unit) for unit in batch])
                connection.execute(management_certificates.insert(), rows)
    finally:
        context.db.close()
    (to / "units").write_text("\n".join(units) + "\n")
    return Fleet(to)


def fill(data: Path, count: int) -> None:
    """`count` more devices with a certificate each that are on record and never come: the tables have their size.

    Their certificates' octets are those of one certificate; their digests differ, as nothing ever looks inside.
    """
    context = Context.open(data)
    der = context.management_ca.certificate.public_bytes(serialization.Encoding.DER)
    try:
        for batch in _batches([f"FULL{number:06d}" for number in range(count)]):
            with context.db.begin() as connection:
                connection.execute(devices.insert(), [_device(unit) for unit in batch])
                identities = [_row(unit, hashlib.sha256(unit.encode()).hexdigest(), der) for unit in batch]
                connection.execute(management_certificates.insert(), identities)
                connection.execute(enrollments.insert(), [_enrollment(unit, der) for unit in batch])
                connection.execute(certificates.insert(), [_certificate(unit) for unit in batch])
    finally:
        context.db.close()


def _batches(units: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(units), BATCH):
        yield units[start : start + BATCH]


def _device(unit: str) -> dict[str, Any]:
    moment = now()
    return {
        "unit_id": unit,
        "directory": DIRECTORY,
        "hostname": facts(unit).hostname,
        "hostname_fixed": True,
        "ips": json.dumps([]),
        "state": "registered",
        "report": "{}",
        "created": moment,
        "registered_at": moment,
        "last_seen": moment,
    }


def _identity(context: Context, unit: str, key: ec.EllipticCurvePrivateKey, place: Path) -> dict[str, Any]:
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    der = context.management_ca.issue_device(spki, unit)
    pem = x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    place.write_bytes(pem + key.private_bytes(*form))
    return _row(unit, hashlib.sha256(der).hexdigest(), der)


def _row(unit: str, digest: str, der: bytes) -> dict[str, Any]:
    moment = now()
    return {
        "sha256": digest,
        "unit_id": unit,
        "serial": digest[:32],
        "not_before": moment - DAY,
        "not_after": moment + 300 * DAY,
        "spki_sha256": digest,
        "certificate": der,
    }


def _enrollment(unit: str, der: bytes) -> dict[str, Any]:
    moment = now()
    return {
        "unit_id": unit,
        "friendly_name": PROFILE["friendly_name"],
        "operation": "simpleenroll",
        "csr_sha256": hashlib.sha256(f"request {unit}".encode()).hexdigest(),
        "state": "issued",
        "config_version": 1,
        "reason": "",
        "warnings": "",
        "subject": f"CN={facts(unit).hostname},O=Load",
        "serial": hashlib.sha256(unit.encode()).hexdigest()[:32],
        "not_before": moment - DAY,
        "not_after": moment + 300 * DAY,
        "certificate": der,
        "certificate_sha256": hashlib.sha256(f"certificate {unit}".encode()).hexdigest(),
        "created": moment,
        "updated": moment,
    }


def _certificate(unit: str) -> dict[str, Any]:
    whole = _enrollment(unit, b"")
    names = ("unit_id", "friendly_name", "serial", "subject", "not_before", "not_after")
    return {**{name: whole[name] for name in names}, "issued": whole["created"]}
