"""Tables. Times are seconds since 1970, UTC; columns named `sealed` hold AES-256-GCM ciphertext."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

__all__ = [
    "HEAD",
    "accounts",
    "api_tokens",
    "assignments",
    "audit",
    "ca_certificates",
    "ca_config",
    "certificates",
    "changes",
    "devices",
    "directories",
    "enrollments",
    "login_failures",
    "management_cas",
    "management_certificates",
    "meta",
    "metadata",
    "ndes_challenges",
    "profiles",
    "proxies",
    "renewal_slots",
    "renewals",
    "scep_keys",
    "scep_secrets",
    "sessions",
    "slots",
    "tokens",
]

HEAD = "0007"  # the newest migration

metadata = MetaData()
# INTEGER PRIMARY KEY counts by itself in SQLite, BIGSERIAL in PostgreSQL
Identity = BigInteger().with_variant(Integer, "sqlite")

meta = Table(
    "meta", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

devices = Table(
    "devices",
    metadata,
    Column("unit_id", String(64), primary_key=True),
    Column("directory", String(512), nullable=False),
    Column("hostname", String(253), nullable=False),
    Column("hostname_fixed", Boolean, nullable=False),
    Column("ips", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("report", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("registered_at", BigInteger),
    Column("last_seen", BigInteger),
    # as it reported last: digest of the management CAs that it trusts, and the CA of the certificate that it has
    Column("trust", String(64), nullable=False, server_default=""),
    Column("management_ca", Integer, nullable=False, server_default="1"),
    CheckConstraint("state IN ('added', 'registered')", name="device_state"),
)
Index("devices_directory", devices.c.directory)
Index("devices_hostname", devices.c.hostname)

tokens = Table(
    "tokens",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column(
        "unit_id", String(64), ForeignKey("devices.unit_id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("expires", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Column("used_spki_sha256", String(64)),
)

# of the proxy itself; certificate: DER; cross: its key certified by the CA before it (RFC 4210: new with old), or empty
management_cas = Table(
    "management_cas",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("cross", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    CheckConstraint("state IN ('coming', 'issuing', 'leaving', 'retired')", name="management_ca_state"),
)

management_certificates = Table(
    "management_certificates",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column(
        "unit_id", String(64), ForeignKey("devices.unit_id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("serial", String(64), nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("spki_sha256", String(64), nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("ca", Integer, nullable=False, server_default="1"),
)

profiles = Table(
    "profiles",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("passthrough", Boolean, nullable=False, server_default=false()),
    Column("version", BigInteger, nullable=False, server_default="1"),  # counts its changes
)

assignments = Table(
    "assignments",
    metadata,
    Column("profile", String(128), ForeignKey("profiles.name", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("target", String(512), primary_key=True),
    CheckConstraint("kind IN ('device', 'directory')", name="assignment_kind"),
)
Index("assignments_target", assignments.c.kind, assignments.c.target)

# whose settings were changed, newest last; the ids are counted in meta, see changes.note
changes = Table(
    "changes",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("target", String(512), nullable=False),
    Column("at", BigInteger, nullable=False),
    CheckConstraint("kind IN ('device', 'directory')", name="change_kind"),
)

ca_config = Table(
    "ca_config",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("name", String(128), nullable=False),
    Column("settings", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_ca"),
    CheckConstraint("kind IN ('est', 'scep')", name="ca_kind"),
)

# CA certificates of the upstream, kept when it changes: old device certificates chain to them
ca_certificates = Table(
    "ca_certificates",
    metadata,
    Column("config_version", BigInteger, primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("der", LargeBinary, nullable=False),
    Column("fetched_at", BigInteger, nullable=False),
)

enrollments = Table(
    "enrollments",
    metadata,
    Column("id", Identity, primary_key=True, autoincrement=True),
    Column("unit_id", String(64), nullable=False),
    Column("friendly_name", String(256), nullable=False),
    Column("operation", String(32), nullable=False),
    Column("csr_sha256", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("config_version", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("warnings", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("serial", String(64)),
    Column("not_before", BigInteger),
    Column("not_after", BigInteger),
    Column("certificate", LargeBinary),
    Column("certificate_sha256", String(64), index=True),
    Column("retry_at", BigInteger),
    Column("upstream_state", Text, nullable=False, server_default=""),
    # of a running request: the process that carries it to the CA (leases.py), and which time
    Column("holder", String(32), nullable=False, server_default=""),
    Column("claim", String(32), nullable=False, server_default=""),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    UniqueConstraint("unit_id", "csr_sha256", name="one_answer"),
    CheckConstraint(
        "state IN ('running', 'issued', 'pending', 'refused', 'failed')", name="enrollment_state"
    ),
)
Index("enrollments_updated", enrollments.c.updated)
Index("enrollments_device", enrollments.c.unit_id, enrollments.c.friendly_name, enrollments.c.updated)

# processes of proxies, each alive until then by the database's clock
proxies = Table(
    "proxies",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(253), nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("master_keys", Text, nullable=False, server_default=""),  # names of the master keys that it has
)

# places at the CA, held by one of `proxies`; 0: free
slots = Table(
    "slots",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("holder", String(32), nullable=False),
    Column("until", BigInteger, nullable=False),
)

# the newest certificate of each device and friendly name: what lists, charts and figures count
certificates = Table(
    "certificates",
    metadata,
    Column("unit_id", String(64), ForeignKey("devices.unit_id", ondelete="CASCADE"), primary_key=True),
    Column("friendly_name", String(256), primary_key=True),
    Column("serial", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False, index=True),
    Column("issued", BigInteger, nullable=False),
    Column("window_from", BigInteger),
    Column("window_until", BigInteger),
    Column("issuer", Text, nullable=False, server_default=""),  # its common name
    Column("issuer_sha256", String(64), nullable=False, server_default=""),  # "": of before 0007
)

# how many certificates have their window in a bucket: that of an instant is instant // width
renewal_slots = Table(
    "renewal_slots",
    metadata,
    Column("width", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("booked", Integer, nullable=False),
)

# the certificate of this serial number is to be renewed, whatever its dates say: now, or from begin to until
renewals = Table(
    "renewals",
    metadata,
    Column("unit_id", String(64), ForeignKey("devices.unit_id", ondelete="CASCADE"), primary_key=True),
    Column("friendly_name", String(256), primary_key=True),
    Column("serial", String(64), nullable=False),
    Column("asked", BigInteger, nullable=False),
    Column("begin", BigInteger, nullable=False, server_default="0"),
    Column("until", BigInteger, nullable=False, server_default="0"),
)

# directories that an administrator made; those of devices and assignments are there without a row
directories = Table("directories", metadata, Column("path", String(512), primary_key=True))

# secret path segments of devices whose SCEP clients cannot do TLS client authentication
scep_secrets = Table(
    "scep_secrets",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column(
        "unit_id", String(64), ForeignKey("devices.unit_id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("created", BigInteger, nullable=False),
)

# one-time challenges of NDES, given to a device for one CSR; an empty `sealed`: being fetched
ndes_challenges = Table(
    "ndes_challenges",
    metadata,
    Column("unit_id", String(64), ForeignKey("devices.unit_id", ondelete="CASCADE"), primary_key=True),
    Column("friendly_name", String(256), primary_key=True),
    Column("config_version", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("fetched", BigInteger, nullable=False),
    Column("used", Boolean, nullable=False),
)

# RSA keys that sign SCEP messages; answers are encrypted for them
scep_keys = Table(
    "scep_keys",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("password_hash", String(256), nullable=False),
    Column("role", String(16), nullable=False),
    Column("must_change", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("last_login", BigInteger),
    CheckConstraint("role IN ('admin', 'viewer')", name="account_role"),
)

# of browsers; the cookie's SHA-256
sessions = Table(
    "sessions",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column(
        "account", String(64), ForeignKey("accounts.name", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("created", BigInteger, nullable=False),
    Column("seen", BigInteger, nullable=False),
)

# of programs that use the REST interface; the token's SHA-256
api_tokens = Table(
    "api_tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("last_used", BigInteger),
    CheckConstraint("role IN ('admin', 'viewer')", name="token_role"),
)

login_failures = Table(
    "login_failures",
    metadata,
    Column("id", Identity, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False, index=True),
    Column("account", String(64), nullable=False),
    Column("address", String(64), nullable=False),
)

# triggers refuse to change or remove a line
audit = Table(
    "audit",
    metadata,
    Column("id", Identity, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("detail", Text, nullable=False),
)
