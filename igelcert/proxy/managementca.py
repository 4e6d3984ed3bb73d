"""The proxy's own small CA: it vouches for devices towards the proxy and for the proxy towards devices.

It has nothing to do with the company's CA, and its certificates open nothing but this proxy.
"""

from __future__ import annotations

import datetime
import ipaddress
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import StorageError
from ..model import check_dns_name
from .schema import management_cas
from .secrets import Sealer

__all__ = ["DEVICE_DAYS", "PLACE", "ManagementCa", "check_server_name"]

CA_DAYS = 20 * 365
DEVICE_DAYS = 365
SERVER_DAYS = 365
BACKDATE = datetime.timedelta(minutes=5)  # clocks of devices run behind
PLACE = "meta/management_ca_key"  # where the first one was; it is bound into what is sealed
_ISSUING = sa.select(management_cas).where(management_cas.c.state == "issuing")
_DER = serialization.Encoding.DER
_PEM = serialization.Encoding.PEM


def check_server_name(name: str) -> str:
    """A host name or IP address under which devices reach the proxy, in canonical form."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return check_dns_name("--hostname", name)


class ManagementCa:
    """certificate: the CA's; number: its row. Safe for threads."""

    def __init__(self, row: Any, sealer: Sealer) -> None:
        """CheckError when the master key is another database's."""
        self.number = int(row.id)
        self.certificate = x509.load_der_x509_certificate(row.certificate)
        key = serialization.load_der_private_key(sealer.unseal(row.sealed, PLACE), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def __repr__(self) -> str:
        return f"<ManagementCa {self.number}>"

    @classmethod
    def issuing(cls, connection: sa.Connection, sealer: Sealer) -> ManagementCa:
        """The one that issues certificates, as the transaction sees it."""
        row = connection.execute(_ISSUING).one_or_none()
        if row is None:
            raise StorageError("the database holds no management CA", hint="run: ca-proxy init")
        return cls(row, sealer)

    @staticmethod
    def create(connection: sa.Connection, sealer: Sealer, old: ManagementCa | None = None) -> None:
        """A new CA into the database; the first issues at once. One that follows another has that one's name, as for
        RFC 4210 4.4, and its key is certified by it as well: who trusts the old one trusts what the new one issues."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "igelcert management CA")])
        certificate = _ca_builder(name, key, key, CA_DAYS).sign(key, hashes.SHA256())
        cross = b""
        if old is not None:
            days = min(CA_DAYS, (old.certificate.not_valid_after_utc - _now()).days)
            made = _ca_builder(old.certificate.subject, key, old._key, days).sign(old._key, hashes.SHA256())
            cross = made.public_bytes(_DER)
        plain = key.private_bytes(_DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        connection.execute(
            management_cas.insert().values(
                id=old.number + 1 if old else 1,
                certificate=certificate.public_bytes(_DER),
                cross=cross,
                sealed=sealer.seal(connection, plain, PLACE),
                state="coming" if old else "issuing",
                created=int(_now().timestamp()),
            )
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(_PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA certificate, upper case, with colons."""
        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def issue_device(self, spki: bytes, unit_id: str) -> bytes:
        """A management certificate, DER: CN is the unit ID, good for TLS clients only."""
        key = serialization.load_der_public_key(spki)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, unit_id)])
        return self._leaf(name, key, ExtendedKeyUsageOID.CLIENT_AUTH, (), DEVICE_DAYS).public_bytes(_DER)

    def issue_server(self, key: ec.EllipticCurvePublicKey, names: tuple[str, ...]) -> str:
        """The proxy's server certificate, PEM."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        return (
            self._leaf(subject, key, ExtendedKeyUsageOID.SERVER_AUTH, names, SERVER_DAYS)
            .public_bytes(_PEM)
            .decode()
        )

    def _leaf(
        self,
        subject: x509.Name,
        key: object,
        purpose: x509.ObjectIdentifier,
        names: tuple[str, ...],
        days: int,
    ) -> x509.Certificate:
        issuer = self.certificate
        now = _now()
        left = (issuer.not_valid_after_utc - now).days
        builder = (
            _builder(subject, issuer.subject, key, self._key.public_key(), now, min(days, left))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: object, issuer_key: object, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),  # type: ignore[arg-type]
            critical=False,
        )
    )


def _ca_builder(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    """Of a CA certificate for `key`. Subject and issuer are one: a chain through it is no longer (RFC 5280 4.2.1.9)."""
    return (
        _builder(name, name, key.public_key(), signer.public_key(), _now(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    )


def _usage(*names: str) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: name in names for name in every})


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
