"""Who may administer: accounts of people with passwords, tokens of programs. Both have a role."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHash, VerificationError

from ...errors import Error, SettingsError
from ..audit import actor
from ..context import Context
from ..database import Database, now
from ..schema import accounts, api_tokens, login_failures, sessions

__all__ = [
    "ROLES",
    "Account",
    "ApiToken",
    "LoginRefused",
    "add",
    "change_password",
    "get",
    "listing",
    "log_in",
    "make_token",
    "note_token",
    "remove",
    "remove_token",
    "reset_password",
    "set_role",
    "token_listing",
    "who_has",
]

ROLES = ("admin", "viewer")
PASSWORD_MIN, PASSWORD_MAX = 12, 1000
TOKEN_PREFIX = "igct_"  # noqa: S105 - so that a scanner of leaked secrets can know it
TOKEN_DAYS_MAX = 3650
WINDOW = 900  # seconds over which failures are counted
ACCOUNT_FAILURES, ADDRESS_FAILURES = 5, 20
# the account of what fails by a token: no login can name it, as names lose the space at their end
TOKEN = "a token "  # noqa: S105 - no secret
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_hasher = PasswordHasher()


@dataclass(frozen=True, slots=True)
class Account:
    """must_change: nothing else is possible before a new password is set."""

    name: str
    role: str
    must_change: bool
    created: int
    last_login: int | None


@dataclass(frozen=True, slots=True)
class ApiToken:
    """secret: shown once, "" later. expires: None for never."""

    name: str
    role: str
    created: int
    expires: int | None
    last_used: int | None
    secret: str = field(default="", repr=False)


class LoginRefused(Error):
    """retry_after: seconds until another try counts, 0 when at once."""

    def __init__(self, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def _account(row: Any) -> Account:
    return Account(row.name, row.role, row.must_change, row.created, row.last_login)


def _check_role(role: str) -> str:
    if role not in ROLES:
        raise SettingsError("--role", "is neither admin nor viewer")
    return role


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise SettingsError(
            "--name", "is not 1 to 64 letters, digits, '.', '_', '@' or '-', beginning with a letter or digit"
        )
    return name


def check_password(name: str, password: str) -> str:
    """Long enough, and not the name of its owner; SettingsError."""
    if len(password) < PASSWORD_MIN:
        raise SettingsError("--new-password", f"has less than {PASSWORD_MIN} characters")
    if len(password) > PASSWORD_MAX:
        raise SettingsError("--new-password", f"has more than {PASSWORD_MAX} characters")
    if name.casefold() in password.casefold() and len(password) < len(name) + PASSWORD_MIN:
        raise SettingsError("--new-password", "is little more than the account's name")
    if len(set(password)) < 5:
        raise SettingsError("--new-password", "repeats a few characters")
    return password


# ---- accounts -----------------------------------------------------------------------------------


def listing(context: Context) -> list[Account]:
    with context.db.read() as connection:
        return [_account(row) for row in connection.execute(sa.select(accounts).order_by(accounts.c.name))]


def get(context: Context, name: str) -> Account | None:
    with context.db.read() as connection:
        row = connection.execute(sa.select(accounts).where(accounts.c.name == name)).one_or_none()
    return _account(row) if row is not None else None


def add(context: Context, name: str, role: str) -> str:
    """A new account; returns its first password, which must be changed at the first login."""
    _check_name(name)
    _check_role(role)
    password = secrets.token_urlsafe(15)
    row = {
        "name": name,
        "password_hash": _hasher.hash(password),
        "role": role,
        "must_change": True,
        "created": now(),
    }
    with context.db.begin() as connection:
        if connection.execute(sa.select(accounts.c.name).where(accounts.c.name == name)).scalar() is not None:
            raise SettingsError("--name", f"there is an account {name!r} already")
        connection.execute(accounts.insert().values(row))
        context.db.record(connection, actor(), "user add", f"{name} as {role}")
    return password


def reset_password(context: Context, name: str) -> str:
    """A new first password; sessions of the account end, and failed logins are forgotten."""
    password = secrets.token_urlsafe(15)
    hashed = _hasher.hash(password)
    with context.db.begin() as connection:
        _must_find(connection, name)
        mine = accounts.c.name == name
        connection.execute(accounts.update().where(mine).values(password_hash=hashed, must_change=True))
        connection.execute(sessions.delete().where(sessions.c.account == name))
        connection.execute(login_failures.delete().where(login_failures.c.account == name))
        context.db.record(connection, actor(), "user password", f"{name}: a new first password")
    return password


def set_role(context: Context, name: str, role: str) -> None:
    """Counts with the next request. The last administrator stays one."""
    _check_role(role)
    with context.db.begin() as connection:
        found = _must_find(connection, name)
        if found.role == "admin" and role != "admin":
            _not_the_last(connection, name)
        connection.execute(accounts.update().where(accounts.c.name == name).values(role=role))
        context.db.record(connection, actor(), "user role", f"{name} is {role}")


def remove(context: Context, name: str) -> None:
    """Its sessions end at once. The last administrator stays."""
    with context.db.begin() as connection:
        if _must_find(connection, name).role == "admin":
            _not_the_last(connection, name)
        connection.execute(accounts.delete().where(accounts.c.name == name))
        context.db.record(connection, actor(), "user remove", name)


def _must_find(connection: sa.Connection, name: str) -> Any:
    row = connection.execute(sa.select(accounts).where(accounts.c.name == name)).one_or_none()
    if row is None:
        raise SettingsError("--name", f"there is no account {name[:80]!r}", hint="ca-proxy user list")
    return row


def _not_the_last(connection: sa.Connection, name: str) -> None:
    others = sa.select(accounts.c.name).where(accounts.c.role == "admin", accounts.c.name != name)
    if connection.execute(others.limit(1)).scalar() is None:
        raise SettingsError("--name", f"{name} is the last administrator", hint="make another one first")


def change_password(context: Context, name: str, old: str, new: str, kept_session: str = "") -> None:
    """Of one's own account. Other sessions of it end; kept_session is the SHA-256 of the one that stays."""
    with context.db.read() as connection:
        row = _must_find(connection, name)
    if not _fits(row.password_hash, old):
        raise SettingsError("--old-password", "is not the present password")
    check_password(name, new)
    if new == old:
        raise SettingsError("--new-password", "is the present password")
    hashed = _hasher.hash(new)
    with context.db.begin() as connection:
        mine = accounts.c.name == name
        connection.execute(accounts.update().where(mine).values(password_hash=hashed, must_change=False))
        connection.execute(
            sessions.delete().where(sessions.c.account == name, sessions.c.sha256 != kept_session)
        )
        context.db.record(connection, actor(), "user password", f"{name} changed it")


