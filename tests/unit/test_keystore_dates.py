"""What is said of a keystore that is in use, as time goes by."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from igelcert.errors import SettingsError
from igelcert.proxy import ca
from igelcert.proxy.context import Context
from igelcert.proxy.upstream.config import EstSettings
from tests.support.badca import keystore, make_ca

DAY = 86_400


@pytest.mark.parametrize(
    ("days", "later", "says"),
    [
        (400, 0, ()),
        (5, 0, ("the client certificate expires in 5 days",)),
        (400, 390, ("the client certificate expires in 10 days",)),
        (400, 401, ("the client certificate has expired",)),
    ],
)
def test_the_end_of_a_stored_keystore_is_told(
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    later: int,
    says: tuple[str, ...],
) -> None:
    end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=days, hours=1)
    data = keystore(tmp_path / "ra.p12", make_ca("CA"), end=end).read_bytes()
    config = ca.assemble(context, EstSettings("test", "localhost"), data, "secret")
    ca.save(context, config)
    moment = ca.now()
    monkeypatch.setattr(ca, "now", lambda: moment + later * DAY)
    shown = ca.describe(context)
    assert shown is not None and tuple(shown["warnings"]) == says
    assert ca.warnings(config) == says


def test_an_expired_one_is_not_taken(context: Context, tmp_path: Path) -> None:
    end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(days=1)
    data = keystore(tmp_path / "ra.p12", make_ca("CA"), end=end).read_bytes()
    with pytest.raises(SettingsError, match="has expired"):
        ca.assemble(context, EstSettings("test", "localhost"), data, "secret")
