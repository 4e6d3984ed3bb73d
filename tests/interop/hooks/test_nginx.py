"""nginx presents the new certificate after its hook."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.hooks import HOOKS, hook, renew, serial
from tests.support.peers import peer
from tests.support.sandbox import Machine
from tests.support.servers import PASSWORD, Host, run
from tests.support.until import until

pytestmark = pytest.mark.peers

NGINX = """
{user}
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    server {{
        listen unix:{dir}/nginx.sock ssl;
        ssl_certificate {home}/cert.pem;
        ssl_certificate_key {home}/pkey.pem;
        ssl_password_file {dir}/password;
        return 204;
    }}
}}
"""


@pytest.fixture
def nginx(box: Machine, host: Host, tmp_path: Path) -> Iterator[Path]:
    """nginx with /etc/nginx/nginx.conf and /run/nginx.pid, serving "lan"; its socket."""
    program, listening = peer("nginx"), tmp_path / "nginx.sock"
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (box.etc / "nginx").mkdir()
    (box.etc / "nginx/nginx.conf").write_text(NGINX.format(user="user root;", dir=tmp_path, home=host.home()))
    with box.running("nginx", program, "-e", "stderr", "-g", "daemon off; pid /run/nginx.pid;") as log:
        until(lambda: listens(listening), say=log.read_text)
        yield listening


def listens(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
        line.connect(str(place))
        return True
    return False


def presented(place: Path, host: Host) -> int:
    """Serial number of the certificate of the TLS server at that socket.

    nginx sends cert.pem and no CA with it: who trusts the issuing CA verifies it.
    """
    context = ssl.create_default_context(cafile=host.home() / "cacerts.pem")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(10)
        plain.connect(str(place))
        with context.wrap_socket(plain, server_hostname="tc-hooks") as secured:
            der = secured.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def test_nginx(box: Machine, host: Host, nginx: Path) -> None:
    before = serial(host)
    assert presented(nginx, host) == before
    after = renew(host)
    assert presented(nginx, host) == before, "nginx needs no hook?"
    hook(box, "nginx", host)
    until(lambda: presented(nginx, host) == after, say=lambda: "nginx keeps the old certificate")


def test_nginx_refuses(box: Machine, host: Host, nginx: Path) -> None:
    before = serial(host)
    renew(host)
    with (box.etc / "nginx/nginx.conf").open("a") as file:
        file.write("nonsense;\n")
    said = hook(box, "nginx", host, code=1)
    assert 'unknown directive "nonsense"' in said and "nginx hook: nginx refuses" in said
    assert presented(nginx, host) == before


@pytest.fixture
def installed(host: Host) -> Iterator[None]:
    """The hook in hooks.d of the device, which other tests share."""
    place = host.root / "etc/igelcert/hooks.d"
    place.mkdir()
    shutil.copy(HOOKS / "nginx", place / "50-nginx")
    (place / "50-nginx").chmod(0o755)
    yield
    shutil.rmtree(place)


@pytest.mark.usefixtures("installed")
def test_igelcert_runs_it(box: Machine, host: Host, nginx: Path) -> None:
    """The renewal itself runs it; what nginx refused is run again."""
    config = box.etc / "nginx/nginx.conf"
    good = config.read_text()
    config.write_text(good + "nonsense;\n")
    before = presented(nginx, host)
    done = run(*box.enter(*host.command("renew", "lan", "--force", "--verbose"), net=False))
    assert done.returncode == 75, done.stderr
    assert "hook 50-nginx: nginx hook: nginx refuses its configuration" in done.stderr
    after = serial(host)
    assert after != before and presented(nginx, host) == before
    config.write_text(good)
    done = run(*box.enter(*host.command("apply", "--verbose"), net=False))
    assert done.returncode == 0, done.stderr
    until(lambda: presented(nginx, host) == after, say=lambda: done.stderr)
