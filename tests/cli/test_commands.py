"""The commands as people and scripts meet them: help, exit codes, one line for an error, JSON for programs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from igelcert import __version__
from igelcert.model import KEY_TYPES
from tests.support.chain import command, ok, run, served
from tests.support.tree import openssl
from tests.support.until import until

COMMANDS = {
    "igel-certs": ["", "apply", "renew", "status", "install-cas", "keygen", "doctor"],
    "rmagent": ["", "register", "sync"],
    "lab-ca": ["", "serve"],
    "ca-proxy": [
        "", "init", "serve", "front-files",
        "migrate", "ca", "ca set-est", "ca set-scep", "ca show", "ca test", "ca clear", "device add",
        "device token", "device list", "device remove", "device import", "profile set", "profile list",
        "profile remove", "profile assign", "profile unassign", "profile passthrough", "device scep-url", "enrollments",
        "profile show", "profile preview",
        "device move", "device renew", "directory list", "directory add", "directory move", "directory remove",
        "user list", "user add", "user password", "user role", "user remove", "token list", "token add",
        "token remove", "audit",
    ],
}  # fmt: skip


@pytest.mark.parametrize("line", [f"{name} {rest}".strip() for name in COMMANDS for rest in COMMANDS[name]])
def test_help_and_usage(line: str) -> None:
    command = line.split()
    shown = ok(*command, "--help")
    assert shown.startswith("usage: ") and len(shown.splitlines()) > 4
    wrong = run(*command, "--no-such-option")
    assert wrong.returncode == 64 and "usage: " in wrong.stderr and wrong.stdout == ""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = json.loads(
        ok("ca-proxy", "init", "--data", tmp_path / "data", "--hostname", "localhost", "--json")
    )
    assert made["data"] == str(tmp_path / "data") and len(made["admin_password"]) >= 16
    assert (
        made["sha256"].lower()
        in openssl("x509", "-in", tmp_path / "data/trust.pem", "-noout", "-fingerprint", "-sha256").lower()
    )
    return tmp_path / "data"


def proxy(data: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return run("ca-proxy", *args, env={"CA_PROXY_DATA": str(data)})


def test_init_is_whole_or_nothing(data: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
    assert modes["master.key"] == modes["proxy.db"] == 0o600
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    again = run("ca-proxy", "init", "--data", data, "--hostname", "localhost")
    assert again.returncode == 1 and "is not empty" in again.stderr
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before
    bad = run("ca-proxy", "init", "--data", tmp_path / "other", "--hostname", "no host")
    assert bad.returncode == 78 and not (tmp_path / "other").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_a_data_directory(tmp_path: Path) -> None:
    done = run("ca-proxy", "device", "list", env={"CA_PROXY_DATA": ""})
    assert done.returncode == 64 and "--data" in done.stderr
    done = proxy(tmp_path / "nothing", "device", "list")
    assert done.returncode == 1 and "ca-proxy init" in done.stderr


def test_a_master_key_that_others_can_read(data: Path) -> None:
    (data / "master.key").chmod(0o644)
    done = proxy(data, "profile", "list")
    assert done.returncode in {0, 1}
    settings = data.parent / "s.json"
    settings.write_text('{"certs": [{"friendly_name": "x"}]}')
    done = proxy(data, "profile", "set", "x", "--settings", settings)
    assert done.returncode == 1 and "open to others" in done.stderr and "chmod 600" in done.stderr


def test_another_master_key_opens_nothing(data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "s.json"
    settings.write_text('{"certs": [{"friendly_name": "x", "key": {"crypt_password": "hidden-17"}}]}')
    assert proxy(data, "profile", "set", "x", "--settings", settings).returncode == 0
    assert b"hidden-17" not in b"".join(path.read_bytes() for path in data.iterdir())
    ok("ca-proxy", "init", "--data", tmp_path / "other", "--hostname", "localhost")
    (data / "master.key").write_bytes((tmp_path / "other/master.key").read_bytes())
    done = proxy(data, "profile", "list")
    assert done.returncode == 1 and "does not open with this master key" in done.stderr


def test_devices(data: Path, tmp_path: Path) -> None:
    added = json.loads(
        proxy(data, "device", "add", "--unit-id", "A1", "--directory", "/Berlin/2/", "--json").stdout
    )
    assert set(added) == {"unit_id", "token", "expires"} and added["token"] not in (
        data / "proxy.db"
    ).read_text("latin-1")
    assert proxy(data, "device", "add", "--unit-id", "A1").returncode == 78
    for bad in ("", "../x", "a b", "x" * 65, "-x"):
        assert proxy(data, "device", "add", f"--unit-id={bad}").returncode == 78
    for bad in ("Berlin", "/a/../b", "//", "/a//b", "/" + "x" * 600):
        assert proxy(data, "device", "add", "--unit-id", "B1", "--directory", bad).returncode == 78, bad
    sheet = tmp_path / "devices.csv"
    sheet.write_text("unit_id,directory,hostname\nC1,/Rome,tc-c1\nC2,,\n")
    done = proxy(data, "device", "import", sheet)
    assert (
        done.returncode == 0
        and done.stdout.splitlines()[0] == "unit_id,token,expires"
        and done.stdout.count("\n") == 3
    )
    sheet.write_text("unit_id,directory\nD1,/Rome\nC1,/Rome\n")
    done = proxy(data, "device", "import", sheet)
    assert done.returncode == 78 and "line 3" in done.stderr
    for text, sentence in (
        ("", "line 1"), ('{"unit_id": 1}', "line 1"), ('a"b,"c\n', "line 1"), ("unit_id\nE1,/x\n", "line 2"),
        ('unit_id\n"E1\n', "not CSV"), ("unit_id,unit_id\nE1,E2\n", "line 1"), ("unit_id\n../E1\n", "line 2"),
    ):  # fmt: skip
        sheet.write_text(text)
        done = proxy(data, "device", "import", sheet)
        assert done.returncode == 78 and sentence in done.stderr and "Traceback" not in done.stderr, (
            text,
            done.stderr,
        )
    listed = json.loads(proxy(data, "device", "list", "--json").stdout)
    assert {(each["unit_id"], each["directory"]) for each in listed} == {
        ("A1", "/Berlin/2"),
        ("C1", "/Rome"),
        ("C2", "/"),
    }
    shown = proxy(data, "device", "list").stdout
    assert "UNIT ID" in shown and "tc-c1" in shown
    assert proxy(data, "device", "remove", "--unit-id", "C1").returncode == 0
    assert proxy(data, "device", "remove", "--unit-id", "C1").returncode == 78
    assert "tc-c1" not in proxy(data, "device", "list").stdout


def test_profiles(data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "s.json"
    settings.write_text('{"certs": [{"friendly_name": "x", "key": {"type": "rsa_2048"}}]}')
    assert proxy(data, "profile", "set", "Büro", "--settings", settings).returncode == 0
    assert proxy(data, "profile", "assign", "Büro", "--directory", "/").returncode == 0
    assert proxy(data, "profile", "assign", "Büro", "--device", "NOBODY").returncode == 78
    assert proxy(data, "profile", "assign", "other", "--directory", "/").returncode == 78
    listed = json.loads(proxy(data, "profile", "list", "--json").stdout)
    assert listed[0]["certs"] == [{"friendly_name": "x", "key_type": "rsa_2048"}]
    assert listed[0]["assigned"] == [{"kind": "directory", "target": "/"}]
    assert proxy(data, "profile", "unassign", "Büro", "--directory", "/").returncode == 0
    assert proxy(data, "profile", "unassign", "Büro", "--directory", "/").returncode == 78
    assert proxy(data, "profile", "assign", "Büro", "--directory", "/").returncode == 0
    assert proxy(data, "device", "add", "--unit-id", "A1").returncode == 0
    line = shlex.join([str(command("ca-proxy")), "profile", "remove", "Büro", "--data", str(data)])
    asked = subprocess.run(
        ["script", "-qec", line, "/dev/null"], input=b"n\n", capture_output=True, timeout=60
    )
    assert asked.returncode == 64 and "1 device loses the certificate x, and its key" in asked.stdout.decode()
    assert json.loads(proxy(data, "profile", "list", "--json").stdout), "on a terminal it asks"
    done = proxy(data, "profile", "remove", "Büro")
    assert done.returncode == 0 and "1 device loses the certificate x, and its key" in done.stderr
    assert json.loads(proxy(data, "profile", "list", "--json").stdout) == []
    assert proxy(data, "profile", "set", "x", "--settings", tmp_path / "missing").returncode == 1
    assert proxy(data, "profile", "set", "x", "--settings", tmp_path).returncode == 1


def test_no_ca(data: Path) -> None:
    assert "no CA is configured" in proxy(data, "ca", "show").stdout
    assert json.loads(proxy(data, "ca", "show", "--json").stdout) is None
    done = proxy(data, "ca", "test")
    assert done.returncode == 1 and "set-est" in done.stderr
    assert proxy(data, "ca", "clear").returncode == 0
    assert proxy(data, "migrate").returncode == 0


@pytest.mark.parametrize("kind", [kind for kind in KEY_TYPES if kind not in {"rsa_4096", "rsa_8192"}])
def test_keygen(tmp_path: Path, kind: str) -> None:
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    key = tmp_path / "key.pem"
    ok("igel-certs", "keygen", "--type", kind, "--out", key, "--password-file", password)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    openssl("pkey", "-in", key, "-passin", "pass:correct horse", "-check", "-noout")
    openssl("pkey", "-in", key, "-passin", "pass:other", "-noout", code=None)
    before = key.read_bytes()
    again = run("igel-certs", "keygen", "--type", kind, "--out", key)
    assert again.returncode == 1 and "--force" in again.stderr and key.read_bytes() == before
    wrong = run("igel-certs", "keygen", "--type", "rsa_1024", "--out", tmp_path / "x")
    assert wrong.returncode == 64 and not (tmp_path / "x").exists()


def test_the_image_speaks_first(tmp_path: Path) -> None:
    """An unknown key of device.toml is an error with its line. (status shows what is there all the same.)"""
    (tmp_path / "etc/igelcert").mkdir(parents=True)
    (tmp_path / "etc/igelcert/device.toml").write_text('unit_id = "A1"\nservr = "https://x"\n')
    for words in (["igel-certs", "apply"], ["igel-certs", "renew"], ["rmagent", "sync"]):
        done = run(*words, "--root", tmp_path)
        assert done.returncode == 78 and "device.toml:2: servr" in done.stderr, done.stderr


def test_an_unregistered_device(tmp_path: Path) -> None:
    done = run("rmagent", "sync", "--root", tmp_path)
    assert done.returncode == 78 and "rmagent register" in done.stderr
    assert ok("igel-certs", "status", "--root", tmp_path) is not None
    assert os.listdir(tmp_path) == []


def test_serve_says_what_is_wrong_with_an_address(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        there = f"127.0.0.1:{taken.getsockname()[1]}"
        for listen, code, text in ((there, 1, f"cannot listen on {there}: Address already in use"),
                                   ("nonsense", 78, "--listen: 'nonsense' is not HOST:PORT"),
                                   ("203.0.113.9:0", 1, "cannot listen on 203.0.113.9:0")):  # fmt: skip
            done = run(
                "ca-proxy", "serve", "--data", data, "--listen", listen, "--admin-listen", "127.0.0.1:0"
            )
            assert done.returncode == code and done.stderr.startswith(f"ca-proxy: error: {text}"), done.stderr
            assert len(done.stderr.splitlines()) <= 2
    done = run("ca-proxy", "serve", "--data", data, "--drain", "601")
    assert (done.returncode, done.stderr) == (
        78,
        "ca-proxy: error: --drain: is not a number from 0 to 600\n",
    )


def test_a_second_proxy_of_a_directory_is_refused(data: Path, tmp_path: Path) -> None:
    """And takes nothing of the first; one that was killed keeps nobody out."""
    here = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--drain", "0"]
    args: list[str | Path] = ["ca-proxy", "serve", "--data", data, *here]
    with served(args, data / "run.json", tmp_path / "first.log") as first:
        done = run(*args)
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            1,
            f"ca-proxy: error: another proxy serves {data} already",
        )
        assert json.loads((data / "run.json").read_text()) == first
        os.kill(first["pid"], signal.SIGKILL)
        with served(args, data / "run.json", tmp_path / "second.log") as second:
            assert second["pid"] != first["pid"]
    assert not (data / "run.json").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["user", "remove", "nobody"], "name: there is no account 'nobody'"),
        (["device", "remove", "--unit-id", "nobody"], "--unit-id: no device 'nobody' is known"),
        (["device", "add", "--unit-id", "A1", "--directory", "Berlin"], "--directory: 'Berlin' does not begin"),
        (["device", "add", "--unit-id", "A1", "--directory=Berlin"], "--directory: 'Berlin' does not begin"),
        (["device", "add", "--unit-id", "A1", "--directory", "/" + "d" * 600],
         "--directory: is 601 characters long, at most 512"),
        (["renew", "--directory", "/Nope"], "--directory: there is no certificate in /Nope"),
        (["renew", "--issuer", "nope"], "--issuer: there is no certificate issued by 'nope'"),
        (["renew", "--directory", "/", "--name", "x"], "--name: there is no certificate 'x' in /"),
        (["audit", "--search", "x" * 100_000], "--search: is 100000 characters long, at most 512"),
        (["device", "list", "--search", "x" * 513], "--search: is 513 characters long, at most 512"),
        (["enrollments", "--search", "x" * 513], "--search: is 513 characters long, at most 512"),
        (["audit", "--syslog", "log.sock"], "--syslog: 'log.sock' is not the path of a socket from / on"),
        (["device", "import", "/nowhere.csv"], "the sheet: cannot read /nowhere.csv"),
        (["profile", "set", "x", "--settings", "DEEP"], "the document is nested too deeply"),
        (["profile", "set", "x", "--settings", "DIGITS"], "a number in the document has too many digits"),
        (["profile", "set", "x", "--settings", "CUT"], "line 1 column 2: not JSON: "),
        (["ca", "set-est", "--name", "x", "--host", "h", "--keystore", "LARGE", "--keystore-password-file", "DEEP"],
         "--keystore: LARGE is larger than 1 MiB"),
    ],
)  # fmt: skip
def test_errors_name_what_was_typed(data: Path, tmp_path: Path, words: list[str], error: str) -> None:
    files = {
        "DEEP": "[" * 100_000,
        "DIGITS": "1" * 10_000,
        "CUT": "{",
        "LARGE": "x" * (1 << 20) + "x",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    named = [str(tmp_path / word) if word in files else word for word in words]
    done = run("ca-proxy", *named, "--data", data)
    said = done.stderr.splitlines()[0].replace(f"{tmp_path}/", "")
    assert done.returncode in {1, 78} and said.startswith(f"ca-proxy: error: {error}"), done.stderr


def test_the_log_names_no_address_of_plain_http_for_devices(data: Path, tmp_path: Path) -> None:
    here = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--drain", "0"]
    with served(["ca-proxy", "serve", "--data", data, *here], data / "run.json", tmp_path / "log") as state:
        said = f"devices: https://127.0.0.1:{state['device_port']}"
        until(lambda: said in (tmp_path / "log").read_text())
        text = (tmp_path / "log").read_text()
    assert "Listening at" not in text


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    for words in (["igel-certs", "status", "--root", tmp_path], ["igel-certs", "status", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as sink:
            done = subprocess.run([command(str(words[0])), *map(str, words[1:])], stdout=sink, stderr=subprocess.PIPE,
                                  text=True, timeout=30)  # fmt: skip
        assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("limit", ["-1", "x", "1.5", "9" * 40])
def test_a_limit_is_a_count(data: Path, limit: str) -> None:
    done = run("ca-proxy", "enrollments", "--data", data, f"--limit={limit}")
    assert done.returncode == 64 and "is not a whole number" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_version(name: str) -> None:
    assert ok(name, "--version") == f"{name} {__version__}\n"
