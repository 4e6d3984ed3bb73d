"""PEM (RFC 7468), read with the tolerance that files in the field need, written strictly."""

from __future__ import annotations

import binascii
import re

from ..errors import RemoteProtocolError

__all__ = ["decode_pem", "encode_pem", "is_pem"]

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 #.-]{1,64})-----(.*?)-----END \1-----", re.DOTALL)
_SAME = {
    "CERTIFICATE": {b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"},
    "CERTIFICATE REQUEST": {b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST"},
    "PKCS7": {b"PKCS7", b"CMS", b"PKCS #7 SIGNED DATA", b"CERTIFICATE"},
}
MAX_BLOCKS = 500


def is_pem(data: bytes) -> bool:
    return b"-----BEGIN " in data[:65_536]


def decode_pem(data: bytes, label: str = "CERTIFICATE") -> list[bytes]:
    """DER of every block of that label. Text between blocks and blocks of other labels are passed over."""
    wanted = _SAME.get(label, {label.encode()})
    found = []
    for count, block in enumerate(_BLOCK.finditer(data)):
        if count >= MAX_BLOCKS:
            raise RemoteProtocolError(f"more than {MAX_BLOCKS} PEM blocks")
        if block[1] in wanted:
            found.append(_content(block[2]))
    return found


def _content(text: bytes) -> bytes:
    """Base64 of a block; header lines (RFC 1421) before a blank line are passed over."""
    lines = text.strip().splitlines()
    if lines and b":" in lines[0]:
        blank = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
        lines = lines[blank:]
    try:
        return binascii.a2b_base64(b"".join(b"".join(lines).split()), strict_mode=True)
    except binascii.Error:
        raise RemoteProtocolError("a PEM block is not base64") from None


def encode_pem(der: bytes, label: str = "CERTIFICATE") -> str:
    text = binascii.b2a_base64(der, newline=False).decode("ascii")
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"
