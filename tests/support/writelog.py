"""What a disk held at any moment of a guest's life: the log of QEMU's blklogwrites driver, replayed.

Format (Linux, Documentation/admin-guide/device-mapper/log-writes.rst): a superblock of one sector, then
entries of one sector each, each followed by the data that was written.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Write", "blockdev", "read_log", "states"]

SECTOR = 512
MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Write:
    """at: byte on the disk. flush: everything before it is safe. end: size of the log when it was complete."""

    at: int
    data: bytes
    flush: bool
    end: int


def blockdev(disk: Path, log: Path) -> str:
    """The --blockdev of scripts/qemu for a disk whose writes are logged; an old log goes."""
    log.write_bytes(b"")
    return (
        f"driver=blklogwrites,node-name=wfs,log-sector-size={SECTOR},file.driver=file,file.filename={disk},"
        f"log.driver=file,log.filename={log}"
    )


def read_log(log: Path) -> list[Write]:
    raw = log.read_bytes()
    magic, version, _, sector = struct.unpack_from("<QQQI", raw)
    assert (magic, version, sector) == (MAGIC, 1, SECTOR)
    found, at = [], SECTOR
    while at + SECTOR <= len(raw):
        start, count, flags, _ = struct.unpack_from("<QQQQ", raw, at)
        size = 0 if flags & DISCARD else count * SECTOR
        data = raw[at + SECTOR : at + SECTOR + size]
        at += SECTOR + size
        if len(data) < size:
            break
        if flags & DISCARD:
            data = bytes(count * SECTOR)
        found.append(Write(start * SECTOR, data, bool(flags & (FLUSH | FUA)), at))
    return found


def states(before: bytes, log: list[Write], since: int, chance: random.Random) -> Iterator[tuple[int, bytes]]:
    """(size of the log, disk) of each moment after the log had the size `since`.

    First as the writes came; then as a disk with a cache may have them, which keeps what was flushed and any
    of the writes after that, in any order.
    """
    disk, safe = bytearray(before), bytearray(before)
    loose: list[Write] = []
    for write in log:
        put(disk, write)
        if write.flush:
            for each in (*loose, write):
                put(safe, each)
            loose = []
        else:
            loose.append(write)
        if write.end <= since:
            continue
        yield write.end, bytes(disk)
        if len(loose) > 1:
            torn = bytearray(safe)
            kept = [each for each in loose if chance.random() < 0.5]
            chance.shuffle(kept)
            for each in kept:
                put(torn, each)
            yield write.end, bytes(torn)


def put(disk: bytearray, write: Write) -> None:
    disk[write.at : write.at + len(write.data)] = write.data
