"""The device straight at the lab CA (proto "est"): real TLS, and OpenSSL judges what lies in the tree."""

from __future__ import annotations

import base64
import grp
import json
import os
import pwd
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from igelcert.model import KEY_TYPES
from tests.support.servers import PASSWORD, Host, LabCa, device, lab_ca, run, straight
from tests.support.tree import check_certificate, openssl

TYPES = tuple(kind for kind in KEY_TYPES if kind != "rsa_8192")  # its key alone takes up to a minute
USER, SECRET = "devices", "enroll me: ünïcode"
LOGIN = {"username": USER, "crypt_password": SECRET}

Make = Callable[..., Host]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    place = tmp_path_factory.mktemp("straight")
    (place / "password").write_text(SECRET + "\n", encoding="utf-8")
    options = ("--est-user", USER, "--est-password-file", place / "password")
    with lab_ca(place / "ca", *options) as made:
        yield made


@pytest.fixture(scope="module")
def every(ca: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A device that got a certificate of each type in one go."""
    host = device(tmp_path_factory.mktemp("every") / "root", "tc-every", "EVERY")
    host.trust((ca.dir / "root.pem").read_bytes())
    host.wants(*(straight(kind, ca.port, kind, **LOGIN) for kind in TYPES))
    host.do("apply", timeout=120)
    return host


@pytest.fixture
def host(ca: LabCa, tmp_path: Path) -> Host:
    made = device(tmp_path / "root", "tc-17", "SEVENTEEN")
    made.trust((ca.dir / "root.pem").read_bytes())
    return made


@pytest.fixture(scope="module")
def enrolled(ca: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A device with one certificate, "lan"; to be copied, not changed."""
    made = device(tmp_path_factory.mktemp("enrolled") / "root", "tc-18", "EIGHTEEN")
    made.trust((ca.dir / "root.pem").read_bytes())
    made.wants(straight("lan", ca.port, **LOGIN))
    made.do()
    return made


def leaf(host: Host, name: str = "lan") -> x509.Certificate:
    return x509.load_pem_x509_certificate((host.home(name) / "cert.pem").read_bytes())


def links(directory: Path) -> dict[str, bytes]:
    """Content behind each link; OpenSSL looks at nothing else."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_symlink()}


def rehashed(directory: Path, to: Path) -> dict[str, bytes]:
    """What `openssl rehash` makes of the same PEM files."""
    to.mkdir()
    for path in directory.glob("*.pem"):
        shutil.copy(path, to)
    openssl("rehash", to)
    return links(to)


# ---- every key type -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_the_files_of_each_key_type(every: Host, kind: str) -> None:
    check_certificate(every.root, kind, kind, PASSWORD)
    assert leaf(every, kind).subject.rfc4514_string() == "CN=tc-every,O=Example,C=DE"
    names = leaf(every, kind).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("tc-every")]


PBES2 = rb"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c\x30.\x04\x10(.{16}).*?\x60\x86\x48\x01\x65\x03\x04\x01\x2a\x04\x10(.{16})"


@pytest.mark.parametrize("kind", TYPES)
def test_a_password_is_derived_once(every: Host, kind: str) -> None:
    """pkey.pem and both safes of cert.pfx: one salt (RFC 8018 A.2), and an IV for each (AES-256-CBC, B.2.5)."""
    home = every.home(kind)
    der = base64.b64decode("".join((home / "pkey.pem").read_text().splitlines()[1:-1]))
    found = [
        *re.findall(PBES2, der, re.DOTALL),
        *re.findall(PBES2, (home / "cert.pfx").read_bytes(), re.DOTALL),
    ]
    assert len(found) == 3 and len({salt for salt, _ in found}) == 1 and len({iv for _, iv in found}) == 3


def test_nothing_is_world_readable_but_what_should_be(every: Host) -> None:
    """Below the tree's own 0700, whatever the umask was."""
    for path in every.certs.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            continue
        if path.is_dir():
            assert mode == 0o700, path
        elif path.name in {"pkey.pem", "cert.pfx", ".lock"}:
            assert mode == 0o600, path
        else:
            assert mode == 0o644, path


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_umask_changes_no_mode(ca: LabCa, host: Host, mask: int) -> None:
    host.wants(straight("lan", ca.port, **LOGIN))
    host.do(umask=mask)
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD)
    assert {stat.S_IMODE(path.stat().st_mode) for path in host.store.iterdir()} == {0o644}
    assert stat.S_IMODE(host.store.stat().st_mode) == 0o755


