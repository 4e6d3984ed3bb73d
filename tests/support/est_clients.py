"""Three EST clients that were not written here, made to enroll at any server, and what they got examined."""

from __future__ import annotations

import base64
import re
import secrets
import subprocess
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.peers import bouncy_castle, peer

__all__ = [
    "CLIENTS",
    "KEY_TYPES",
    "Client",
    "Enrolled",
    "Refused",
    "Target",
    "check",
    "openssl",
]

TIMEOUT = 45
CURVES = ("prime256v1", "secp384r1", "secp521r1", "secp256k1", "brainpoolP256r1", "brainpoolP384r1",
          "brainpoolP512r1")  # fmt: skip
KEY_TYPES = (*(f"ec_{curve}" for curve in CURVES), "ecdsa_ed25519", "rsa_2048")  # larger RSA only costs time


class Refused(Exception):
    """The server's refusal as the client shows it."""


def _quote(label: str) -> str:
    return urllib.parse.quote(label, safe="")


@dataclass(frozen=True, slots=True)
class Target:
    """An EST server, who asks it, and for what.

    label: as an administrator writes it; None for none. trust: CAs of the TLS server, anchors: roots of what
    is issued (PEM). cert, key: the client's PEM files; or user and password_file for HTTP Basic.
    subject: RDNs in the order of the encoding. sans: as in OpenSSL's configuration, "DNS:name".
    issued_subject, issued_sans: what the CA makes of them, when it does.
    """

    host: str
    port: int
    trust: Path
    anchors: Path
    label: str | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password_file: Path | None = None
    subject: tuple[tuple[str, str], ...] = (("O", "Example"), ("CN", "thinclient-17"))
    sans: tuple[str, ...] = ("DNS:thinclient-17.example", "IP:192.0.2.17")
    issued_subject: tuple[tuple[str, str], ...] | None = None
    issued_sans: tuple[str, ...] | None = None

    @property
    def segment(self) -> str | None:
        """The label as it stands in a URL."""
        return None if self.label is None else _quote(self.label)

    def url(self, operation: str) -> str:
        parts = (f"https://{self.host}:{self.port}/.well-known/est", self.segment, operation)
        return "/".join(part for part in parts if part is not None)

    def password(self) -> str:
        assert self.password_file is not None
        return self.password_file.read_text(encoding="utf-8").rstrip("\n")


@dataclass(frozen=True, slots=True)
class Enrolled:
    """PEM files: the certificate, its key, the CA certificates that the server named."""

    cert: Path
    key: Path
    cas: Path


def run(
    *command: object, stdin: bytes | None = None, refused: Callable[[int, str], bool] | None = None
) -> bytes:
    """Standard output. A failure that `refused` recognizes is a Refused, any other an AssertionError."""
    done = subprocess.run(
        [str(part) for part in command], input=stdin or b"", capture_output=True, timeout=TIMEOUT, check=False
    )
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        if refused is not None and refused(done.returncode, text):
            raise Refused(text)
        raise AssertionError(
            f"{command[0]} ended with {done.returncode}: {text}\n{done.stdout.decode(errors='replace')}"
        )
    return done.stdout


def openssl(*arguments: object, stdin: bytes | None = None) -> bytes:
    return run(peer("openssl"), *arguments, stdin=stdin)


# ---- curl and openssl ---------------------------------------------------------------------------


def curl_enroll(target: Target, key_type: str, place: Path, renew: bool = False) -> Enrolled:
    """openssl makes key and request and reads the answer, curl carries them."""
    got = Enrolled(place / "cert.pem", place / "key.pem", place / "cas.pem")
    got.cas.write_bytes(_pkcs7(_curl(target, "cacerts")))
    openssl("genpkey", *_genpkey(key_type), "-out", got.key)
    request = openssl(
        "req", "-new", "-key", got.key, f"-{_digest(key_type)}", "-utf8", "-outform", "DER",
        "-subj", _slashes(target.subject),
        *(("-addext", f"subjectAltName={','.join(target.sans)}") if target.sans else ()),
    )  # fmt: skip
    operation = "simplereenroll" if renew else "simpleenroll"
    body = place / "request.b64"
    body.write_bytes(base64.b64encode(request))
    answer = _curl(
        target, operation, "--data-binary", f"@{body}", "--header", "Content-Type: application/pkcs10"
    )
    got.cert.write_bytes(_pkcs7(answer))
    return got


