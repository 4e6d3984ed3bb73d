"""Root and issuing CA of the lab: made on first start, kept in one directory.

root.pem  issuing.pem  server.pem      certificates
ra.p12  ra.p12.password                the proxy's keystore: key, certificate, chain, server certificate
private/                               keys, mode 0600
issued/<SERIAL>.pem                    a copy of every certificate that was issued
issued.log                             a line of JSON for each: see Authority.issue
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, ObjectIdentifier

from .. import _der as der
from ..codec.pkcs10 import CertificationRequest
from ..errors import RemoteProtocolError, StorageError

__all__ = ["CMC_RA", "Authority", "load_certificate"]

CMC_RA = ObjectIdentifier("1.3.6.1.5.5.7.3.28")  # id-kp-cmcRA, RFC 6402
YEAR = 31_557_600
CA_YEARS = 20
BACKDATE = 60  # seconds: clocks of devices run behind
MIN_RSA_BITS = 2048

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def load_certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "igelcert lab"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


class Authority:
    """Issues certificates. Every public method may be called from several threads."""

    def __init__(self, directory: Path, hosts: tuple[str, ...] = ()) -> None:
        """Opens the directory, or makes a new authority in it when it holds none."""
        self.directory = directory
        self._lock = threading.Lock()
        self._at_once = 0
        self._peak = 0
        self._private = directory / "private"
        self._issued = directory / "issued"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._private.mkdir(mode=0o700, exist_ok=True)
            self._issued.mkdir(exist_ok=True)
            if not (directory / "ra.p12.password").exists():  # written last
                self._create(hosts)
            self.root = load_certificate(directory / "root.pem")
            self.issuing = load_certificate(directory / "issuing.pem")
            key = serialization.load_pem_private_key((self._private / "issuing.key").read_bytes(), None)
        except OSError as err:
            raise StorageError(f"{directory}: {err.strerror}: {err.filename or ''}") from None
        except ValueError as err:
            raise StorageError(
                f"{directory} does not hold a lab CA: {err}", hint="name an empty directory"
            ) from None
        assert isinstance(key, rsa.RSAPrivateKey)
        self._key = key

    @property
    def chain(self) -> tuple[bytes, bytes]:
        """Issuing CA and root, DER."""
        der = serialization.Encoding.DER
        return self.issuing.public_bytes(der), self.root.public_bytes(der)

    @property
    def server_files(self) -> tuple[Path, Path]:
        """Certificate chain and key of the EST server, PEM."""
        return self.directory / "server.pem", self._private / "server.key"

    def private_file(self, name: str) -> Path:
        return self._private / name

    def scep_ra(self) -> tuple[tuple[Path, bytes], tuple[Path, bytes]]:
        """(key file, certificate) of the registration authority that signs, and of the one that decrypts, as NDES
        has them; made when they are first asked for."""
        found = []
        for name, title, usage in (
            ("ra-sign", "Lab RA signing", "digital_signature"),
            ("ra-encrypt", "Lab RA encryption", "key_encipherment"),
        ):
            place, key_place = self.directory / f"{name}.pem", self._private / f"{name}.key"
            if not place.exists():
                self._scep_service(title, usage, place, key_place)
            cert = load_certificate(place).public_bytes(serialization.Encoding.DER)
            found.append((key_place, cert))
        return found[0], found[1]

    def _scep_service(self, title: str, usage: str, place: Path, key_place: Path) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        builder = self._builder(
            _name(title), key.public_key(), self.issuing.subject, self._key.public_key(), 5 * YEAR
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        cert = builder.add_extension(_usage(usage), critical=True).sign(self._key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self._write(key_place, text, 0o600)
        self._write(place, cert.public_bytes(pem))

    # ---- first start ----------------------------------------------------------------------------

    def _create(self, hosts: tuple[str, ...]) -> None:
        # RSA: SCEP, which encrypts to the issuing CA, needs it
        root_key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        issuing_key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        root = self._ca("Lab Root CA", root_key.public_key(), None, root_key, 1)
        issuing = self._ca("Lab Issuing CA", issuing_key.public_key(), root, root_key, 0)
        server_key = ec.generate_private_key(ec.SECP256R1())
        names = dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])
        server = self._service(
            "Lab EST server",
            server_key.public_key(),
            issuing,
            issuing_key,
            ExtendedKeyUsageOID.SERVER_AUTH,
            list(names),
        )
        ra_key = ec.generate_private_key(ec.SECP256R1())
        ra = self._service(
            "Lab RA", ra_key.public_key(), issuing, issuing_key, ExtendedKeyUsageOID.CLIENT_AUTH, [], CMC_RA
        )
        pem = serialization.Encoding.PEM
        for name, private in (("root", root_key), ("issuing", issuing_key), ("server", server_key)):
            text = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            self._write(self._private / f"{name}.key", text, 0o600)
        self._write(self.directory / "root.pem", root.public_bytes(pem))
        self._write(self.directory / "issuing.pem", issuing.public_bytes(pem))
        self._write(self.directory / "server.pem", server.public_bytes(pem) + issuing.public_bytes(pem))
        password = secrets.token_urlsafe(18)
        keystore = pkcs12.serialize_key_and_certificates(
            b"lab-ra",
            ra_key,
            ra,
            [issuing, root, server],
            serialization.BestAvailableEncryption(password.encode()),
        )
        self._write(self.directory / "ra.p12", keystore, 0o600)
        self._write(self.directory / "ra.p12.password", f"{password}\n".encode(), 0o600)

    def _builder(
        self, subject: x509.Name, key: object, issuer: x509.Name, issuer_key: object, seconds: float
    ) -> x509.CertificateBuilder:
        now = _now()
        try:
            end = now + datetime.timedelta(seconds=seconds)
        except OverflowError:
            end = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(seconds=BACKDATE))
            .not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),  # type: ignore[arg-type]
                critical=False,
            )
        )

    def _ca(
        self,
        common_name: str,
        key: rsa.RSAPublicKey,
        issuer: x509.Certificate | None,
        issuer_key: rsa.RSAPrivateKey,
        path_length: int,
    ) -> x509.Certificate:
        name = _name(common_name)
        builder = self._builder(
            name, key, issuer.subject if issuer else name, issuer_key.public_key(), CA_YEARS * YEAR
        )
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=path_length), critical=True
        )
        return builder.add_extension(
            _usage("key_cert_sign", "crl_sign", "digital_signature", "key_encipherment"), critical=True
        ).sign(issuer_key, hashes.SHA256())

    def _service(
        self,
        common_name: str,
        key: PublicKey,
        issuer: x509.Certificate,
        issuer_key: rsa.RSAPrivateKey,
        purpose: ObjectIdentifier,
        hosts: list[str],
        *more: ObjectIdentifier,
    ) -> x509.Certificate:
        builder = self._builder(_name(common_name), key, issuer.subject, issuer_key.public_key(), 5 * YEAR)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage("digital_signature"), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose, *more]), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(name) for name in hosts]), critical=False
            )
        return builder.sign(issuer_key, hashes.SHA256())

    @staticmethod
    def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
        """Whole or not at all, on disk before it counts."""
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)

    # ---- issuing --------------------------------------------------------------------------------

    def issue(self, request: CertificationRequest, validity: float) -> bytes:
        """A certificate for a request that was parsed and proven, valid for so many seconds; DER.

        Subject and alternative names are the request's. Its copy is on disk before this returns, and a line in issued.log:
        {"serial", "csr" (SHA-256 of the request), "peak" (most requests that were worked on at once so far)}.
        """
        if request.key_type.startswith("rsa_") and int(request.key_type[4:]) < MIN_RSA_BITS:
            raise RemoteProtocolError(
                f"keys of type {request.key_type} are too weak for this CA", status_hint=400
            )
        key = serialization.load_der_public_key(request.spki)
        try:
            builder = self._builder(
                _subject(request), key, self.issuing.subject, self._key.public_key(), validity
            )
            builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            usages = (
                ["digital_signature", "key_encipherment"]
                if isinstance(key, rsa.RSAPublicKey)
                else ["digital_signature"]
            )
            builder = builder.add_extension(_usage(*usages), critical=True)
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            if request.sans:
                builder = builder.add_extension(_alternative_names(request), critical=not request.subject)
            cert = builder.sign(self._key, hashes.SHA256())
        except ValueError as err:
            raise RemoteProtocolError(f"no certificate can be made of this request: {err}") from None
        serial = f"{cert.serial_number:0{(cert.serial_number.bit_length() + 7) // 8 * 2}X}"
        self._write(self._issued / f"{serial}.pem", cert.public_bytes(serialization.Encoding.PEM))
        self._log(serial, request.der)
        return cert.public_bytes(serialization.Encoding.DER)

    def _log(self, serial: str, csr: bytes) -> None:
        with self._lock, (self.directory / "issued.log").open("a") as file:
            row = {"serial": serial, "csr": hashlib.sha256(csr).hexdigest(), "peak": self._peak}
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def at_work(self, seconds: float) -> Iterator[None]:
        """A request to enroll is worked on, for at least so many seconds."""
        with self._lock:
            self._at_once += 1
            self._peak = max(self._peak, self._at_once)
        try:
            time.sleep(seconds)
            yield
        finally:
            with self._lock:
                self._at_once -= 1


def _subject(request: CertificationRequest) -> x509.Name:
    """The subject as it was sent. Only a request around it can be loaded; the one that came may have its
    attributes in an order of its own, as strongSwan writes them, and is refused for that."""
    info = der.sequence(der.integer(0), request.subject_der, request.spki, der.tlv(0xA0, b""))
    algorithm = der.sequence(der.oid("1.3.101.112"))
    return x509.load_der_x509_csr(der.sequence(info, algorithm, der.bit_string(b"\0"))).subject


def _alternative_names(request: CertificationRequest) -> x509.UnrecognizedExtension:
    names = (der.tlv(0x80 | kind, value) if kind in {1, 2, 6, 7} else value for kind, value in request.sans)
    return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, der.sequence(*names))


def _usage(*names: str) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: name in names for name in every})


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