# ---- logging in ---------------------------------------------------------------------------------


def log_in(context: Context, name: str, password: str, address: str) -> Account:
    """The account, or LoginRefused. Tries are limited by account and by address."""
    name, moment = name.strip()[:64], now()
    if wait := _wait(context, name, address, moment):
        raise LoginRefused("too many failed logins; try again later", wait)
    with context.db.read() as connection:
        row = connection.execute(sa.select(accounts).where(accounts.c.name == name)).one_or_none()
    # an account that is not there takes as long as one with a wrong password
    good = _fits(row.password_hash if row is not None else _dummy(), password[: PASSWORD_MAX + 1])
    with context.db.begin() as connection:
        connection.execute(login_failures.delete().where(login_failures.c.at < moment - WINDOW))
        if row is None or not good:
            connection.execute(login_failures.insert().values(at=moment, account=name, address=address[:64]))
            Database.record(connection, address, "login refused", f"as {_printable(name)}")
        else:
            connection.execute(
                login_failures.delete().where(
                    login_failures.c.account == name, login_failures.c.address == address[:64]
                )
            )
            values: dict[str, Any] = {"last_login": moment}
            if _hasher.check_needs_rehash(row.password_hash):
                values["password_hash"] = _hasher.hash(password)
            connection.execute(accounts.update().where(accounts.c.name == name).values(values))
            Database.record(connection, name, "login", f"from {address}")
    if row is None or not good:
        raise LoginRefused("name or password is wrong")
    return _account(row)


