"""The master key is changed, and the change is cut at each of its steps: run again, it comes to its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from igelcert.errors import CheckError, ConflictError, StorageError
from igelcert.proxy import challenges, devices, merging, profiles, rekeying
from igelcert.proxy.cli import main
from igelcert.proxy.context import Context
from igelcert.proxy.database import now
from igelcert.proxy.schema import audit, metadata, ndes_challenges
from igelcert.proxy.schema import profiles as table
from igelcert.proxy.secrets import Sealer
from igelcert.proxy.upstream.config import ScepSettings, load, store
from igelcert.proxy.upstream.scepkeys import TransportKeys
from tests.support.stores import Stores

SECRET = "Schlüssel 7"
DOCUMENT = json.dumps({"certs": [{"friendly_name": "lan", "key": {"crypt_password": SECRET}}]}).encode()


@pytest.fixture
def full(context: Context) -> Context:
    """Something in every place where secrets are."""
    for number in range(3):
        profiles.store(context, f"p{number}", DOCUMENT)
    store(
        context,
        ScepSettings("x", "http://ca.example/scep", ndes_url="http://ca.example/", ndes_user="u"),
        b"",
        SECRET,
    )
    TransportKeys(context).current()
    devices.add(context, "A1")
    with context.db.begin() as connection:
        for name, plain in (("lan", b"challenge"), ("being fetched", b"")):
            sealed = plain and context.sealer.seal(connection, plain, challenges.place("A1", name))
            row = {"unit_id": "A1", "friendly_name": name, "config_version": 1, "sealed": sealed}
            connection.execute(ndes_challenges.insert().values(**row, fetched=now(), used=False))
    return context


def test_every_sealed_column_is_known() -> None:
    there = {
        table.name for table in metadata.sorted_tables for column in table.columns if column.name == "sealed"
    }
    assert there == {each.table.name for each in rekeying.SEALED} - {"meta"}


def _sealed(context: Context, name: str) -> bytes:
    with context.db.read() as connection:
        query = sa.select(table.c.sealed).where(table.c.name == name)
        return bytes(connection.execute(query).scalar_one())


def _plain(context: Context, name: str) -> bytes:
    return context.sealer.unseal(_sealed(context, name), profiles.place(name))


@pytest.mark.parametrize("cut", ["key drawn", "begun", "switched", "half", "sealed anew"])
def test_a_change_that_was_cut_goes_on(
    full: Context, cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(full.data / "master.key", tmp_path / "old.key")
    tag = merging.tag(full, {})
    drawn = full.sealer.add_new() if cut == "key drawn" else ""
    if not drawn:
        rekeying.begin(full)
    if cut in {"switched", "half", "sealed anew"}:
        rekeying.switch(full)
    if cut == "half":
        monkeypatch.setattr(rekeying, "BATCH", 1)
        steps = rekeying.reseal(full)
        assert [next(steps), next(steps), next(steps)] == [1, 2, 3]
        steps.close()
    if cut == "sealed anew":
        assert list(rekeying.reseal(full))
    assert json.loads(_plain(Context.open(full.data), "p1")) == json.loads(DOCUMENT), "it opens at any moment"
    profiles.store(full, "p9", DOCUMENT)
    assert main(["rekey", "--data", str(full.data)]) == 0
    if full.db.shared and cut == "key drawn":  # the first run only distributes
        assert main(["rekey", "--data", str(full.data)]) == 0
    found = rekeying.state(full)
    assert (found.coming, found.others, found.here) == ("", 0, (found.current,))
    assert found.current != drawn, "a key that lay in the file may be an old one"
    fresh = Context.open(full.data)
    old = Sealer.open(tmp_path / "old.key")
    for name in ("p0", "p1", "p2", "p9"):
        assert json.loads(_plain(fresh, name)) == json.loads(DOCUMENT)
        with pytest.raises(CheckError):
            old.unseal(_sealed(fresh, name), profiles.place(name))
    config = load(fresh)
    assert config is not None and config.password == SECRET
    assert fresh.management_ca.fingerprint == full.management_ca.fingerprint
    assert merging.tag(fresh, {}) == tag, "devices need not fetch their settings again"
    fresh.db.close()


def test_what_is_refused(full: Context, stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="still needed"):
        rekeying.begin(full)
        rekeying.drop(full)
    with (
        stores.fresh("sqlite", tmp_path / "other") as other,
        pytest.raises(ConflictError, match="on the same database"),
    ):
        other.sealer.add_new()
        rekeying.take_over(full, Sealer.open(_without_first(other.data / "master.key")))


def test_two_at_once(
    full: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one changes nothing, whether the first is at work or has just ended."""
    here, before = ["rekey", "--data", str(full.data)], rekeying.state(full)
    with rekeying.alone(full):
        assert main(here) == 75 and "another rekey is at work" in capsys.readouterr().err
        if full.db.shared:  # at another proxy
            shutil.copytree(full.data, tmp_path / "two")
            assert main(["rekey", "--data", str(tmp_path / "two")]) == 75
    assert rekeying.state(full) == before
    opened = Context.open

    def late(data: Path) -> Context:
        monkeypatch.setattr(Context, "open", opened)
        assert main(here) == 0
        return opened(data)

    monkeypatch.setattr(Context, "open", late)
    assert main(here) == 75 and "has just ended" in capsys.readouterr().err
    with full.db.read() as connection:
        begun = sa.select(audit.c.id).where(audit.c.detail.contains("is to follow"))
        assert len(connection.execute(begun).all()) == 1
    assert main(here) == 0, "the lock is given back"


def _without_first(path: Path) -> Path:
    """A key file of some other proxy: blank stores are all made from one, and share their first key."""
    path.write_text(path.read_text().splitlines()[1] + "\n")
    return path


def test_a_proxy_that_was_forgotten_says_what_it_lacks(full: Context, tmp_path: Path) -> None:
    other = Sealer.open(Path(shutil.copy(full.data / "master.key", tmp_path / "other.key")))
    rekeying.begin(full)
    rekeying.switch(full)
    with full.db.begin() as connection, pytest.raises(StorageError, match="lacks the key") as caught:
        other.seal(connection, b"x", "profiles/x")
    assert "rekey --add" in caught.value.hint
    for _ in rekeying.reseal(full):
        pass
    with pytest.raises(CheckError, match="does not open"):
        other.unseal(_sealed(full, "p1"), profiles.place("p1"))
    shutil.copy(full.data / "master.key", tmp_path / "other.key")
    assert json.loads(other.unseal(_sealed(full, "p1"), profiles.place("p1"))) == json.loads(DOCUMENT)
