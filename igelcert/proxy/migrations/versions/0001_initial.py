"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", IDENTITY, autoincrement=True, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "ca_certificates",
        sa.Column("config_version", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("fetched_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("config_version", "sha256"),
    )
    op.create_table(
        "ca_config",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('est', 'scep')", name="ca_kind"),
        sa.CheckConstraint("id = 1", name="one_ca"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "devices",
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("directory", sa.String(length=512), nullable=False),
        sa.Column("hostname", sa.String(length=253), nullable=False),
        sa.Column("hostname_fixed", sa.Boolean(), nullable=False),
        sa.Column("ips", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=True),
        sa.Column("last_seen", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state IN ('added', 'registered')", name="device_state"),
        sa.PrimaryKeyConstraint("unit_id"),
    )
    op.create_index("devices_directory", "devices", ["directory"], unique=False)
    op.create_index("devices_hostname", "devices", ["hostname"], unique=False)
    op.create_table(
        "enrollments",
        sa.Column("id", IDENTITY, autoincrement=True, nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("friendly_name", sa.String(length=256), nullable=False),
        sa.Column("operation", sa.String(length=32), nullable=False),
        sa.Column("csr_sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("config_version", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("warnings", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=True),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("not_after", sa.BigInteger(), nullable=True),
        sa.Column("certificate", sa.LargeBinary(), nullable=True),
        sa.Column("certificate_sha256", sa.String(length=64), nullable=True),
        sa.Column("retry_at", sa.BigInteger(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('running', 'issued', 'pending', 'refused', 'failed')", name="enrollment_state"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("unit_id", "csr_sha256", name="one_answer"),
    )
    op.create_index("enrollments_updated", "enrollments", ["updated"], unique=False)
    op.create_index(
        op.f("ix_enrollments_certificate_sha256"), "enrollments", ["certificate_sha256"], unique=False
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "profiles",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "assignments",
        sa.Column("profile", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("target", sa.String(length=512), nullable=False),
        sa.CheckConstraint("kind IN ('device', 'directory')", name="assignment_kind"),
        sa.ForeignKeyConstraint(["profile"], ["profiles.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("profile", "kind", "target"),
    )
    op.create_index("assignments_target", "assignments", ["kind", "target"], unique=False)
    op.create_table(
        "management_certificates",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("spki_sha256", sa.String(length=64), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["devices.unit_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index(
        op.f("ix_management_certificates_unit_id"), "management_certificates", ["unit_id"], unique=False
    )
    op.create_table(
        "tokens",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.Column("used_spki_sha256", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["unit_id"], ["devices.unit_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_sha256"),
    )
    op.create_index(op.f("ix_tokens_unit_id"), "tokens", ["unit_id"], unique=False)
