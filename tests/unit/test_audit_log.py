"""The audit log only grows, and other programs get each line of it once: as JSON lines, and by syslog."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from igelcert.errors import StorageError
from igelcert.proxy import auditexport
from igelcert.proxy.cli import main
from igelcert.proxy.context import Context
from igelcert.proxy.database import Database, now
from igelcert.proxy.schema import audit
from tests.support.postgres import Cluster
from tests.support.stores import Stores

# RFC 5424 6, as far as it allows what we have
SYSLOG = re.compile(
    rb"<109>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) ([!-~]{1,255}) ca-proxy (\d{1,128}) ([!-~]{1,32}) - (\{.*\})",
    re.DOTALL,
)


def write(context: Context, *actions: str) -> None:
    for action in actions:
        with context.db.begin() as connection:
            Database.record(connection, "tests", action, f"wegen {action} ☂")


@pytest.fixture
def shared(stores: Stores, postgres: Cluster, tmp_path: Path) -> Iterator[Context]:
    """A proxy's store on PostgreSQL, for what SQLite does not have."""
    stores.cluster = postgres
    with stores.fresh("postgresql", tmp_path / "shared") as made:
        yield made


@pytest.mark.parametrize("statement", ["UPDATE audit SET detail = 'x'", "DELETE FROM audit"])
def test_nothing_is_changed_or_removed(context: Context, statement: str) -> None:
    refused(context, statement)


@pytest.mark.peers
def test_postgresql_does_not_empty_it(shared: Context) -> None:
    refused(shared, "TRUNCATE audit")


def test_sqlite_does_not_replace_a_line(stores: Stores, tmp_path: Path) -> None:
    """Its REPLACE removes the row that is in the way without a trigger on DELETE."""
    with stores.fresh("sqlite", tmp_path / "embedded") as context:
        refused(context, "INSERT OR REPLACE INTO audit VALUES (1, 0, 'x', 'x', 'x')")
        refused(context, "REPLACE INTO audit VALUES (1, 0, 'x', 'x', 'x')")
        write(context, "one more")


def refused(context: Context, statement: str) -> None:
    with (
        pytest.raises((StorageError, sa.exc.IntegrityError), match="append-only"),
        context.db.begin() as connection,
    ):
        connection.exec_driver_sql(statement)
    with context.db.read() as connection:
        assert connection.execute(sa.select(audit.c.action)).scalars().all() == ["init"]


