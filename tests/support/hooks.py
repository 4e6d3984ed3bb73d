"""The hooks of rootfs/usr/share/igelcert/hooks, run on a machine of the tests as igelcert runs them."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from tests.support.sandbox import Machine
from tests.support.servers import Host

__all__ = ["HOOKS", "hook", "renew", "serial"]

HOOKS = Path(__file__).parents[2] / "rootfs/usr/share/igelcert/hooks"


def renew(host: Host) -> int:
    """The serial number of the new certificate "lan"."""
    before = serial(host)
    host.do("renew", "lan", "--force")
    assert serial(host) != before
    return serial(host)


def serial(host: Host) -> int:
    return x509.load_pem_x509_certificate((host.home() / "cert.pem").read_bytes()).serial_number


def hook(
    box: Machine,
    name: str,
    host: Host,
    event: str = "renewed",
    friendly_name: str = "lan",
    code: int = 0,
    path: Path | None = None,
) -> str:
    """What the hook says when it runs as igelcert runs it: its argument, its environment, no terminal, and no more
    capabilities than rmagent.service leaves it."""
    env = {
        "PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin",
        "IGELCERT_FRIENDLY_NAME": friendly_name,
        "IGELCERT_DIR": str(host.home()),
        "IGELCERT_REASON": "due",
    }
    few = ("setpriv", "--no-new-privs", "--bounding-set", "-all,+chown,+fowner,+kill", "--inh-caps", "-all")
    done = box.run(*few, HOOKS / name, event, env=env, code=code)
    return done.stdout + done.stderr