def test_no_two_keys_are_the_same(every: Host) -> None:
    keys = {leaf(every, kind).public_key().public_numbers() for kind in TYPES if "ed25519" not in kind}  # type: ignore[union-attr]
    assert len(keys) == len(TYPES) - 1


def test_links_are_those_of_openssl(every: Host, tmp_path: Path) -> None:
    assert links(every.store) == rehashed(every.store, tmp_path / "rehashed") != {}
    assert (every.root / "etc/ssl/cert").resolve() == every.store


def test_apply_again_changes_nothing(every: Host, ca: LabCa) -> None:
    before, issued = every.live(), ca.issued()
    every.do()
    assert every.live() == before and ca.issued() == issued
    every.do("renew")  # nothing is due
    every.do("install-cas")
    assert every.live() == before and ca.issued() == issued
    assert every.litter() == []
    assert {entry["state"] for entry in every.status()} == {"valid"}


def test_requests_that_were_answered_leave_no_key_behind(every: Host) -> None:
    assert list(every.certs.glob(".store/*/pending")) == []
    assert len(list(every.certs.glob(".store/*/gen-*/pkey.pem"))) == len(TYPES)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that other users get to; pytest's own they do not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.parametrize("words", ["owner", "group", "owner group"])
def test_a_service_that_may_read_the_keys(enrolled: Host, reachable: Path, words: str) -> None:
    """Given and taken back, without a new certificate; it can read, and change nothing."""
    host = enrolled.copy(reachable / "root")
    serial = leaf(host).serial_number
    toml = host.root / "etc/igelcert/device.toml"
    plain = toml.read_text()
    root = os.geteuid() == 0
    user = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
    group = grp.getgrnam("daemon") if root else grp.getgrgid(os.getegid())
    names = {"owner": user.pw_name, "group": group.gr_name}
    toml.write_text(plain + "".join(f'{word} = "{names[word]}"\n' for word in words.split()))
    for forced in (False, True):
        host.do(*(("renew", "--force") if forced else ("apply",)))
        assert (leaf(host).serial_number == serial) is not forced
        home = host.home().resolve()
        for path in (host.certs, host.certs / ".store", home.parent, home, home / "cacerts"):
            assert path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o022, path
        key = (home / "pkey.pem").stat()
        assert stat.S_IMODE(key.st_mode) == stat.S_IMODE((home / "cert.pfx").stat().st_mode) == 0o640
        assert (key.st_uid == user.pw_uid) is ("owner" in words or not root)
        assert (key.st_gid == group.gr_gid) is ("group" in words or not root)
    if root:
        ids = {
            "owner": ("--reuid", "nobody", "--regid", "nogroup"),
            "group": ("--reuid", "games", "--regid", "daemon"),
        }
        for word in words.split():
            service = ["setpriv", *ids[word], "--clear-groups"]
            assert run(*service, "cat", host.home() / "pkey.pem").returncode == 0
            assert run(*service, "touch", home / "new").returncode != 0
        stranger = ["setpriv", "--reuid", "games", "--regid", "games", "--clear-groups"]
        assert run(*stranger, "cat", host.home() / "pkey.pem").returncode != 0
    toml.write_text(plain)
    host.do()
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD)
    assert (host.home() / "pkey.pem").stat().st_uid == os.geteuid()


# ---- renewal --------------------------------------------------------------------------------------


