"""Backups of a proxy: what is restored is what was saved; what is damaged or in the way is refused, and leaves nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest

from igelcert.proxy import backup, devices, merging, profiles, rekeying, schema
from igelcert.proxy.cli import main
from igelcert.proxy.context import Context
from tests.support.chain import command
from tests.support.stores import Stores

SECRET = "Schlüssel 7"
DOCUMENT = json.dumps({"certs": [{"friendly_name": "lan", "key": {"crypt_password": SECRET}}]}).encode()


@pytest.fixture
def full(stores: Stores, tmp_path: Path) -> Context:
    with stores.fresh("sqlite", tmp_path / "data") as context:
        profiles.store(context, "p", DOCUMENT)
        devices.import_csv(context, "unit_id\n" + "\n".join(f"U{number}" for number in range(50)))
        (tmp_path / "passphrase").write_text("Zwölf Boxkämpfer\nand another line\n")
        return context


def save(context: Context, to: Path, *options: str) -> int:
    given = options or ("--passphrase-file", str(to.parent / "passphrase"))
    return main(["backup", str(to), "--data", str(context.data), *given])


def restore(saved: Path, data: Path, *options: str) -> int:
    given = options or ("--passphrase-file", str(saved.parent / "passphrase"))
    return main(["restore", str(saved), "--data", str(data), *given])


def plain(context: Context) -> bytes:
    device = devices.get(context, "U1")
    assert device is not None
    profiles.assign(context, "p", device="U1")
    return json.dumps(merging.effective(context, device).document, ensure_ascii=False).encode()


def test_what_is_restored_is_what_was_saved(full: Context, tmp_path: Path) -> None:
    saved, data = tmp_path / "saved", tmp_path / "new/data"
    assert save(full, saved) == 0 and saved.stat().st_mode & 0o777 == 0o600
    with tarfile.open(saved) as archive:
        assert sorted(archive.getnames()) == [
            "manifest.json",
            "master.key.encrypted",
            "proxy.db",
            "proxy.toml",
        ]
    devices.add(full, "LATER")
    assert restore(saved, data) == 0
    assert data.stat().st_mode & 0o777 == 0o700 and (data / "master.key").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.rglob(".*")), "nothing is left lying about"
    again = Context.open(data)
    for name in ("master.key", "trust.pem", "proxy.toml"):
        assert (data / name).read_bytes() == (full.data / name).read_bytes()
    for table in schema.metadata.sorted_tables:
        with full.db.read() as old, again.db.read() as new:
            mine, theirs = (set(each.execute(table.select()).all()) for each in (old, new))
        if table.name in {"devices", "tokens", "audit"}:
            assert len(mine - theirs) == {"devices": 1, "tokens": 1, "audit": 2}[table.name]
        else:
            assert mine == theirs, table.name
    assert SECRET.encode() in plain(again)
    again.db.close()


def test_without_the_master_key(full: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, data = tmp_path / "saved", tmp_path / "new"
    assert save(full, saved, "--without-key") == 0 and "is not in it" in capsys.readouterr().out
    assert restore(saved, data) == 78 and "--master-key: is missing" in capsys.readouterr().err
    rekeying.begin(full)  # a backup of the time before needs the key of before
    rekeying.switch(full)
    assert list(rekeying.reseal(full)) and rekeying.drop(full) == 1
    assert restore(saved, data, "--master-key", str(full.data / "master.key")) == 1
    assert "does not open with this master key" in capsys.readouterr().err and not data.exists()


def test_with_the_key_kept_apart(full: Context, tmp_path: Path) -> None:
    saved, key = tmp_path / "saved", tmp_path / "kept.key"
    shutil.copy(full.data / "master.key", key)
    assert save(full, saved, "--without-key") == 0
    assert restore(saved, tmp_path / "new", "--master-key", str(key)) == 0
    assert SECRET.encode() in plain(Context.open(tmp_path / "new"))


def test_in_the_middle_of_a_change_of_the_master_key(full: Context, tmp_path: Path) -> None:
    rekeying.begin(full)
    rekeying.switch(full)
    assert save(full, tmp_path / "saved") == 0
    assert restore(tmp_path / "saved", tmp_path / "new") == 0
    again = Context.open(tmp_path / "new")
    assert len(again.sealer.names()) == 2 and SECRET.encode() in plain(again)
    assert main(["rekey", "--data", str(again.data)]) == 0
    assert len(again.sealer.names()) == 1 and SECRET.encode() in plain(again)


@pytest.mark.parametrize("steps", [0, 1, 99], ids=["not begun", "half", "sealed anew"])
def test_while_the_master_key_is_changed(
    full: Context, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key may be gone by the time that the database is copied, in which secrets are still under it."""
    copy = backup._copy_database

    def meanwhile(source: Path, to: Path) -> None:
        if steps:
            rekeying.begin(full)
            rekeying.switch(full)
            for _ in zip(range(steps), rekeying.reseal(full), strict=False):
                pass
        copy(source, to)
        assert main(["rekey", "--data", str(full.data)]) == 0

    monkeypatch.setattr(backup, "_copy_database", meanwhile)
    assert save(full, tmp_path / "saved") == 0
    assert len(full.sealer.names()) == 1
    assert restore(tmp_path / "saved", tmp_path / "new") == 0
    again = Context.open(tmp_path / "new")
    assert SECRET.encode() in plain(again)
    assert main(["rekey", "--data", str(again.data)]) == 0
    assert len(again.sealer.names()) == 1 and SECRET.encode() in plain(again)
    again.db.close()


