"""A device with certificates, and a machine for the programs that use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandbox import Machine, machine
from tests.support.servers import Host, LabCa, device, lab_ca, straight

LOGIN = {"username": "devices", "crypt_password": "enroll me"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    place = tmp_path_factory.mktemp("hooks")
    (place / "password").write_text(LOGIN["crypt_password"] + "\n")
    with lab_ca(
        place / "ca", "--est-user", LOGIN["username"], "--est-password-file", place / "password"
    ) as made:
        yield made


@pytest.fixture(scope="module")
def host(lab: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A device with the certificates "lan" and "radius", the latter for a server."""
    made = device(tmp_path_factory.mktemp("host") / "root", "tc-hooks", "HOOKS1")
    made.trust((lab.dir / "root.pem").read_bytes())
    named, names = {"auto_cn": "off", "cn": "a server"}, {"hostname": ["radius.example"]}
    made.wants(
        straight("lan", lab.port, **LOGIN),
        straight("radius", lab.port, subject=named, subjaltname=names, **LOGIN),
    )
    made.do("apply")
    return made


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "machine") as made:
        (made.etc / "igelcert").mkdir()
        yield made
