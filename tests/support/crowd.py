"""Many devices that wait at a proxy: registered in its database, then held by one asyncio process of their own.

`python -m tests.support.crowd DIR PORT` connects a device for each line of DIR/units and prints, as JSON lines,
{"waiting": N} when all requests are out, then {"unit", "status", "retry_after", "at"} for each answer: monotonic seconds,
which all processes of a machine share. It ends when all have an answer.
"""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from igelcert.proxy import devices, registration
from igelcert.proxy.context import Context

__all__ = ["Crowd", "crowd", "register"]

AT_ONCE = 32  # handshakes
PATIENCE = 600


def register(data: Path, to: Path, units: list[str], directory: str) -> None:
    """Makes devices known, and their certificates in `to`; they share a key, which is nothing to the proxy."""
    to.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (to / "key").write_bytes(key.private_bytes(*form))
    context = Context.open(data)
    lines = ["unit_id,directory", *(f"{unit},{directory}" for unit in units)]
    for token in devices.import_csv(context, "\n".join(lines)):
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, token.unit_id)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        text = base64.b64encode(csr.public_bytes(serialization.Encoding.DER)).decode()
        made = registration.register(context, {"token": token.token, "unit_id": token.unit_id, "csr": text})
        (to / token.unit_id).write_text(made["certificate"])
    context.db.close()
    (to / "trust").write_bytes((data / "trust.pem").read_bytes())
    (to / "units").write_text("\n".join(units))


@dataclass
class Crowd:
    """The process of the waiting devices."""

    process: subprocess.Popen[str]
    waiting: int

    def collect(self, seconds: float = 60) -> list[dict[str, Any]]:
        """All answers; the process has ended then."""
        assert self.process.stdout is not None
        limit = threading.Timer(seconds, self.process.kill)
        limit.start()
        found = [json.loads(line) for line in self.process.stdout]
        limit.cancel()
        assert self.process.wait(30) == 0, f"only {len(found)} have an answer after {seconds} s"
        return found

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def crowd(directory: Path, port: int) -> Iterator[Crowd]:
    """Those devices, waiting."""
    args = [sys.executable, "-m", "tests.support.crowd", str(directory), str(port)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the crowd did not come together"
            yield Crowd(process, json.loads(line)["waiting"])
        finally:
            process.kill()


async def _device(directory: Path, port: int, unit: str, turn: asyncio.Semaphore, sent: list[str]) -> None:
    async with turn:
        tls = ssl.create_default_context(cafile=str(directory / "trust"))
        tls.load_cert_chain(directory / unit, directory / "key")
        reader, writer = await asyncio.open_connection("localhost", port, ssl=tls, limit=1 << 14)
        head, _ = await _ask(reader, writer, "")
        etag = next(line for line in head if line.lower().startswith("etag:")).partition(":")[2].strip()
        answer = asyncio.create_task(
            _ask(reader, writer, f"If-None-Match: {etag}\r\nPrefer: wait={PATIENCE}\r\n")
        )
        await asyncio.sleep(0)
        sent.append(unit)
    head, at = await answer
    later = [line.partition(":")[2].strip() for line in head if line.lower().startswith("retry-after:")]
    row = {
        "unit": unit,
        "status": int(head[0].split()[1]),
        "retry_after": later[0] if later else "",
        "at": at,
    }
    print(json.dumps(row), flush=True)
    writer.close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: str
) -> tuple[list[str], float]:
    """Header lines of the answer, and when it came."""
    writer.write(f"GET /rmagent/settings HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    at = time.monotonic()
    size = [int(line.partition(":")[2]) for line in head if line.lower().startswith("content-length:")]
    if " 304 " not in head[0] and size:
        await reader.readexactly(size[0])
    return head, at


async def _main(directory: Path, port: int) -> None:
    units = (directory / "units").read_text().split("\n")
    turn, sent = asyncio.Semaphore(AT_ONCE), list[str]()
    work = [asyncio.create_task(_device(directory, port, unit, turn, sent)) for unit in units]
    while len(sent) < len(units):
        await asyncio.sleep(0.05)
        for task in work:
            if task.done():
                task.result()
    print(json.dumps({"waiting": len(sent)}), flush=True)
    await asyncio.gather(*work)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2])))
