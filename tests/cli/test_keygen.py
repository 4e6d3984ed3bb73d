"""Key generation as people meet it: who makes the key, the line on the terminal, Ctrl-C."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.chain import command, ok, run
from tests.support.servers import device, straight

GENERATORS = ("native", "openssl")
# Counts the calls of libcrypto's own generator, which the native one has no use for.
SPY = """
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
int EVP_PKEY_generate(void *ctx, void **key)
{
    void *libcrypto = dlopen("libcrypto.so.3", RTLD_LAZY | RTLD_NOLOAD);
    int (*real)(void *, void **) = (int (*)(void *, void **))dlsym(libcrypto, "EVP_PKEY_generate");
    FILE *file = fopen(getenv("SPY_FILE"), "a");
    fputs("EVP_PKEY_generate\\n", file);
    fclose(file);
    return real(ctx, key);
}
"""


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("spy")
    (place / "spy.c").write_text(SPY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", place / "spy.so", place / "spy.c", "-ldl"], check=True)
    return place / "spy.so"


def calls(spy: Path, log: Path, *words: str, code: int = 0) -> int:
    log.write_text("")
    done = run(*words, env={"LD_PRELOAD": str(spy), "SPY_FILE": str(log)})
    assert done.returncode == code, done.stderr
    return len(log.read_text().splitlines())


@pytest.mark.parametrize("generator", [None, *GENERATORS])
def test_who_makes_the_key(generator: str | None, spy: Path, tmp_path: Path) -> None:
    """key_generator of device.toml, for keygen and for a certificate's key."""
    toml = {"key_generator": generator} if generator else {}
    host = device(tmp_path / "root", "tc-1", "ONE", **toml)
    wanted = 1 if generator == "openssl" else 0
    out = str(tmp_path / "key.pem")
    made = ["igel-certs", "keygen", "--root", str(host.root), "--type", "rsa_2048", "--out", out]
    assert calls(spy, tmp_path / "log", *made) == wanted
    # the key comes before the connection, and stays for the next try; trust.pem is of no use
    host.trust(b"")
    host.wants(straight("lan", 1, "rsa_2048"))
    assert calls(spy, tmp_path / "log", *host.command("apply"), code=78) == wanted
    assert list(host.certs.rglob("pkey.pem")), "the key was not made"


def test_no_progress_in_a_pipe(tmp_path: Path) -> None:
    done = run("igel-certs", "keygen", "--type", "rsa_4096", "--out", tmp_path / "key.pem")
    assert done.returncode == 0 and "\r" not in done.stderr + done.stdout and "tested" not in done.stderr
    ok("openssl", "pkey", "-in", tmp_path / "key.pem", "-check", "-noout")


def on_a_terminal(words: list[str], *, interrupt: bool) -> tuple[int, bytes, float]:
    """Exit status, what the terminal showed, and the seconds of processor time that it took, after Ctrl-C where that
    comes: with the first sight of progress."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.execv(words[0], words)  # noqa: S606
        finally:
            os._exit(127)
    shown, seen, before, deadline = b"", False, 0.0, time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            if not seen and b"primes found" in shown:
                seen = True
                if interrupt:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    before = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
                    os.write(terminal, b"\x03")
        _, status, used = os.wait4(pid, 0)
        return os.waitstatus_to_exitcode(status), shown, used.ru_utime + used.ru_stime - before
    finally:
        os.close(terminal)


def keygen(tmp_path: Path, generator: str, kind: str) -> list[str]:
    config = tmp_path / "device.toml"
    config.write_text(f'key_generator = "{generator}"\n')
    (tmp_path / "keys").mkdir(exist_ok=True)
    out = str(tmp_path / "keys/key.pem")
    return [command("igel-certs"), "keygen", "--config", str(config), "--type", kind, "--out", out]


@pytest.mark.parametrize("generator", GENERATORS)
def test_progress_on_a_terminal(generator: str, tmp_path: Path) -> None:
    code, shown, _ = on_a_terminal(keygen(tmp_path, generator, "rsa_4096"), interrupt=False)
    assert code == 0
    assert b" of 2 primes found, " in shown and b" candidates tested" in shown
    lines = shown.replace(b"\r\n", b"\n").split(b"\n")
    last = lines[0].rsplit(b"\r", 1)[-1]
    assert last.startswith(b"igel-certs: ") and b"tested" not in last, "the line of progress is not wiped"
    ok("openssl", "pkey", "-in", tmp_path / "keys/key.pem", "-check", "-noout")


@pytest.mark.parametrize("generator", GENERATORS)
def test_interrupted(generator: str, tmp_path: Path) -> None:
    """Ctrl-C: at once, exit 130, no file, not even a part of one."""
    for _ in range(4):  # a lucky key is ready before anybody can press a key
        code, shown, seconds = on_a_terminal(keygen(tmp_path, generator, "rsa_8192"), interrupt=True)
        if code != 0:
            break
        (tmp_path / "keys/key.pem").unlink()
    assert code == 130, shown
    assert seconds < 2, (
        f"it went on for {seconds:.1f} seconds of processor time; a whole key takes five on average"
    )
    assert b"Traceback" not in shown
    assert os.listdir(tmp_path / "keys") == []
