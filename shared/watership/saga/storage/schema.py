"""The tables. The same on SQLite and Postgres; what `Base.metadata.create_all` makes equals what the migrations make."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase

# Non-terminal means somebody will look again, or a person must (law 2); what is owed is looked at too.
NOTHING_IS_STUCK = (
    "parked_reason IS NOT NULL OR paused OR wake_at_ms IS NOT NULL "
    "OR (status IN ('COMPLETED', 'COMPENSATED', 'FAILED') AND NOT owed)"
)

# Postgres' advisory lock on the schema: whoever makes or migrates tables holds it.
SCHEMA_LOCK = 0x7761_7465  # "wate"
VERSION_TABLE = "watership_alembic_version"

# SQLite numbers rows by itself only where the key is exactly INTEGER.
_COUNTED = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Base(DeclarativeBase):
    """The declarative base of Watership's tables: put its ``metadata`` beside your own in Alembic's env."""


saga_table = sa.Table(
    "watership_saga",
    Base.metadata,
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
    sa.Column("owed", sa.Boolean, nullable=False, server_default=sa.false(), comment="decided, not yet confirmed sent"),
    sa.Column("owed_reason", sa.Text),
    sa.Column("reply_to", sa.String(255), comment="the queue that gets the saga's progress"),
    sa.Column("traceparent", sa.String(64)),
    sa.Column("due_at_ms", sa.BigInteger, comment="the true deadline; not indexed, so that moving it stays heap-only"),
    sa.Column("wake_at_ms", sa.BigInteger, comment="look again no later than this; moved earlier only, or by a reaper"),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False, server_default="0", comment="embedded: held until"),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0", comment="embedded: fences former holders"),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    sa.Column("progress", sa.Boolean, nullable=False, server_default=sa.true(), comment="it is told each step, too"),
    sa.CheckConstraint(NOTHING_IS_STUCK, name="watership_saga_nothing_is_stuck"),
    # Half of each page stays free, so that a new version of a row finds room beside the old one (heap-only updates);
    # the vacuum comes after a hundredth of the rows, not a fifth, since finished sagas are many and running ones few.
    postgresql_with={
        "fillfactor": 50,
        "autovacuum_vacuum_scale_factor": 0.01,
        "autovacuum_vacuum_threshold": 1000,
        "autovacuum_vacuum_cost_delay": 0,
    },
)

# Only rows at which somebody must look are in it: finished sagas cost nothing to running ones.
sa.Index(
    "watership_saga_wake",
    saga_table.c.namespace,
    saga_table.c.driver,
    saga_table.c.wake_at_ms,
    postgresql_where=saga_table.c.wake_at_ms.is_not(None),
    sqlite_where=saga_table.c.wake_at_ms.is_not(None),
)
# Those that wait for a person instead: few, unless much is wrong. The two find every saga that is not over (law 2).
_HELD = saga_table.c.parked_reason.is_not(None) | saga_table.c.paused
sa.Index(
    "watership_saga_held",
    saga_table.c.namespace,
    saga_table.c.created_at_ms,
    postgresql_where=_HELD,
    sqlite_where=_HELD,
)
# Says nothing that the CHECK does not say of a saga that is not over: it tells the planner which indexes find them all.
IS_LOOKED_AT = saga_table.c.wake_at_ms.is_not(None) | _HELD
sa.Index("watership_saga_newest", saga_table.c.namespace, saga_table.c.created_at_ms.desc())

log_table = sa.Table(
    "watership_log",
    Base.metadata,
    sa.Column("saga_id", sa.Uuid, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.String(500), nullable=False, comment="the message or moment that it followed from"),
    sa.Column("changes", sa.Text, nullable=False, comment="JSON: the decided changes, in order"),
)

plan_table = sa.Table(
    "watership_plan",
    Base.metadata,
    sa.Column("namespace", sa.String(100), primary_key=True),
    sa.Column("plan_hash", sa.String(32), primary_key=True),
    sa.Column("saga", sa.String(200), nullable=False),
    sa.Column("plan", sa.Text, nullable=False, comment="JSON"),
    sa.Column("registered_at_ms", sa.BigInteger, nullable=False, comment="first; never moved"),
)

handler_table = sa.Table(
    "watership_handler",
    Base.metadata,
    sa.Column("namespace", sa.String(100), primary_key=True),
    sa.Column("step", sa.String(200), primary_key=True),
    sa.Column("source", sa.String(500), nullable=False, comment="module:class, or what the worker says it is"),
    sa.Column("queue", sa.String(200), nullable=False),
    sa.Column("worker", sa.String(200), nullable=False),
    sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
)

ledger_table = sa.Table(
    "watership_ledger",
    Base.metadata,
    sa.Column("ledger_id", _COUNTED, primary_key=True, autoincrement=True),
    sa.Column("namespace", sa.String(100), nullable=False),
    sa.Column("saga_id", sa.Uuid, nullable=False, index=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False, comment="JSON: what came"),
)

# Sequences of these two are identities: whoever may insert needs no right of its own on a sequence.
start_table = sa.Table(
    "watership_start",
    Base.metadata,
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
sa.Index("watership_start_look", start_table.c.namespace, start_table.c.driver, start_table.c.look_at_ms)

signal_table = sa.Table(
    "watership_signal",
    Base.metadata,
    sa.Column("namespace", sa.String(100), primary_key=True),
    sa.Column("saga_id", sa.Uuid, primary_key=True),
    sa.Column("signal_id", sa.String(200), primary_key=True),
    sa.Column("driver", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("data", sa.Text, nullable=False, comment="JSON"),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("look_at_ms", sa.BigInteger, nullable=False, server_default="0", comment="not before: backed off"),
)

dead_letter_table = sa.Table(
    "watership_dead_letter",
    Base.metadata,
    sa.Column("id", _COUNTED, sa.Identity(), primary_key=True, autoincrement=True),
    sa.Column("namespace", sa.String(100), nullable=False),
    sa.Column("queue", sa.String(255), nullable=False, comment="the queue that it died in"),
    sa.Column("reason", sa.String(100), nullable=False, comment="the broker's: delivery_limit, expired, rejected, …"),
    sa.Column("kind", sa.String(255), nullable=False),
    sa.Column("message_id", sa.String(255)),
    sa.Column("saga_id", sa.Uuid),
    sa.Column("reply_to", sa.String(255)),
    sa.Column("headers", sa.Text, nullable=False, comment="JSON"),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column(
        "judge_at_ms", sa.BigInteger, comment="to be judged by the machine, not before this; null: nothing to judge"
    ),
    sa.Column("judged", sa.Text, comment="what came of it, in words"),
    sa.Column("judged_at_ms", sa.BigInteger),
    sa.Column("actor", sa.String(200), comment="who had it judged again, or discarded it"),
    sa.Column("actor_reason", sa.Text),
)
sa.Index("watership_dead_letter_newest", dead_letter_table.c.namespace, dead_letter_table.c.id)
sa.Index(
    "watership_dead_letter_judge",
    dead_letter_table.c.namespace,
    dead_letter_table.c.judge_at_ms,
    postgresql_where=dead_letter_table.c.judge_at_ms.is_not(None),
    sqlite_where=dead_letter_table.c.judge_at_ms.is_not(None),
)

# What a saga leaves when it is pruned: enough to tell a repeated start from a conflicting one (law 11).
tombstone_table = sa.Table(
    "watership_tombstone",
    Base.metadata,
    sa.Column("saga_id", sa.Uuid, primary_key=True),
    sa.Column("namespace", sa.String(100), nullable=False),
    sa.Column("driver", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("input_hash", sa.String(32), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
)

# An operator's choices, the newest of each saga stands: nobody's hand is overwritten (law 12).
plan_choice_table = sa.Table(
    "watership_plan_choice",
    Base.metadata,
    sa.Column("choice_id", _COUNTED, sa.Identity(), primary_key=True, autoincrement=True),
    sa.Column("namespace", sa.String(100), nullable=False),
    sa.Column("saga", sa.String(200), nullable=False),
    sa.Column("plan_hash", sa.String(32), comment="what starts get that name no plan; null: the newest again"),
    sa.Column("chosen_at_ms", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
sa.Index(
    "watership_plan_choice_newest",
    plan_choice_table.c.namespace,
    plan_choice_table.c.saga,
    plan_choice_table.c.choice_id,
)
