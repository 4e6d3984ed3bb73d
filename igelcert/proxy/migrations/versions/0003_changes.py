"""What changes devices' settings, for devices that wait for it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "changes",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("target", sa.String(length=512), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('device', 'directory')", name="change_kind"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.execute("INSERT INTO meta (key, value) VALUES ('changes', '0')")
