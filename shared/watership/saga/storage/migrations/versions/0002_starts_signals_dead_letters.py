"""What waits to be judged (starts, signals, dead letters), what pruned sagas leave, and which plan foreign starts get."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COUNTED = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Makes them."""
    _start_and_signal()
    _dead_letter()
    _tombstone_and_choice()


def downgrade() -> None:
    """Drops them, with all that waits in them."""
    for table in ("plan_choice", "tombstone", "dead_letter", "signal", "start"):
        op.drop_table(f"watership_{table}")


def _start_and_signal() -> None:
    op.create_table(
        "watership_start",
        sa.Column("start_id", _COUNTED, sa.Identity(), primary_key=True, autoincrement=True),
        sa.Column("namespace", sa.String(100), nullable=False),
        sa.Column("driver", sa.String(16), nullable=False, comment="embedded or orchestrator: who takes it up"),
        sa.Column("saga_id", sa.Uuid, nullable=False),
        sa.Column("saga", sa.String(200), nullable=False),
        sa.Column("plan_hash", sa.String(32)),
        sa.Column("plan", sa.Text, comment="JSON: so that it needs no broker to be known"),
        sa.Column("context", sa.Text, nullable=False, comment="JSON"),
        sa.Column("traceparent", sa.String(64)),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column(
            "look_at_ms", sa.BigInteger, nullable=False, server_default="0", comment="not before: backed off, or held"
        ),
    )
    op.create_index("watership_start_look", "watership_start", ["namespace", "driver", "look_at_ms"])
    op.create_table(
        "watership_signal",
        sa.Column("namespace", sa.String(100), primary_key=True),
        sa.Column("saga_id", sa.Uuid, primary_key=True),
        sa.Column("signal_id", sa.String(200), primary_key=True),
        sa.Column("driver", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("data", sa.Text, nullable=False, comment="JSON"),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("look_at_ms", sa.BigInteger, nullable=False, server_default="0", comment="not before: backed off"),
    )


def _dead_letter() -> None:
    op.create_table(
        "watership_dead_letter",
        sa.Column("id", _COUNTED, sa.Identity(), primary_key=True, autoincrement=True),
        sa.Column("namespace", sa.String(100), nullable=False),
        sa.Column("queue", sa.String(255), nullable=False, comment="the queue that it died in"),
        sa.Column(
            "reason", sa.String(100), nullable=False, comment="the broker's: delivery_limit, expired, rejected, …"
        ),
        sa.Column("kind", sa.String(255), nullable=False),
        sa.Column("message_id", sa.String(255)),
        sa.Column("saga_id", sa.Uuid),
        sa.Column("reply_to", sa.String(255)),
        sa.Column("headers", sa.Text, nullable=False, comment="JSON"),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column(
            "judge_at_ms",
            sa.BigInteger,
            comment="to be judged by the machine, not before this; null: nothing to judge",
        ),
        sa.Column("judged", sa.Text, comment="what came of it, in words"),
        sa.Column("judged_at_ms", sa.BigInteger),
        sa.Column("actor", sa.String(200), comment="who had it judged again, or discarded it"),
        sa.Column("actor_reason", sa.Text),
    )
    op.create_index("watership_dead_letter_newest", "watership_dead_letter", ["namespace", "id"])
    op.create_index(
        "watership_dead_letter_judge",
        "watership_dead_letter",
        ["namespace", "judge_at_ms"],
        postgresql_where=sa.text("judge_at_ms IS NOT NULL"),
        sqlite_where=sa.text("judge_at_ms IS NOT NULL"),
    )


def _tombstone_and_choice() -> None:
    op.create_table(
        "watership_tombstone",
        sa.Column("saga_id", sa.Uuid, primary_key=True),
        sa.Column("namespace", sa.String(100), nullable=False),
        sa.Column("driver", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("input_hash", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "watership_plan_choice",
        sa.Column("choice_id", _COUNTED, sa.Identity(), primary_key=True, autoincrement=True),
        sa.Column("namespace", sa.String(100), nullable=False),
        sa.Column("saga", sa.String(200), nullable=False),
        sa.Column("plan_hash", sa.String(32), comment="what starts get that name no plan; null: the newest again"),
        sa.Column("chosen_at_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("watership_plan_choice_newest", "watership_plan_choice", ["namespace", "saga", "choice_id"])
