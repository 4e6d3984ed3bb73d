"""Words of a command line that mean nothing: octets that are no text, empty values, outputs that take nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.chain import command, ok, run

ODD = os.fsdecode(b"\xff\xfe")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("words") / "data"
    ok("ca-proxy", "init", "--data", made, "--hostname", "localhost")
    return made


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what it said, which is one sentence."""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["profile", "show", ODD],
        ["profile", "preview", "x", "--device", ODD],
        ["audit", "--search", ODD],
        ["device", "list", "--search", ODD],
        ["device", "move", "/A", "--unit-id", "A1", ODD],
        ["enrollments", "--search", ODD],
        ["renew", "--issuer", ODD],
        ["renew", "--directory", f"/{ODD}"],
        ["renew", "--device", "A1", "--name", ODD],
        ["audit", "--data", ODD],
    ],
)
def test_octets_that_are_no_text(data: Path, words: list[str]) -> None:
    more = [] if "--data" in words else ["--data", str(data)]
    done = run("ca-proxy", *words, *more)
    assert done.returncode == 64 and "UTF-8" in said(done) and done.stdout == ""


def test_the_data_directory_of_the_environment_is_looked_at_as_well() -> None:
    done = run("ca-proxy", "audit", env={"CA_PROXY_DATA": f"/nowhere/{ODD}"})
    assert done.returncode == 64 and "UTF-8" in said(done)


def test_a_file_may_have_any_name(data: Path, tmp_path: Path) -> None:
    file = tmp_path / f"{ODD}.tar"
    assert run("ca-proxy", "backup", file, "--without-key", "--data", data).returncode == 0 and file.exists()
    again = tmp_path / "again"
    assert (
        run("ca-proxy", "restore", file, "--master-key", data / "master.key", "--data", again).returncode == 0
    )
    told = json.loads(ok("ca-proxy", "audit", "--json", "--data", again))
    assert told[0]["detail"].startswith("\\xff\\xfe.tar of 20"), told[0]
    assert r"\xff\xfe.tar, master key" in ok("ca-proxy", "audit", "--data", data)


@pytest.mark.parametrize("words", [["--ndes-user", ODD], ["--csrattrs", ODD], ["--est", f"{ODD}:0"]])
def test_the_lab_takes_text(tmp_path: Path, words: list[str]) -> None:
    done = run("lab-ca", "serve", "--dir", tmp_path / "lab", *words)
    assert (
        done.returncode == 64 and f"{words[0]} is not UTF-8" in said(done) and not (tmp_path / "lab").exists()
    )


@pytest.mark.parametrize(
    "words",
    [
        ["init", "--hostname", "localhost", "--database", "", "--data", "NEW"],
        ["init", "--hostname", "localhost", "--database-password-file", "/etc/hostname", "--data", "NEW"],
        ["restore", "/nowhere.tar", "--database-password-file", "/etc/hostname", "--data", "NEW"],
        ["restore", "/nowhere.tar", "--data", ""],
        ["restore", "", "--data", "NEW"],
        ["audit", "--syslog", ""],
        ["audit", "--lines", "--position", ""],
        ["device", "renew", "--unit-id", "A1", "--name", ""],
        ["renew", "--device", "A1", "--name", ""],
        ["serve", "--listen", ""],
        ["backup", "-", "--without-key"],
        ["audit", "--limit", "-1"],
        ["device", "list", "--limit", "-1"],
    ],
)
def test_a_value_that_is_empty_or_none_is_not_passed_over(
    data: Path, tmp_path: Path, words: list[str]
) -> None:
    named = [str(tmp_path / word) if word == "NEW" else word for word in words]
    done = subprocess.run(
        [command("ca-proxy"), *named, *([] if "--data" in words else ["--data", data])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 64 and "ca-proxy" in said(done) and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_search_for_nothing_finds_all(data: Path) -> None:
    assert "init" in ok("ca-proxy", "audit", "--search", "", "--data", data)


@pytest.mark.parametrize(
    "words",
    [["audit"], ["audit", "--lines"], ["audit", "--json"], ["device", "list"], ["enrollments", "--csv"]],
)
def test_output_for_which_there_is_no_room(data: Path, words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [command("ca-proxy"), *words, "--data", data],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "ca-proxy: error: cannot write the output: No space left on device\n",
    )


def test_a_status_for_which_there_is_no_room(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [command("igel-certs"), "status", "--json", "--root", tmp_path],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "igel-certs: error: cannot write the output: No space left on device\n",
    )


def test_a_file_without_an_end_is_read_as_far_as_is_allowed(data: Path) -> None:
    done = run("ca-proxy", "profile", "set", "x", "--settings", "/dev/zero", "--data", data)
    assert done.returncode == 78 and "is larger than 4 MiB" in said(done)


def test_progress_is_for_terminals(data: Path) -> None:
    done = run("ca-proxy", "rekey", "--data", data)
    assert done.returncode == 0 and done.stderr == ""
