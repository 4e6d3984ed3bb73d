"""CA certificates in the system's OpenSSL store: `<name>.pem` and the links `<hash>.N`.

The links are those `openssl rehash` would make. Only entries of our own are touched: a manifest in the
tree names them with their SHA-256, and a file is removed only while it still holds what we wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

from .. import crypto
from ..codec.pem import decode_pem
from ..errors import Error, StorageError
from . import files
from .store import safe_name, unique

__all__ = ["CaStore"]

MAX_LINKS = 100


class CaStore:
    """`directory`: the hashed directory. `manifest`: where our entries are noted."""

    def __init__(self, directory: str, manifest: str) -> None:
        self._directory = directory
        self._manifest = manifest

    def sync(self, wanted: Mapping[str, Iterable[bytes]]) -> None:
        """Installs the certificates (DER by friendly name) and removes those of ours that nothing uses.

        Idempotent; what was lost from the directory comes back.
        """
        certs = {der: crypto.parse_certificate(der) for group in wanted.values() for der in group}
        ordered = sorted(certs.values(), key=lambda cert: (safe_name(cert.cn), cert.der))
        noted = self._noted()
        if not ordered and not noted:
            return
        self._prepare(noted)
        entries = self._place(ordered, noted)
        # the note comes first: a cut-off run leaves nothing of ours unknown
        self._note({**noted, **entries})
        for cert, file in ((cert, f) for cert in ordered for f in entries if entries[f] == cert.sha256.hex()):
            path = os.path.join(self._directory, file)
            if _content(path) != cert.pem().encode():
                files.replace(path, cert.pem().encode(), 0o644)
        # links first, the note last: a cut-off run leaves none that leads nowhere, and none that nobody knows
        self._link(ordered, entries, set(noted))
        for file, digest in noted.items():
            if file not in entries:
                self._withdraw(file, digest)
        self._note(entries)

    def _prepare(self, noted: Mapping[str, str]) -> None:
        files.make_public_dir(self._directory)
        files.sweep(self._directory, lambda name, path: name in noted or _target(path) in noted)
        try:
            alias = os.path.join(os.path.dirname(self._directory), "cert")
            if not os.path.lexists(alias) and os.path.basename(self._directory) != "cert":
                os.symlink(os.path.basename(self._directory), alias)
        except OSError as err:
            raise files.failure(err, "make", self._directory) from None

    # ---- the manifest ---------------------------------------------------------------------------

    def _noted(self) -> dict[str, str]:
        """File name to SHA-256 (hex) of the certificate we put there."""
        try:
            found = json.loads(files.read(self._manifest))
            entries = found["files"]
            return {str(name): str(digest) for name, digest in entries.items() if "/" not in name}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, AttributeError, TypeError):
            return {}  # damaged: our files are then found again by their content

    def _note(self, entries: Mapping[str, str]) -> None:
        if dict(entries) != self._noted():
            text = json.dumps({"files": dict(sorted(entries.items()))}, indent=1)
            files.replace(self._manifest, text.encode(), 0o644)

    # ---- files ----------------------------------------------------------------------------------

    def _place(self, certs: list[crypto.Certificate], noted: Mapping[str, str]) -> dict[str, str]:
        """A file name for each certificate: the one it has, else a free one."""
        entries: dict[str, str] = {}
        by_digest = {digest: name for name, digest in noted.items()}
        taken = {name for name in self._listing() if name not in noted}
        for cert in certs:
            digest = cert.sha256.hex()
            name = by_digest.get(digest)
            if name is None:
                base = safe_name(cert.cn)
                own = f"{base}.pem"
                if own in taken and _content(os.path.join(self._directory, own)) == cert.pem().encode():
                    name = own  # ours from before the manifest was lost
                else:
                    stems = {
                        entry[:-4] for entry in taken | set(entries) | set(noted) if entry.endswith(".pem")
                    }
                    name = f"{unique(base, stems)}.pem"
            entries[name] = digest
        return entries

    def _listing(self) -> list[str]:
        try:
            return os.listdir(self._directory)
        except OSError as err:
            raise files.failure(err, "read", self._directory) from None

    def _withdraw(self, file: str, digest: str) -> None:
        """Removes a file of ours unless somebody changed it since."""
        path = os.path.join(self._directory, file)
        if os.path.islink(path):
            return
        held = _content(path)
        if held is not None and _digest_of(held) == digest:
            files.remove_tree(path)

    # ---- links ----------------------------------------------------------------------------------

    def _link(
        self, certs: list[crypto.Certificate], entries: Mapping[str, str], ours_before: set[str]
    ) -> None:
        """OpenSSL reads <hash>.0, .1 … up to the first gap: ours fill the numbers that others leave."""
        ours = ours_before | set(entries)
        by_digest = {digest: name for name, digest in entries.items()}
        wanted: dict[str, list[str]] = {}
        for cert in certs:
            wanted.setdefault(f"{cert.subject_hash:08x}", []).append(by_digest[cert.sha256.hex()])
        have: dict[str, dict[int, str]] = {}
        for entry in self._listing():
            stem, dot, number = entry.partition(".")
            if (
                dot
                and number.isdecimal()
                and len(stem) == 8
                and os.path.islink(os.path.join(self._directory, entry))
            ):
                have.setdefault(stem, {})[int(number)] = os.readlink(os.path.join(self._directory, entry))
        changed = False
        for stem in {*wanted, *have}:
            foreign = {n: target for n, target in have.get(stem, {}).items() if target not in ours}
            mine = {n: target for n, target in have.get(stem, {}).items() if target in ours}
            if not mine and stem not in wanted:
                continue
            goal = self._numbers(stem, foreign, wanted.get(stem, []))
            for place, target in goal.items():
                if mine.get(place) != target:
                    files.symlink(target, os.path.join(self._directory, f"{stem}.{place}"))
                    changed = True
            for place in sorted(set(mine) - set(goal), reverse=True):
                files.remove_tree(os.path.join(self._directory, f"{stem}.{place}"))
                changed = True
        if changed:
            files.fsync_dir(self._directory)

    def _numbers(self, stem: str, foreign: Mapping[int, str], names: list[str]) -> dict[int, str]:
        goal = {}
        number = 0
        for name in names:
            while number in foreign or self._occupied(stem, number):
                number += 1
            if number >= MAX_LINKS:
                raise StorageError(f"{self._directory} holds too many links {stem}.N")
            goal[number] = name
            number += 1
        return goal

    def _occupied(self, stem: str, number: int) -> bool:
        """A plain file under a link's name is somebody else's."""
        path = os.path.join(self._directory, f"{stem}.{number}")
        return os.path.lexists(path) and not os.path.islink(path)


def _target(path: str) -> str:
    return os.readlink(path) if os.path.islink(path) else ""


def _content(path: str) -> bytes | None:
    try:
        return None if os.path.islink(path) else files.read(path)
    except (FileNotFoundError, IsADirectoryError):
        return None


def _digest_of(pem: bytes) -> str:
    try:
        blocks = decode_pem(pem)
    except Error:
        return ""
    return crypto.sha256(blocks[0]).hex() if len(blocks) == 1 else ""
