"""An index of the sagas that wait for a person: with that of the due ones, it finds what is not over, however much is.

To make it reads the whole table, and nothing is written meanwhile: about a second for each million sagas. Where that is too
long, make it beforehand, by CREATE INDEX CONCURRENTLY with this name: what is there is left as it is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_HELD = "parked_reason IS NOT NULL OR paused"


def upgrade() -> None:
    """Makes it."""
    op.create_index(
        "watership_saga_held",
        "watership_saga",
        ["namespace", "created_at_ms"],
        postgresql_where=sa.text(_HELD),
        sqlite_where=sa.text(f"{_HELD} = 1"),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_index("watership_saga_held", "watership_saga")
