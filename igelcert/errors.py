"""Every error that igelcert raises on purpose.

An error says what failed and why in `message` (one line, no secret, no trailing full stop) and
what to do about it in `hint` (may be empty). Only the command lines print errors and turn them
into exit codes; only the proxy's HTTP layer turns them into a status.
"""

from __future__ import annotations


class Error(Exception):
    """Base of all errors of igelcert."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class SettingsError(Error):
    """A settings document or configuration file is not valid.

    `path` names the place ("certs[0].key.type", "device.toml:12"), `reason` says why.
    """

    def __init__(self, path: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{path}: {reason}" if path else reason, hint=hint)
        self.path = path
        self.reason = reason


class CryptoError(Error):
    """The native core refused. `code` is the name of its error ("PARSE"), `reasons` its details."""

    def __init__(self, operation: str, code: str, text: str, reasons: tuple[str, ...] = ()) -> None:
        detail = f" ({'; '.join(reasons)})" if reasons else ""
        super().__init__(f"{operation}: {text}{detail}")
        self.operation = operation
        self.code = code
        self.text = text
        self.reasons = reasons


class ProtocolError(Error):
    """A message breaks its protocol."""


class LocalProtocolError(ProtocolError):
    """We were asked to send what the protocol does not allow: a fault on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow.

    `status_hint` is the HTTP status that a server answers to the peer with.
    """

    def __init__(self, message: str, *, status_hint: int = 400, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status_hint = status_hint


class TransportError(Error):
    """The peer could not be reached or the connection broke: worth another try later.

    `link` names the part that failed: "name", "tcp", "tls-trust", "tls-client", "timeout", "http".
    """

    def __init__(self, message: str, *, link: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.link = link


class CheckError(Error):
    """An answer arrived whole and is not what was asked for (key, chain, dates, serial)."""


class ConflictError(Error):
    """What was to be changed is not what its editor saw, or something would be lost: nothing was done.

    `path` names the place, as of a SettingsError; `replaces` is what must be agreed to ("" when it changed).
    """

    def __init__(self, path: str, reason: str, *, replaces: str = "", hint: str = "") -> None:
        super().__init__(reason, hint=hint)
        self.path = path
        self.reason = reason
        self.replaces = replaces


class StorageError(Error):
    """Files or the database could not be read or written."""


class UnavailableError(StorageError):
    """The database is away or busy, or another command holds what is needed: worth another try later."""
