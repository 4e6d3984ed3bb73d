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
from igelcert.device.transport import Link, client_context
from igelcert.errors import TransportError
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
