"""Which link fails, and what to do about it: a real TLS server whose certificate is wrong in one way."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from igelcert.codec.http import Request
from igelcert.device.transport import Link, client_context, split_url
from igelcert.errors import SettingsError, TransportError
from tests.support.badca import make_ca, sign

PEM = serialization.Encoding.PEM
DAY = datetime.timedelta(days=1)
CLOCK, NAME, CA = "is this device's clock right?", "give the server's name", "compare the CA"


@contextlib.contextmanager
def handshakes(context: ssl.SSLContext) -> Iterator[int]:
    """A port that does handshakes and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def answer() -> None:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                client.settimeout(5)
                context.wrap_socket(client, server_side=True).close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("start", "end", "host", "foreign", "says", "hint"),
    [
        (-9, -1, "localhost", False, "expired", CLOCK),
        (1, 9, "localhost", False, "not yet valid", CLOCK),
        (-1, 9, "elsewhere", False, "ostname mismatch", NAME),
        (-1, 9, "localhost", True, "unable to get local issuer", CA),
    ],
)
def test_a_certificate_that_is_not_trusted(
    tmp_path: Path, start: int, end: int, host: str, foreign: bool, says: str, hint: str
) -> None:
    authority, issuer = make_ca("One CA")
    trusted = make_ca("Another CA")[1] if foreign else issuer
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    cert = sign(name, key.public_key(), issuer.subject, authority, start=now + start * DAY, end=now + end * DAY,
                sans=[x509.DNSName(host)])  # fmt: skip
    form = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "server.pem").write_bytes(cert.public_bytes(PEM) + key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with handshakes(context) as port, pytest.raises(TransportError) as caught:
        Link(f"https://localhost:{port}", client_context(ca_pem=trusted.public_bytes(PEM).decode())).send(
            Request("GET", "/")
        )
    assert (
        caught.value.link == "tls-trust" and says in str(caught.value) and caught.value.hint.startswith(hint)
    )


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://proxy.example", "proxy.example", 443),
        ("https://bücher.example:8443", "xn--bcher-kva.example", 8443),
        ("https://[::1]:8443/", "::1", 8443),
    ],
)
def test_where_a_url_leads(url: str, host: str, port: int) -> None:
    assert split_url(url) == (host, port)


def test_a_host_that_has_no_name_in_dns() -> None:
    with pytest.raises(SettingsError, match="has no name of a host"):
        split_url(f"https://{'ü' * 80}.example")
    with pytest.raises(SettingsError, match="is not a URL"):
        split_url(f"https://proxy.example:{'9' * 5000}")


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("http://proxy.example", b"proxy.example"),
        ("http://proxy.example:8080", b"proxy.example:8080"),
        ("http://[::1]:8080", b"[::1]:8080"),
        ("http://[::1]", b"[::1]"),
    ],
)
def test_the_host_field(monkeypatch: pytest.MonkeyPatch, url: str, field: bytes) -> None:
    """RFC 9110 7.2: the port is left out where it is the scheme's."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    monkeypatch.setattr(Link, "_open", lambda self, end: ours)
    with Link(url, None) as link, theirs:
        assert link.send(Request("GET", "/x")).status == 204
        assert theirs.recv(4096).startswith(b"GET /x HTTP/1.1\r\nHost: " + field + b"\r\n")