def test_a_forced_renewal(enrolled: Host, tmp_path: Path) -> None:
    host = enrolled.copy(tmp_path / "root")
    first, paths = leaf(host), set(host.live())
    reader = os.open(host.home(), os.O_RDONLY)  # a service that holds its directory open
    try:
        host.do("renew", "lan", "--force")
        held = {
            name: Path(f"/proc/self/fd/{reader}", name).read_bytes()
            for name in os.listdir(reader)
            if "." in name
        }
    finally:
        os.close(reader)
    second = leaf(host)
    assert first.serial_number != second.serial_number
    assert first.public_key() != second.public_key(), "a renewal makes a new key"
    assert set(host.live()) == paths
    assert held["cert.pem"] == first.public_bytes(Encoding.PEM)
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD)
    assert host.litter() == []


def test_readers_never_see_a_mixture(enrolled: Host, tmp_path: Path) -> None:
    """Key and certificate, read through one directory handle, belong together at every moment of a renewal."""
    host = enrolled.copy(tmp_path / "root")
    done = threading.Event()
    pairs: set[tuple[bytes, bytes]] = set()

    def read() -> None:
        while (
            not done.is_set()
        ):  # a name that is not there for a moment ends this thread, and pairs are missing
            at = os.open(host.home(), os.O_RDONLY)
            try:
                pairs.add(
                    tuple(
                        Path(f"/proc/self/fd/{at}/{name}").read_bytes() for name in ("pkey.pem", "cert.pem")
                    )
                )  # type: ignore[arg-type]
            finally:
                os.close(at)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(3):
            host.do("renew", "--force")
    finally:
        done.set()
        reader.join(10)
    assert len(pairs) == 4
    for key, cert in pairs:
        public = load_pem_private_key(key, PASSWORD.encode()).public_key()
        assert public == x509.load_pem_x509_certificate(cert).public_key()


def test_the_certificate_renews_itself_without_the_password(
    enrolled: Host, ca: LabCa, tmp_path: Path
) -> None:
    """RFC 7030 4.2.2: the live certificate authenticates; the name and password are for the first time."""
    host = enrolled.copy(tmp_path / "root")
    first = leaf(host)
    host.wants(straight("lan", ca.port))
    host.do("renew", "--force")
    assert leaf(host).serial_number != first.serial_number
    assert "POST /.well-known/est/simplereenroll" in ca.log()


@pytest.mark.parametrize(
    "damage",
    [
        "cert.pem",
        "pkey.pem",
        "cert.pfx",
        "cacerts.pem",
        "swapped key",
        "cut pkey.pem",
        "cut cert.pem",
        "cut cert.pfx",
        "cut cacerts.pem",
        "half of cacerts.pem",
        "cacerts",
        "cut cacerts/Lab Root CA.pem",
        "zeroed cert.pfx",
        "zeroed pkey.pem",
        "empty pkey.pem",
        "noise in cacerts.pem",
    ],
)
def test_a_damaged_tree_heals(enrolled: Host, tmp_path: Path, damage: str) -> None:
    host = enrolled.copy(tmp_path / "root")
    serial = leaf(host).serial_number
    if damage == "swapped key":
        options = ("-aes256", "-pass", f"pass:{PASSWORD}")
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", *options,
                "-out", host.home() / "pkey.pem")  # fmt: skip
    elif " " in damage:
        kind, _, name = damage.partition(" ")
        file = host.home() / name.removeprefix("of ").removeprefix("in ")
        whole = file.read_bytes()
        first = whole.find(b"-----END") + len("-----END CERTIFICATE-----\n")
        left = {"cut": whole[:100], "half": whole[:first], "empty": b"", "zeroed": bytes(len(whole)),
                "noise": whole.replace(b"\nM", b"\n!", 1)}  # fmt: skip
        file.write_bytes(left[kind])
    elif damage == "cacerts":
        shutil.rmtree(host.home() / damage)
    else:
        (host.home() / damage).unlink()
    assert "password changed" not in host.do("apply", "--verbose")
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD)
    assert leaf(host).serial_number != serial


