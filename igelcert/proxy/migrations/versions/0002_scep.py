"""SCEP: transport keys, and what is kept of a request whose answer has not come."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "scep_keys",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "scep_secrets",
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["devices.unit_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("secret_sha256"),
    )
    op.create_table(
        "ndes_challenges",
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("friendly_name", sa.String(length=256), nullable=False),
        sa.Column("config_version", sa.BigInteger(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("fetched", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["devices.unit_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("unit_id", "friendly_name"),
    )
    op.create_index("ix_scep_secrets_unit_id", "scep_secrets", ["unit_id"])
    op.add_column(
        "profiles", sa.Column("passthrough", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("enrollments", sa.Column("upstream_state", sa.Text(), nullable=False, server_default=""))
