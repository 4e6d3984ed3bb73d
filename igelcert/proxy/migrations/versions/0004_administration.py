"""Administration: accounts and tokens, directories, current certificates, renewals on request."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("password_hash", sa.String(length=256), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("must_change", sa.Boolean(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("last_login", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("role IN ('admin', 'viewer')", name="account_role"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["accounts.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index("ix_sessions_account", "sessions", ["account"])
    op.create_table(
        "api_tokens",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=True),
        sa.Column("last_used", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("role IN ('admin', 'viewer')", name="token_role"),
        sa.PrimaryKeyConstraint("sha256"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "login_failures",
        sa.Column("id", IDENTITY, autoincrement=True, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_login_failures_at", "login_failures", ["at"])
    op.create_table(
        "directories",
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )
    op.create_table(
        "certificates",
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("friendly_name", sa.String(length=256), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("issued", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["devices.unit_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("unit_id", "friendly_name"),
    )
    op.create_index("ix_certificates_not_after", "certificates", ["not_after"])
    op.create_table(
        "renewals",
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("friendly_name", sa.String(length=256), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("asked", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["devices.unit_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("unit_id", "friendly_name"),
    )
    op.add_column("profiles", sa.Column("version", sa.BigInteger(), nullable=False, server_default="1"))
    op.create_index("enrollments_device", "enrollments", ["unit_id", "friendly_name", "updated"])
    op.execute(_CURRENT)
    op.execute(_ADMIN)
    op.execute("DELETE FROM meta WHERE key IN ('admin_name', 'admin_password')")


_CURRENT = """
INSERT INTO certificates (unit_id, friendly_name, serial, subject, not_before, not_after, issued)
SELECT unit_id, friendly_name, serial, subject, not_before, not_after, updated
FROM (SELECT enrollments.*,
             row_number() OVER (PARTITION BY unit_id, friendly_name ORDER BY updated DESC, id DESC) AS place
      FROM enrollments WHERE serial IS NOT NULL AND not_before IS NOT NULL AND not_after IS NOT NULL
                         AND unit_id IN (SELECT unit_id FROM devices)) AS ranked
WHERE place = 1
"""

_ADMIN = """
INSERT INTO accounts (name, password_hash, role, must_change, created)
SELECT named.value, hashed.value, 'admin', TRUE, 0
FROM meta AS named, meta AS hashed WHERE named.key = 'admin_name' AND hashed.key = 'admin_password'
"""