def _curl(target: Target, operation: str, *more: str) -> bytes:
    config = [f'url = "{target.url(operation)}"', f'cacert = "{target.trust}"']
    if target.cert:
        config += [f'cert = "{target.cert}"', f'key = "{target.key}"']
    if target.user:
        config += [f'user = "{target.user}:{target.password()}"', "basic"]
    command = [peer("curl"), "--config", "-", "--silent", "--show-error", "--max-time", "20",
               "--noproxy", "*", "--write-out", "%{stderr}%{http_code} ", *more]  # fmt: skip
    done = subprocess.run(
        command, input="\n".join(config).encode(), capture_output=True, timeout=TIMEOUT, check=False
    )
    status = done.stderr.decode()
    if done.returncode != 0:
        raise AssertionError(f"curl ended with {done.returncode}: {status}")
    if status.strip() != "200":
        raise Refused(f"{status.strip()} {done.stdout.decode(errors='replace').strip()}")
    return done.stdout


def _pkcs7(body: bytes) -> bytes:
    """The certificates of an EST answer; `openssl base64 -d` wants lines, RFC 8951 leaves them open."""
    text = base64.encodebytes(base64.b64decode(body))
    return openssl("pkcs7", "-inform", "DER", "-print_certs", stdin=openssl("base64", "-d", stdin=text))


def _genpkey(key_type: str) -> list[str]:
    kind, _, size = key_type.rpartition("_")
    if kind == "rsa":
        return ["-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{size}"]
    if kind == "ec":
        return [
            "-algorithm",
            "EC",
            "-pkeyopt",
            f"ec_paramgen_curve:{size}",
            "-pkeyopt",
            "ec_param_enc:named_curve",
        ]
    return ["-algorithm", size]


def _digest(key_type: str) -> str:
    """As strong as the curve; Ed25519 and Ed448 have their own and ignore it."""
    found = re.search("384|521|512", key_type)
    return {"384": "sha384", "521": "sha512", "512": "sha512"}[found[0]] if found else "sha256"


def _slashes(subject: tuple[tuple[str, str], ...]) -> str:
    quote = str.maketrans({"/": "\\/", "+": "\\+", "\\": "\\\\"})
    return "".join(f"/{name}={value.translate(quote)}" for name, value in subject)


# ---- Bouncy Castle ------------------------------------------------------------------------------


def bouncy_castle_enroll(target: Target, key_type: str, place: Path, renew: bool = False) -> Enrolled:
    got = Enrolled(place / "cert.pem", place / "key.pem", place / "cas.pem")
    command: list[object] = [*bouncy_castle(), "--server", f"{target.host}:{target.port}"]
    command += ["--trust", target.trust, "--key-type", key_type]
    for name, value in target.subject:
        command += ["--rdn", f"{name}={value}"]
    for san in target.sans:
        command += ["--san", san]
    if target.segment is not None:
        command += ["--label", target.segment]
    if target.cert:
        keystore, password = place / "client.p12", place / "client.p12.password"
        password.write_text(secrets.token_urlsafe(12))
        openssl("pkcs12", "-export", "-in", target.cert, "-inkey", target.key, "-out", keystore,
                "-passout", f"file:{password}")  # fmt: skip
        command += ["--keystore", keystore, "--keystore-password-file", password]
    if target.user:
        command += ["--user", target.user, "--user-password-file", target.password_file]
    if renew:
        command += ["--reenroll"]
    command += ["--ca-out", got.cas, "--key-out", got.key, "--cert-out", got.cert]
    run(*command, refused=lambda code, _: code == 3)
    return got


# ---- strongSwan ---------------------------------------------------------------------------------


