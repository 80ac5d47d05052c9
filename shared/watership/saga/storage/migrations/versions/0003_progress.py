"""Whether who started a saga is told each of its steps, or its end alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Sagas that are there are told as they were: each step. No row is written for it."""
    op.add_column(
        "watership_saga",
        sa.Column(
            "progress", sa.Boolean, nullable=False, server_default=sa.true(), comment="it is told each step, too"
        ),
    )


def downgrade() -> None:
    """Whoever waits for the end alone is told each step again, and passes it over."""
    op.drop_column("watership_saga", "progress")
