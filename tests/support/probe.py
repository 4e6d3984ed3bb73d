"""The core's primality test and key generator as the Python tests ask them: native/tests/probe_rsa.c."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

__all__ = ["Probe", "number"]

NATIVE_TESTS = Path(__file__).resolve().parents[2] / "native/tests"


def number(value: int) -> str:
    """As the probe reads it."""
    return f"{'-' if value < 0 else ''}{abs(value):X}"


class Probe:
    """Asks a list of questions at a time; what they are, probe_rsa.c says. Built when first used."""

    def __init__(self) -> None:
        with (NATIVE_TESTS / "Makefile").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of tests that run side by side one builds
            subprocess.run(["make", "--silent", "-C", NATIVE_TESTS, "build/probe_rsa"], check=True)

    def ask(self, *questions: str) -> list[str]:
        done = subprocess.run(
            [NATIVE_TESTS / "build/probe_rsa"],
            input="\n".join(questions) + "\n",
            capture_output=True,
            text=True,
            check=True,
        )
        answers = done.stdout.splitlines()
        assert len(answers) == len(questions)
        return answers
