"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None

# Written out, not taken from the schema module: a revision stays what it was when it was released.
_STUCK = (
    "parked_reason IS NOT NULL OR paused OR wake_at_ms IS NOT NULL "
    "OR (status IN ('COMPLETED', 'COMPENSATED', 'FAILED') AND NOT owed)"
)


def upgrade() -> None:
    """Makes them."""
    _saga()
    _log_and_plan()
    _handler_and_ledger()


def downgrade() -> None:
    """Drops them, with every saga in them."""
    for table in ("ledger", "handler", "plan", "log", "saga"):
        op.drop_table(f"watership_{table}")


def _saga() -> None:
    op.create_table(
        "watership_saga",
        sa.Column("saga_id", sa.Uuid, primary_key=True),
        sa.Column("namespace", sa.String(100), nullable=False),
        sa.Column("driver", sa.String(16), nullable=False, comment="embedded or orchestrator: who drives it"),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("plan_hash", sa.String(32)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("seq", sa.Integer, nullable=False, comment="the number of its newest log entry"),
        sa.Column("context", sa.Text, nullable=False, comment="JSON"),
        sa.Column("state", sa.Text, nullable=False, comment="JSON: where its steps stand"),
        sa.Column("step", sa.String(200), comment="the step that is awaited, or that failed"),
        sa.Column("input_hash", sa.String(32), nullable=False),
        sa.Column("machine_version", sa.Integer, nullable=False),
        sa.Column("parked_reason", sa.Text),
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column(
            "owed", sa.Boolean, nullable=False, server_default=sa.false(), comment="decided, not yet confirmed sent"
        ),
        sa.Column("owed_reason", sa.Text),
        sa.Column("reply_to", sa.String(255), comment="the queue that gets the saga's progress"),
        sa.Column("traceparent", sa.String(64)),
        sa.Column(
            "due_at_ms", sa.BigInteger, comment="the true deadline; not indexed, so that moving it stays heap-only"
        ),
        sa.Column(
            "wake_at_ms", sa.BigInteger, comment="look again no later than this; moved earlier only, or by a reaper"
        ),
        sa.Column("lease_until_ms", sa.BigInteger, nullable=False, server_default="0", comment="embedded: held until"),
        sa.Column(
            "epoch", sa.BigInteger, nullable=False, server_default="0", comment="embedded: fences former holders"
        ),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint(_STUCK, name="watership_saga_nothing_is_stuck"),
        postgresql_with={
            "fillfactor": 50,
            "autovacuum_vacuum_scale_factor": 0.01,
            "autovacuum_vacuum_threshold": 1000,
            "autovacuum_vacuum_cost_delay": 0,
        },
    )
    op.create_index(
        "watership_saga_wake",
        "watership_saga",
        ["namespace", "driver", "wake_at_ms"],
        postgresql_where=sa.text("wake_at_ms IS NOT NULL"),
        sqlite_where=sa.text("wake_at_ms IS NOT NULL"),
    )
    op.create_index("watership_saga_newest", "watership_saga", ["namespace", sa.text("created_at_ms DESC")])


def _log_and_plan() -> None:
    op.create_table(
        "watership_log",
        sa.Column("saga_id", sa.Uuid, primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.String(500), nullable=False, comment="the message or moment that it followed from"),
        sa.Column("changes", sa.Text, nullable=False, comment="JSON: the decided changes, in order"),
    )
    op.create_table(
        "watership_plan",
        sa.Column("namespace", sa.String(100), primary_key=True),
        sa.Column("plan_hash", sa.String(32), primary_key=True),
        sa.Column("saga", sa.String(200), nullable=False),
        sa.Column("plan", sa.Text, nullable=False, comment="JSON"),
        sa.Column("registered_at_ms", sa.BigInteger, nullable=False, comment="first; never moved"),
    )


def _handler_and_ledger() -> None:
    op.create_table(
        "watership_handler",
        sa.Column("namespace", sa.String(100), primary_key=True),
        sa.Column("step", sa.String(200), primary_key=True),
        sa.Column("source", sa.String(500), nullable=False, comment="module:class, or what the worker says it is"),
        sa.Column("queue", sa.String(200), nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "watership_ledger",
        sa.Column(
            "ledger_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("namespace", sa.String(100), nullable=False),
        sa.Column("saga_id", sa.Uuid, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False, comment="JSON: what came"),
    )
    op.create_index("ix_watership_ledger_saga_id", "watership_ledger", ["saga_id"])