def test_a_key_that_opens_some_secrets_alone(
    full: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rekeying.begin(full)
    rekeying.switch(full)
    next(rekeying.reseal(full))  # the management CA alone
    assert save(full, tmp_path / "saved", "--without-key") == 0
    (tmp_path / "new.key").touch(0o600)
    (tmp_path / "new.key").write_text((full.data / "master.key").read_text().splitlines()[1] + "\n")
    assert restore(tmp_path / "saved", tmp_path / "new", "--master-key", str(tmp_path / "new.key")) == 1
    assert "profiles/p does not open" in capsys.readouterr().err and not (tmp_path / "new").exists()
    full.sealer.keep_only(full.sealer.names()[1])  # the old key was lost
    assert save(full, tmp_path / "again", "--without-key") == 1 and not (tmp_path / "again").exists()


def test_nothing_says_what_becomes_of_the_key(full: Context, tmp_path: Path) -> None:
    """Neither in the clear nor left out by default: whoever writes the cron job decides."""
    args = ["backup", str(tmp_path / "saved"), "--data", str(full.data)]
    done = subprocess.run(
        [command("ca-proxy"), *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 64 and "--without-key" in done.stderr and not (tmp_path / "saved").exists()
    (tmp_path / "passphrase").write_text("too short\n")
    assert save(full, tmp_path / "saved") == 78 and not (tmp_path / "saved").exists()


def test_what_is_in_the_way_stays(full: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, data = tmp_path / "saved", tmp_path / "new"
    saved.write_text("mine")
    assert save(full, saved) == 1 and saved.read_text() == "mine"
    saved.unlink()
    assert save(full, saved) == 0
    data.mkdir()
    (data / "file").write_text("mine")
    assert restore(saved, data) == 1 and "not empty" in capsys.readouterr().err
    assert [path.name for path in data.iterdir()] == ["file"]
    assert restore(saved, data / "file") == 1 and "file is not a directory" in capsys.readouterr().err


def test_the_wrong_passphrase(full: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert save(full, tmp_path / "saved") == 0
    (tmp_path / "passphrase").write_text("Zwölf Boxkämpfer jagen\n")
    assert restore(tmp_path / "saved", tmp_path / "new") == 1
    assert "the passphrase is not the one" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert restore(tmp_path / "saved", tmp_path / "new", "--database", "postgresql://x@localhost/x") == 1
    assert "holds its database" in capsys.readouterr().err


def test_any_octet_that_changed_is_found(
    full: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, bad = tmp_path / "saved", tmp_path / "bad"
    assert save(full, saved) == 0
    whole = saved.read_bytes()
    with tarfile.open(saved) as archive:
        places = {info.name: (info.offset_data, info.size) for info in archive.getmembers()}
    capsys.readouterr()
    for name, (start, size) in places.items():
        for place in (start, start + size // 2, start + size - 2):
            bad.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert restore(bad, tmp_path / "new") == 1, name
            said = capsys.readouterr().err
            assert ("Traceback" not in said and "damaged" in said) or "format" in said, (name, said)
            assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))
    for length in (0, 100, len(whole) // 2):
        bad.write_bytes(whole[:length])
        assert restore(bad, tmp_path / "new") == 1 and not (tmp_path / "new").exists()


def test_more_than_the_manifest_names(full: Context, tmp_path: Path) -> None:
    """A file that somebody put into it gets nowhere, whatever it is called."""
    assert save(full, tmp_path / "saved") == 0
    for name in ("../../evil", "proxy.db"):
        shutil.copy(tmp_path / "saved", tmp_path / "more")
        with tarfile.open(tmp_path / "more", "a") as archive:
            archive.add(tmp_path / "passphrase", name)
        assert restore(tmp_path / "more", tmp_path / "new") == 1 and not (tmp_path / "new").exists()


def test_a_newer_schema_and_a_damaged_database(
    full: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert save(full, tmp_path / "saved") == 0
    monkeypatch.setattr(schema, "HEAD", "0001")
    assert restore(tmp_path / "saved", tmp_path / "new") == 1
    assert "this program knows 0001" in capsys.readouterr().err and not (tmp_path / "new").exists()
    monkeypatch.undo()
    broken = full.data / "proxy.db"
    full.db.close()
    with sqlite3.connect(broken) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    octets = bytearray(broken.read_bytes())
    octets[len(octets) // 2 : len(octets) // 2 + 4096] = bytes(4096)
    broken.write_bytes(octets)
    assert save(full, tmp_path / "of damaged") == 1 and "damaged" in capsys.readouterr().err
    assert not (tmp_path / "of damaged").exists() and not list(tmp_path.glob(".*"))


def test_a_disk_that_is_full(full: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert save(full, tmp_path / "saved") == 0

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_unpack", no_room)
    assert restore(tmp_path / "saved", tmp_path / "new") == 1
    monkeypatch.setattr(backup, "_plainly", no_room)
    assert save(full, tmp_path / "second") == 1
    assert (
        not (tmp_path / "new").exists()
        and not (tmp_path / "second").exists()
        and not list(tmp_path.glob(".*"))
    )
