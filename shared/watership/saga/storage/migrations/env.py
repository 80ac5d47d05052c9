"""Run by Alembic, never imported: puts the connection of `upgrade`, and its transaction, under the revisions."""

from __future__ import annotations

from alembic import context

from watership.saga.storage.schema import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
