"""A proxy that a test kills and starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.support.chain import Proxy, command
from tests.support.ports import free_port

__all__ = ["Keep"]

START_SECONDS = 90
ROOT = Path(__file__).parents[2]


class Keep:
    """A proxy that is killed and started again, at the same ports. env: more of its environment."""

    def __init__(
        self, data: Path, program: tuple[str, ...] = (), drain: int = 0, env: dict[str, str] | None = None
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.data = data
        self._env = {**os.environ, **(env or {})}
        self._args = [
            *(program or (command("ca-proxy"),)), "serve", "--data", str(data),
            "--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{self.admin_port}",
            "--drain", str(drain),
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.data.parent / "proxy.log").read_text()

    def start(self) -> None:
        """Does not wait until it serves."""
        with (self.data.parent / "proxy.log").open("ab") as log:
            # a session of its own: its worker is killed with it
            self.process = subprocess.Popen(
                self._args, stdout=log, stderr=log, cwd=ROOT, env=self._env, start_new_session=True
            )

    def ready(self) -> bool:
        proxy = Proxy(self.data, self.port, self.admin_port)
        with contextlib.suppress(OSError):
            return proxy.admin("/readyz")[0] == 200
        return False

    def await_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
