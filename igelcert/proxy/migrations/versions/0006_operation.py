"""Years of operation: several management CAs, what devices trust, which master keys proxies have, an audit log that
only grows."""

import base64

import sqlalchemy as sa
from alembic import op
from cryptography import x509
from cryptography.hazmat.primitives import serialization

revision = "0006"
down_revision = "0005"

IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "management_cas",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("cross", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('coming', 'issuing', 'leaving', 'retired')", name="management_ca_state"
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    _move()
    op.add_column(
        "management_certificates", sa.Column("ca", sa.Integer(), nullable=False, server_default="1")
    )
    op.add_column("devices", sa.Column("trust", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("devices", sa.Column("management_ca", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("proxies", sa.Column("master_keys", sa.Text(), nullable=False, server_default=""))
    for statement in _ONLY_GROWS[op.get_bind().dialect.name]:
        op.execute(statement)


def _move() -> None:
    """The management CA was in meta, as text."""
    bind = op.get_bind()
    rows = bind.execute(sa.text("SELECT key, value FROM meta WHERE key LIKE 'management_ca_%'"))
    found = {str(row.key): str(row.value) for row in rows}
    if not found:
        return
    cert = x509.load_pem_x509_certificate(found["management_ca_certificate"].encode())
    table = sa.table(
        "management_cas",
        *map(sa.column, ("id", "certificate", "cross", "sealed", "state", "created")),
    )
    bind.execute(
        table.insert().values(
            id=1,
            certificate=cert.public_bytes(serialization.Encoding.DER),
            cross=b"",
            sealed=base64.b64decode(found["management_ca_key"]),
            state="issuing",
            created=int(cert.not_valid_before_utc.timestamp()),
        )
    )
    bind.execute(sa.text("DELETE FROM meta WHERE key LIKE 'management_ca_%'"))


_SENTENCE = "the audit log is append-only"
_ONLY_GROWS = {
    "sqlite": [
        f"CREATE TRIGGER audit_only_grows_{what.lower()} BEFORE {what} ON audit "
        f"BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
        for what in ("UPDATE", "DELETE")
    ]
    # REPLACE removes the row in its way without the trigger on DELETE (https://sqlite.org/lang_conflict.html)
    + [
        "CREATE TRIGGER audit_only_grows_insert BEFORE INSERT ON audit "  # noqa: S608 - a text of our own
        "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) "
        f"BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_SENTENCE}'; END $$",
        "CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE ON audit "
        "FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
        "CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
    ],
}
