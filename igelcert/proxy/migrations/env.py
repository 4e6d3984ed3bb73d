"""Alembic's environment: the connection comes from database.migrate, never from a file."""

from alembic import context

from igelcert.proxy.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
