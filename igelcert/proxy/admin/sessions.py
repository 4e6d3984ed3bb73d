"""Sessions of browsers: a random cookie, whose hash is in the database, so that every proxy knows it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

import sqlalchemy as sa

from ..context import Context
from ..database import now
from ..schema import accounts, sessions
from .accounts import Account

__all__ = ["COOKIE", "Session", "begin", "csrf_of", "end", "find", "forged"]

COOKIE = "igelcert_session"
IDLE_SECONDS = 1800
LIFE_SECONDS = 12 * 3600
SEEN_STEP = 60  # a session that is used is noted no more often


@dataclass(frozen=True, slots=True)
class Session:
    """secret: the cookie's value. digest: what the database has of it."""

    account: Account
    secret: str = field(repr=False)

    @property
    def digest(self) -> str:
        return _digest(self.secret)

    @property
    def csrf(self) -> str:
        return csrf_of(self.secret)


def begin(context: Context, account: Account) -> Session:
    """A new session; old ones of everybody that are over are removed."""
    secret, moment = secrets.token_urlsafe(32), now()
    with context.db.begin() as connection:
        connection.execute(
            sessions.delete().where(
                sa.or_(sessions.c.seen < moment - IDLE_SECONDS, sessions.c.created < moment - LIFE_SECONDS)
            )
        )
        connection.execute(
            sessions.insert().values(
                sha256=_digest(secret), account=account.name, created=moment, seen=moment
            )
        )
    return Session(account, secret)


def find(context: Context, secret: str) -> Session | None:
    """The session of a cookie, with its account as it is now; None when it is over."""
    moment = now()
    query = (
        sa.select(accounts, sessions.c.seen, sessions.c.created.label("begun"))
        .join(sessions, sessions.c.account == accounts.c.name)
        .where(sessions.c.sha256 == _digest(secret))
    )
    with context.db.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None or moment - row.seen > IDLE_SECONDS or moment - row.begun > LIFE_SECONDS:
        return None
    if moment - row.seen > SEEN_STEP:
        with context.db.begin() as connection:
            connection.execute(
                sessions.update().where(sessions.c.sha256 == _digest(secret)).values(seen=moment)
            )
    account = Account(row.name, row.role, row.must_change, row.created, row.last_login)
    return Session(account, secret)


def end(context: Context, session: Session) -> None:
    with context.db.begin() as connection:
        connection.execute(sessions.delete().where(sessions.c.sha256 == session.digest))


def csrf_of(secret: str) -> str:
    """What a form of this session must carry: known to its pages alone, and no way back to the cookie."""
    return hmac.new(secret.encode(), b"csrf", hashlib.sha256).hexdigest()


def forged(session: Session, given: str) -> bool:
    return not hmac.compare_digest(session.csrf.encode(), given.encode())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