def _wait(context: Context, name: str, address: str, moment: int) -> int:
    """Seconds until one of the failures that are too many is old."""
    recent = sa.select(login_failures.c.at).where(login_failures.c.at > moment - WINDOW)
    mine = recent.where(login_failures.c.account == name, login_failures.c.address == address[:64])
    theirs = recent.where(login_failures.c.account != TOKEN, login_failures.c.address == address[:64])
    return _until_old(context, moment, (mine, ACCOUNT_FAILURES), (theirs, ADDRESS_FAILURES))


def _until_old(context: Context, moment: int, *limits: tuple[Any, int]) -> int:
    """Seconds until one of the failures is old where they are too many. limits: times of failures, and how many may be."""
    with context.db.read() as connection:
        for query, most in limits:
            newest = (
                connection.execute(query.order_by(login_failures.c.at.desc()).limit(most)).scalars().all()
            )
            if len(newest) >= most:
                return max(1, int(newest[-1]) + WINDOW - moment)
    return 0


def _fits(hashed: str, password: str) -> bool:
    try:
        return _hasher.verify(hashed, password)
    except (VerificationError, InvalidHash):
        return False


@cache
def _dummy() -> str:
    return _hasher.hash(secrets.token_urlsafe(15))


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


# ---- tokens -------------------------------------------------------------------------------------


def make_token(context: Context, name: str, role: str, days: int | None = None) -> ApiToken:
    """A token for a program; its secret is in the answer and nowhere else."""
    _check_name(name)
    _check_role(role)
    if days is not None and not 1 <= days <= TOKEN_DAYS_MAX:
        raise SettingsError("--days", f"is not from 1 to {TOKEN_DAYS_MAX}")
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    moment = now()
    expires = None if days is None else moment + days * 86_400
    row = {"sha256": _digest(secret), "name": name, "role": role, "created": moment, "expires": expires}
    with context.db.begin() as connection:
        if (
            connection.execute(sa.select(api_tokens.c.name).where(api_tokens.c.name == name)).scalar()
            is not None
        ):
            raise SettingsError("--name", f"there is a token {name!r} already")
        connection.execute(api_tokens.insert().values(row))
        context.db.record(connection, actor(), "token add", f"{name} as {role}")
    return ApiToken(name, role, moment, expires, None, secret)


def token_listing(context: Context) -> list[ApiToken]:
    with context.db.read() as connection:
        rows = connection.execute(sa.select(api_tokens).order_by(api_tokens.c.name))
        return [ApiToken(row.name, row.role, row.created, row.expires, row.last_used) for row in rows]


def remove_token(context: Context, name: str) -> None:
    with context.db.begin() as connection:
        if not connection.execute(api_tokens.delete().where(api_tokens.c.name == name)).rowcount:
            raise SettingsError("--name", f"there is no token {name[:80]!r}", hint="ca-proxy token list")
        context.db.record(connection, actor(), "token remove", name)


def who_has(context: Context, secret: str) -> ApiToken | None:
    """The token, if it counts."""
    moment = now()
    with context.db.read() as connection:
        row = connection.execute(
            sa.select(api_tokens).where(api_tokens.c.sha256 == _digest(secret))
        ).one_or_none()
    if row is None or (row.expires is not None and row.expires <= moment):
        return None
    if row.last_used is None or moment - row.last_used > 60:
        with context.db.begin() as connection:
            connection.execute(
                api_tokens.update().where(api_tokens.c.sha256 == row.sha256).values(last_used=moment)
            )
    return ApiToken(row.name, row.role, row.created, row.expires, row.last_used)


def note_token(context: Context, address: str) -> bool:
    """Notes that a token did not count, so often from one address and no more: the log is not for strangers to fill. Was it
    noted? A token is too long to be guessed, so nobody is locked out."""
    moment = now()
    recent = sa.select(login_failures.c.at).where(
        login_failures.c.at > moment - WINDOW,
        login_failures.c.account == TOKEN,
        login_failures.c.address == address[:64],
    )
    if _until_old(context, moment, (recent, ADDRESS_FAILURES)):
        return False
    with context.db.begin() as connection:
        connection.execute(login_failures.delete().where(login_failures.c.at < moment - WINDOW))
        connection.execute(login_failures.insert().values(at=moment, account=TOKEN, address=address[:64]))
        Database.record(connection, address, "token refused", "it is not known here, or has expired")
    return True


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