def test_lines_come_once_and_in_their_order(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["audit", "--data", str(context.data), "--lines", "--position", str(tmp_path / "position")]

    def fresh() -> list[str]:
        assert main(args) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(set(each) == {"id", "at", "time", "actor", "action", "detail"} for each in found)
        return [each["action"] for each in found]

    assert fresh() == ["init"] and fresh() == []
    write(context, *(f"a {number}" for number in range(250)))
    assert fresh() == [f"a {number}" for number in range(250)] and fresh() == []
    assert main([*args[:4], "--since", "2999-01-01"]) == 0 and capsys.readouterr().out == ""
    assert (
        main([*args[:4], "--since", "2000-01-01"]) == 0 and len(capsys.readouterr().out.splitlines()) == 251
    )
    assert main(["audit", "--data", str(context.data), "--follow"]) == 64
    (tmp_path / "position").write_text("nonsense")
    assert main(args) == 1 and "holds no position" in capsys.readouterr().err


def exported(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """Actions of the lines, and stderr."""
    assert main(args) == 0
    said = capsys.readouterr()
    return [json.loads(line)["action"] for line in said.out.splitlines()], said.err


def test_after_a_restore_lines_come_twice_and_none_is_missing(
    stores: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ids begin again where the backup ended: a position in them says nothing of what was given away."""
    position = tmp_path / "position"
    args = ["audit", "--lines", "--position", str(position), "--data"]
    with stores.fresh("sqlite", tmp_path / "before") as context:
        write(context, *(f"a {number}" for number in range(30)))
        assert len(exported([*args, str(context.data)], capsys)[0]) == 31
        shutil.copytree(context.data, tmp_path / "after")
        write(context, *(f"lost {number}" for number in range(10)))
        for _ in range(10):
            write(context, "lost")
            exported([*args, str(context.data)], capsys)
    context = Context.open(tmp_path / "after")
    write(context, *(f"new {number}" for number in range(15)))
    context.db.close()
    found, said = exported([*args, str(context.data)], capsys)
    assert "was the database restored?" in said and str(position) in said and said.count("\n") == 1
    assert found[-15:] == [f"new {number}" for number in range(15)]
    assert len(found) < 45, "the position is known near where the logs part"
    assert exported([*args, str(context.data)], capsys) == ([], "")


@pytest.mark.parametrize("noted", ["99999999999", "2", f"1 {'0' * 32}", ""])
def test_positions_of_before_and_of_elsewhere(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str], noted: str
) -> None:
    write(context, "one", "two")
    (tmp_path / "position").write_text(f"{noted}\n")
    args = ["audit", "--data", str(context.data), "--lines", "--position", str(tmp_path / "position")]
    if not noted:
        assert main(args) == 1 and "holds no position" in capsys.readouterr().err
        return
    found, said = exported(args, capsys)
    assert (found, said) == (["two"], "") if noted == "2" else len(found) == 3 and "all of it" in said
    assert exported(args, capsys) == ([], "")


@pytest.mark.peers
def test_a_line_that_is_not_seen_yet_is_waited_for(shared: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL a later id may be committed first; whoever went on behind it would never see the other."""
    context, seen = shared, list[str]()
    with context.db.begin(alone=False) as slow:
        Database.record(slow, "tests", "slow", "")
        with context.db.begin(alone=False) as quick:
            Database.record(quick, "tests", "quick", "")
        seen += [row.action for row in auditexport.lines(context, 0, lambda: False)]
        assert seen == ["init"]
    assert [row.action for row in auditexport.lines(context, 1, lambda: False)] == ["slow", "quick"]
    with pytest.raises(ZeroDivisionError), context.db.begin() as undone:  # an id that nobody will ever see
        Database.record(undone, "tests", "undone", "")
        raise ZeroDivisionError
    write(context, "last")
    assert list(auditexport.lines(context, 3, lambda: False)) == []
    later = now() + auditexport.GAP_SECONDS + 1
    monkeypatch.setattr(auditexport, "now", lambda: later)
    assert [row.action for row in auditexport.lines(context, 3, lambda: False)] == ["last"]


def test_following(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditexport, "LOOK_SECONDS", 0.01)
    turns = iter([True, True, False])

    def follow() -> bool:
        write(context, "meanwhile")
        return next(turns)

    assert [row.action for row in auditexport.lines(context, 0, follow)] == ["init", "meanwhile", "meanwhile"]


def check(text: bytes, action: str) -> None:
    found = SYSLOG.fullmatch(text)
    assert found is not None and text.isascii(), text
    assert found[4].decode() == action.replace(" ", "_")
    line = json.loads(found[5])
    assert (line["actor"], line["action"], line["detail"]) == ("tests", action, f"wegen {action} ☂")


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_to_syslog_by_datagrams(context: Context, tmp_path: Path, kind: str) -> None:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log") if kind == "unix" else ("127.0.0.1", 0))
        server.settimeout(10)
        target = str(tmp_path / "log") if kind == "unix" else f"udp:127.0.0.1:{server.getsockname()[1]}"
        write(context, "device add", "token remove")
        assert main(["audit", "--data", str(context.data), "--syslog", target]) == 0
        texts = [server.recv(65_536) for _ in range(3)]
    check(texts[1], "device add")
    check(texts[2], "token remove")


def test_to_syslog_by_tcp(context: Context) -> None:
    """Octet counting (RFC 6587 3.4.1)."""
    got = bytearray()

    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            while part := client.recv(4096):
                got.extend(part)

    write(context, "device add")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        args = ["audit", "--data", str(context.data), "--syslog", f"tcp:127.0.0.1:{server.getsockname()[1]}"]
        assert main(args) == 0
        thread.join(60)
    texts = []
    while got:
        size, _, rest = bytes(got).partition(b" ")
        texts.append(rest[: int(size)])
        del got[: len(size) + 1 + int(size)]
    assert len(texts) == 2
    check(texts[1], "device add")


class Listener(threading.Thread):
    """A syslog server over TCP that reads so many octets and ends."""

    def __init__(self, server: socket.socket) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.got = bytearray()
        self.begun, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        client, _ = self.server.accept()
        with client:
            client.settimeout(0.02)
            while not self.leave.is_set():
                try:
                    part = client.recv(4096)
                except TimeoutError:
                    continue
                if not part:
                    break
                self.got += part
                self.begun.set()
        self.server.close()

    def actions(self) -> list[str]:
        return [each.decode() for each in re.findall(rb' "action": "([^"]*)"', bytes(self.got))]


@pytest.mark.parametrize("unseen", [False, True], ids=["seen before the write", "not seen before it"])
def test_a_tcp_server_that_goes_away_misses_nothing(
    stores: Stores,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unseen: bool,
) -> None:
    """A write to a connection that the other end has closed succeeds. Its position must not count."""
    monkeypatch.setattr(auditexport, "LOOK_SECONDS", 0.05)
    with stores.fresh("sqlite", tmp_path / "data") as context:
        first = Listener(socket.create_server(("127.0.0.1", 0)))
        port = first.server.getsockname()[1]
        args = ["audit", "--data", str(context.data), "--position", str(tmp_path / "position")]
        args += ["--syslog", f"tcp:127.0.0.1:{port}"]
        ended: list[int] = []
        look = auditexport.Syslog._look
        blind = threading.Event()
        monkeypatch.setattr(
            auditexport.Syslog, "_look", lambda self: None if blind.is_set() and _sending() else look(self)
        )
        follows = threading.Thread(target=lambda: ended.append(main([*args, "--follow"])), daemon=True)
        follows.start()
        assert first.begun.wait(10)
        if unseen:
            blind.set()
        else:
            first.leave.set()
            first.join(60)
        if unseen:
            # it goes between the look and the write: nothing of it is known until afterwards
            send = auditexport.Syslog.send

            def late(self: auditexport.Syslog, row: Any) -> None:
                first.leave.set()
                first.join(60)
                send(self, row)

            monkeypatch.setattr(auditexport.Syslog, "send", late)
        write(context, "after it went")
        follows.join(20)
        assert ended == [75] and "does not take the audit log" in capsys.readouterr().err
        monkeypatch.undo()
        second = Listener(socket.create_server(("127.0.0.1", port)))
        assert main(args) == 0
        second.join(60)
        assert "after it went" not in first.actions() and second.actions()[-1] == "after it went"
        assert main([*args[:5], "--lines"]) == 0 and capsys.readouterr().out == ""


def _sending() -> bool:
    """Is it `send` that looks?"""
    return sys._getframe(2).f_code.co_name == "send"


def test_a_syslog_that_is_away_loses_nothing(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["audit", "--data", str(context.data), "--position", str(tmp_path / "position"), "--syslog"]
    assert main([*args, str(tmp_path / "nothing")]) == 75
    assert main([*args, "tcp:127.0.0.1:1"]) == 75 and "does not take the audit log" in capsys.readouterr().err
    assert main([*args, "nonsense"]) == 78
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.settimeout(10)
        assert main([*args, str(tmp_path / "log")]) == 0
        assert b" init - " in server.recv(65_536)