@pytest.mark.parametrize(
    "change",
    [
        {"key": {"type": "ec_secp384r1", "crypt_password": PASSWORD}},
        {"subject": {"auto_cn": "unitid", "org": "Example", "country": "DE"}},
        {"subjaltname": {"uri": ["urn:example:device"]}},
        {"label": "devices"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changed_settings_get_a_new_certificate(
    enrolled: Host, ca: LabCa, tmp_path: Path, change: dict[str, Any]
) -> None:
    host = enrolled.copy(tmp_path / "root")
    old = leaf(host)
    host.wants(straight("lan", ca.port, **{**LOGIN, **change}))
    host.do()
    new = leaf(host)
    assert new.serial_number != old.serial_number
    check_certificate(host.root, "lan", change.get("key", {}).get("type", "ec_prime256v1"), PASSWORD)
    if "subject" in change:
        assert new.subject.rfc4514_string() == "CN=EIGHTEEN,O=Example,C=DE"
    before = host.live()
    host.do()
    assert host.live() == before


def test_a_new_key_password_counts_from_now_on(enrolled: Host, ca: LabCa, tmp_path: Path) -> None:
    host = enrolled.copy(tmp_path / "root")
    host.wants(straight("lan", ca.port, **LOGIN, key={"type": "ec_prime256v1", "crypt_password": "another"}))
    host.do()
    check_certificate(host.root, "lan", "ec_prime256v1", "another")


def test_without_a_key_password(ca: LabCa, host: Host) -> None:
    host.wants(straight("lan", ca.port, **LOGIN, key={"type": "ec_prime256v1"}))
    host.do()
    host.do("renew", "--force")
    home = host.home()
    assert (home / "pkey.pem").read_text().startswith("-----BEGIN PRIVATE KEY-----")
    for name in ("pkey.pem", "cert.pfx"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    openssl("pkcs12", "-in", home / "cert.pfx", "-passin", "pass:", "-noout")
    public = openssl("x509", "-in", home / "cert.pem", "-noout", "-pubkey")
    assert openssl("pkey", "-in", home / "pkey.pem", "-pubout") == public


def test_what_is_due_is_renewed_by_itself(tmp_path: Path, ca: LabCa) -> None:
    """A percent of the hour that certificates live for is gone when they are issued: CAs date them back."""
    (tmp_path / "password").write_text(SECRET)
    options = ("--validity", "1h", "--est-user", USER, "--est-password-file", tmp_path / "password")
    with lab_ca(tmp_path / "ca", *options) as short:
        host = device(tmp_path / "root", "tc-19", "NINETEEN")
        host.trust((short.dir / "root.pem").read_bytes())
        entry = straight("lan", short.port, **LOGIN)
        entry["enrollment"] |= {"renewal_period": 99}
        host.wants(entry)
        host.do()
        assert [row["state"] for row in host.status()] == ["due"]
        host.do()
        assert len(short.issued()) == 2
        entry["enrollment"] |= {"auto_renewal": False}
        host.wants(entry)
        host.do()
        assert len(short.issued()) == 2
        row = host.status()[0]
        assert (row["state"], row["renew_at"]) == ("valid", None)
        assert row["serial"] == f"{leaf(host).serial_number:X}".zfill(len(row["serial"]))


# ---- what leaves the settings ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["castore.json", "gen-0001", "pending", "-x", "%2F", "é" * 64])
def test_a_friendly_name_is_never_a_file_of_ours(ca: LabCa, host: Host, name: str) -> None:
    host.wants(straight("lan", ca.port, **LOGIN))
    host.do()
    host.wants(
        straight(name, ca.port, **LOGIN), straight("lan", ca.port, **LOGIN), straight("vpn", ca.port, **LOGIN)
    )
    host.do()
    for each in (name, "lan", "vpn"):
        check_certificate(host.root, each, "ec_prime256v1", PASSWORD)
    host.wants(straight("lan", ca.port, **LOGIN))
    host.do()
    assert [row["friendly_name"] for row in host.status()] == ["lan"]
    host.wants()
    host.do()
    assert os.listdir(host.store) == []


def test_a_place_that_cannot_be_used_does_not_stop_the_others(ca: LabCa, host: Host) -> None:
    host.wants(straight("lan", ca.port, **LOGIN))
    host.do()
    (host.certs / ".store/bad").write_text("in the way")
    host.wants(straight("bad", ca.port, **LOGIN), straight("vpn", ca.port, **LOGIN))
    assert "bad: " in host.do(code=1)
    check_certificate(host.root, "vpn", "ec_prime256v1", PASSWORD)


@pytest.mark.parametrize("words", [["apply"], ["renew"], ["renew", "--force"]])
def test_without_settings_nothing_is_removed(enrolled: Host, tmp_path: Path, words: list[str]) -> None:
    """No settings are not empty settings: a file that was lost must not cost every certificate."""
    host = enrolled.copy(tmp_path / "root")
    live = host.live()
    done = run("igel-certs", *words, "--root", host.root)
    assert (
        done.returncode == 78
        and "settings.json: is not there" in done.stderr
        and "rmagent sync" in done.stderr
    )
    assert host.live() == live


def test_a_certificate_that_left_the_settings_goes(ca: LabCa, host: Host) -> None:
    host.wants(straight("lan", ca.port, **LOGIN), straight("vpn", ca.port, **LOGIN))
    host.do()
    # the system's own
    foreign = openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                      "-subj", "/CN=Lab Root CA", "-keyout", os.devnull)  # fmt: skip
    (host.store / "foreign.pem").write_text(foreign)
    (host.store / "12345678.0").symlink_to("foreign.pem")
    (host.certs / "notes.txt").write_text("kept")
    cas = {"Lab Root CA.pem", "Lab Issuing CA.pem"}
    assert cas < set(os.listdir(host.store))

    host.wants(straight("vpn", ca.port, **LOGIN))
    host.do()
    assert not os.path.lexists(host.home("lan")) and not (host.certs / ".store/lan").exists()
    check_certificate(host.root, "vpn", "ec_prime256v1", PASSWORD)
    assert cas < set(os.listdir(host.store)), "vpn still uses them"

    host.wants()
    host.do()
    assert not os.path.lexists(host.home("vpn"))
    assert sorted(os.listdir(host.store)) == ["12345678.0", "foreign.pem"]
    assert sorted(os.listdir(host.certs)) == [".lock", ".store", "notes.txt"]
    assert host.status() == []


def test_cas_of_the_same_name_stand_beside_each_other(ca: LabCa, tmp_path: Path) -> None:
    """Two lab CAs differ in nothing but their keys: equal names, equal hashes."""
    place = tmp_path / "password"
    place.write_text(SECRET)
    with lab_ca(tmp_path / "ca2", "--est-user", USER, "--est-password-file", place) as second:
        host = device(tmp_path / "root", "tc-20", "TWENTY")
        both = (ca.dir / "root.pem").read_bytes() + (second.dir / "root.pem").read_bytes()
        host.trust(both)
        host.wants(straight("one", ca.port, **LOGIN), straight("two", second.port, **LOGIN))
        host.do()
        names = {f"Lab {kind} CA{more}.pem" for kind in ("Root", "Issuing") for more in ("", "-2")}
        assert {path.name for path in host.store.glob("*.pem")} == names
        ours, theirs = links(host.store), rehashed(host.store, tmp_path / "rehashed")
        assert sorted(ours) == sorted(theirs) and sorted(ours.values()) == sorted(theirs.values())
        for name in ("one", "two"):
            check_certificate(host.root, name, "ec_prime256v1", PASSWORD)
        # the first goes: no gap stays before the links of the second
        host.wants(straight("two", second.port, **LOGIN))
        host.do()
        left = links(host.store)
        assert len(left) == 2 and all(name.endswith(".0") for name in left)
        openssl("verify", "-CApath", host.store, host.home("two") / "cert.pem")


def test_a_lost_ca_store_comes_back(enrolled: Host, tmp_path: Path) -> None:
    """Images where /etc is not kept: install-cas at boot, without a network."""
    host = enrolled.copy(tmp_path / "root")
    before = links(host.store)
    shutil.rmtree(host.root / "etc/ssl")
    host.do("install-cas")
    assert links(host.store) == before
    openssl("verify", "-CApath", host.store, host.home() / "cert.pem")


def test_a_changed_file_of_ours_is_restored(enrolled: Host, tmp_path: Path) -> None:
    host = enrolled.copy(tmp_path / "root")
    good = (host.store / "Lab Root CA.pem").read_bytes()
    (host.store / "Lab Root CA.pem").write_bytes(good[:200])
    next(host.store.glob("*.0")).unlink()
    host.do("install-cas")
    assert (host.store / "Lab Root CA.pem").read_bytes() == good
    openssl("verify", "-CApath", host.store, host.home() / "cert.pem")


# ---- who trusts whom ------------------------------------------------------------------------------


def test_trust_by_fingerprint(ca: LabCa, host: Host) -> None:
    shown = openssl("x509", "-in", ca.dir / "root.pem", "-noout", "-fingerprint", "-sha256").partition("=")[2]
    entry = straight("lan", ca.port, **LOGIN, ca_file="", ca_fingerprint=shown.strip())
    host.wants(entry)
    host.do()
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD)


def test_a_wrong_fingerprint(ca: LabCa, host: Host) -> None:
    count = len(ca.issued())
    host.wants(straight("lan", ca.port, **LOGIN, ca_file="", ca_fingerprint="ab" * 32))
    assert "no certificate of the server has that fingerprint" in host.do(code=1)
    assert len(ca.issued()) == count and not os.path.lexists(host.home())


@pytest.mark.parametrize(
    "login", [{}, {"username": USER, "crypt_password": "guessed"}], ids=["none", "wrong"]
)
def test_who_is_not_known_gets_nothing(ca: LabCa, host: Host, login: dict[str, str]) -> None:
    count = len(ca.issued())
    host.wants(straight("lan", ca.port, **login))
    said = host.do(code=1)
    assert "lan: the server refused (401): " in said and "guessed" not in said
    assert len(ca.issued()) == count and not os.path.lexists(host.home())
    row = host.status()[0]
    assert row["state"] == "missing" and "(401)" in row["error"]


def test_a_server_that_is_not_trusted(ca: LabCa, host: Host) -> None:
    stranger = openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                       "-subj", "/CN=Stranger", "-keyout", os.devnull)  # fmt: skip
    host.trust(stranger.encode())
    count = ca.log().count("POST")
    host.wants(straight("lan", ca.port, **LOGIN))
    assert f"the certificate of localhost:{ca.port} is not trusted" in host.do(code=75)
    assert ca.log().count("POST") == count, "no password goes to a stranger"


def test_a_client_certificate_of_the_image(ca: LabCa, host: Host) -> None:
    """A factory certificate that enrolls; here the RA's of the lab CA."""
    password = (ca.dir / "ra.p12.password").read_text().strip()
    place = host.root / "etc/igelcert/factory.pem"
    openssl("pkcs12", "-in", ca.dir / "ra.p12", "-passin", f"pass:{password}", "-clcerts", "-passout", "pass:k",
            "-out", place)  # fmt: skip
    given = {"client_certificate": "/etc/igelcert/factory.pem", "crypt_client_key_password": "k"}
    host.wants(straight("lan", ca.port, **given))
    host.do()
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD)
    host.wants(straight("vpn", ca.port, **{**given, "crypt_client_key_password": "wrong"}))
    assert "enrollment.est.client_certificate" in host.do(code=78)


def test_no_secret_is_shown(ca: LabCa, host: Host, tmp_path: Path) -> None:
    """Neither on the screen nor in what the tree holds in clear."""
    host.wants(straight("lan", ca.port, **LOGIN))
    said = host.do("apply", "--verbose") + host.do("status") + host.do("status", "--json")
    assert "enrolled" in said
    for path in host.certs.rglob("*"):
        if path.is_file():
            said += path.read_bytes().decode("latin-1")
    for secret in (PASSWORD, SECRET, SECRET.encode().decode("latin-1")):
        assert secret not in said
    assert json.loads((host.certs / ".store/lan/state.json").read_text())["serial"]
