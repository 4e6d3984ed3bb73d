"""Windows for renewals: what is booked, which certificate has which, who issued it, and until when one is asked for."""

import sqlalchemy as sa
from alembic import op

from igelcert import crypto
from igelcert.errors import Error

revision = "0007"
down_revision = "0006"

BATCH = 500


def upgrade() -> None:
    op.create_table(
        "renewal_slots",
        sa.Column("width", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("booked", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("width", "number"),
    )
    for name in ("window_from", "window_until"):
        op.add_column("certificates", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("certificates", sa.Column("issuer", sa.Text(), nullable=False, server_default=""))
    op.add_column(
        "certificates", sa.Column("issuer_sha256", sa.String(length=64), nullable=False, server_default="")
    )
    for name in ("begin", "until"):
        op.add_column("renewals", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    _name_issuers(op.get_bind())


def _name_issuers(connection: sa.Connection) -> None:
    """The issuers of certificates that are there, so that those can be renewed by them; not which of the same name."""
    query = sa.text(
        "SELECT c.unit_id, c.friendly_name, max(e.id) AS id FROM certificates c JOIN enrollments e"
        " ON e.unit_id = c.unit_id AND e.friendly_name = c.friendly_name AND e.serial = c.serial"
        " WHERE e.certificate IS NOT NULL GROUP BY c.unit_id, c.friendly_name"
    )
    der = sa.text("SELECT certificate FROM enrollments WHERE id = :id")
    put = sa.text("UPDATE certificates SET issuer = :issuer WHERE unit_id = :unit AND friendly_name = :name")
    rows = connection.execute(query).all()
    for begin in range(0, len(rows), BATCH):
        found = []
        for row in rows[begin : begin + BATCH]:
            try:
                cert = crypto.parse_certificate(bytes(connection.execute(der, {"id": row.id}).scalar_one()))
            except Error:
                continue
            found.append({"issuer": cert.issuer_cn, "unit": row.unit_id, "name": row.friendly_name})
        if found:
            connection.execute(put, found)