def strongswan_enroll(target: Target, key_type: str, place: Path, renew: bool = False) -> Enrolled:
    """With a client certificate strongSwan always asks for simplereenroll, without one never."""
    assert target.cert or not renew
    assert target.label is None, "strongSwan knows no label"
    pki = peer("strongswan")
    got = Enrolled(place / "cert.pem", place / "key.pem", place / "cas.pem")

    trust = [option for ca in _split(target.trust, place, "trust") for option in ("--cacert", ca)]
    url = f"https://{target.host}:{target.port}"  # it adds the path itself
    run(pki, "--estca", "--url", url, *trust, "--caout", place / "ca.pem", "--outform", "pem",
        refused=_strongswan_refused)  # fmt: skip
    cas = sorted(place.glob("ca*.pem"))
    got.cas.write_bytes(b"".join(ca.read_bytes() for ca in cas))

    kind, _, size = key_type.rpartition("_")
    bits = {"prime256v1": "256", "secp384r1": "384", "secp521r1": "521"}
    made = {"rsa": ["rsa", "--size", size], "ec": ["ecdsa", "--size", bits.get(size, "")]}.get(kind, [size])
    got.key.write_bytes(run(pki, "--gen", "--outform", "pem", "--type", *made))
    sans = [option for san in target.sans for option in ("--san", san.partition(":")[2])]
    subject = ", ".join(f"{name}={value}" for name, value in target.subject)
    request = place / "request.der"
    request.write_bytes(run(pki, "--req", "--in", got.key, "--type", "priv", "--dn", subject, *sans))

    # --cacert verifies the TLS server and the issued certificate
    for ca in cas:
        trust += ["--cacert", str(ca)]
    who: list[object] = ["--cert", target.cert, "--key", target.key] if target.cert else []
    if target.user:
        who += ["--userpass", f"{target.user}:{target.password()}"]
    answer = run(pki, "--est", "--url", url, "--in", request, *trust, *who, "--outform", "pem",
                 "--interval", "1", "--maxpolltime", "30", refused=_strongswan_refused)  # fmt: skip
    got.cert.write_bytes(answer)
    return got


def _strongswan_refused(_: int, text: str) -> bool:
    return re.search(r"EST request failed: HTTP [345]\d\d", text) is not None


def _split(pem: Path, place: Path, stem: str) -> list[str]:
    """A file for each certificate: pki reads only the first of a file."""
    end = "-----END CERTIFICATE-----"
    files = []
    for number, part in enumerate(pem.read_text().split(end)[:-1]):
        path = place / f"{stem}{number}.pem"
        path.write_text(part[part.index("-----BEGIN") :] + end + "\n")
        files.append(str(path))
    return files


# ---- all of them --------------------------------------------------------------------------------


class Enroll(Protocol):
    def __call__(self, target: Target, key_type: str, place: Path, renew: bool = False) -> Enrolled:
        """A new key and its certificate, in files below `place`; Refused when the server says no."""


@dataclass(frozen=True, slots=True)
class Client:
    """key_types: those it can make; KEY_TYPES and more. labels: which percent-encoded labels it can ask for."""

    name: str
    enroll: Enroll
    key_types: tuple[str, ...]
    labels: re.Pattern[str]

    def can_label(self, label: str) -> bool:
        return self.labels.fullmatch(_quote(label)) is not None


CLIENTS = (
    Client("curl", curl_enroll, (*KEY_TYPES, "ed448"), re.compile(".+")),
    # Bouncy Castle refuses a percent sign in a label, so nothing that needs encoding gets through it.
    Client(
        "bouncycastle",
        bouncy_castle_enroll,
        (*KEY_TYPES, "ed448"),
        re.compile(r"[A-Za-z0-9_.~!$&'()*+,;:=-]+"),
    ),
    Client(
        "strongswan",
        strongswan_enroll,
        ("ec_prime256v1", "ec_secp384r1", "ec_secp521r1", "ecdsa_ed25519", "ed448", "rsa_2048"),
        re.compile("(?!)"),
    ),
)


# ---- what came of it ----------------------------------------------------------------------------


def check(target: Target, got: Enrolled) -> None:
    """OpenSSL's verdict: chain, key, subject and alternative names."""
    text = got.cert.read_text()
    assert text.count("BEGIN CERTIFICATE") == 1, "only the issued certificate belongs into the answer"
    openssl("verify", "-CAfile", target.anchors, "-untrusted", got.cas, "-purpose", "sslclient", got.cert)
    public = openssl("x509", "-in", got.cert, "-noout", "-pubkey")
    assert public == openssl("pkey", "-in", got.key, "-pubout"), "the certificate is not the key's"

    subject = target.subject if target.issued_subject is None else target.issued_subject
    shown = openssl("x509", "-in", got.cert, "-noout", "-subject", "-nameopt", "sep_multiline,utf8,sname")
    lines = [line.strip() for line in shown.decode().splitlines()[1:]]
    assert lines == [f"{name}={value}" for name, value in subject]

    sans = target.sans if target.issued_sans is None else target.issued_sans
    shown = openssl("x509", "-in", got.cert, "-noout", "-ext", "subjectAltName").decode()
    found = shown.splitlines()[1].strip().replace("IP Address:", "IP:").split(", ") if shown else []
    assert found == list(sans)
