"""The barrier's one table in a participant's own database, and the statements that claim and settle its rows.

It knows SQL and its dialects: PostgreSQL, SQLite, MariaDB and MySQL. What a row count means is the business of `barrier`.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase

from watership import codec
from watership.barrier_straight import run_straight
from watership.errors import ConfigurationError

BEGUN = "begun"  # its block has not ended; committed like that only by what commits behind our back
DONE = "done"
UNDONE = "undone"  # an act that was done, and whose compensation ran
EMPTY = "empty"  # the compensation came first: the act never ran, and never will


class BarrierBase(DeclarativeBase):
    """The declarative base of the barrier's table: put its ``metadata`` beside your own in Alembic's env."""


# Compared byte by byte on MariaDB and MySQL too, where "a" and "A" are equal by default.
_Name = sa.String(200).with_variant(mysql.VARCHAR(200, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
_Text = sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), "mysql", "mariadb")

barrier_table = sa.Table(
    "watership_barrier",
    BarrierBase.metadata,
    sa.Column("saga_id", sa.Uuid().with_variant(sa.Uuid(native_uuid=False), "mysql", "mariadb"), primary_key=True),
    sa.Column("step", _Name, primary_key=True),
    sa.Column("action", sa.String(16), primary_key=True),
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, nullable=False, comment="the attempt whose run wrote the row"),
    sa.Column("state", sa.String(16), nullable=False, comment="begun, done, undone or empty"),
    sa.Column("patch", _Text, comment="JSON: what the run changed in the saga's context"),
    sa.Column("response", _Text, comment="JSON: what the run answered"),
    sa.Column("events", _Text, comment="JSON: what the run told the world"),
    sa.Column("at_ms", sa.BigInteger, nullable=False, comment="by this database's clock"),
    sa.Index("watership_barrier_at", "at_ms"),
    mysql_engine="InnoDB",  # one without transactions would guard nothing
    mariadb_engine="InnoDB",
)

_row = barrier_table.c
_MYSQL_NOW = "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)"
_NOW_MS = {
    "postgresql": "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    "mysql": _MYSQL_NOW,
    "mariadb": _MYSQL_NOW,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row as it was stored. ``patch``, ``response`` and ``events`` are JSON data."""

    state: str
    patch: dict[str, Any] | None
    response: Any
    events: list[dict[str, Any]]


class StepRows:
    """The rows of one step of one saga, on a connection within a transaction. Blocking calls: for SQLAlchemy's ``run_sync``."""

    def __init__(self, connection: Connection, saga_id: uuid.UUID, step: str, attempt: int) -> None:
        self.connection = connection
        if not connection.in_transaction():
            connection.begin()
        self._step = {"of_saga": saga_id, "of_step": step}
        self._attempt = attempt
        self._dialect = connection.dialect.name
        now_ms(self._dialect)  # raises for a dialect that it does not know

    def insert(self, action: str, generation: int, state: str) -> bool:
        """Whether the row is ours. Waits for a transaction that has just inserted the same, and may roll back yet."""
        values = {"to_attempt": self._attempt, "to_state": state}
        return self._count(_insert(self._dialect), action, generation, values) == 1

    def move(self, action: str, generation: int, *, before: tuple[str, ...], after: str) -> bool:
        """Whether the row went from one of these states to another. Waits for whoever is changing it."""
        return self._count(_move(self._dialect, before), action, generation, {"to_state": after}) == 1

    def settle(
        self, action: str, generation: int, patch: dict[str, Any], response: Any, events: Sequence[dict[str, Any]]
    ) -> bool:
        """Whether the row of a block that has begun is there still; it is done now."""
        values = {
            "to_patch": codec.dumps(patch).decode() if patch else None,
            "to_response": codec.dumps(response).decode() if response is not None else None,
            "to_events": codec.dumps(list(events)).decode() if events else None,
        }
        return self._count(_settle(), action, generation, values) == 1

    def settled(self, action: str, generation: int) -> sa.Select[Any]:
        """A query that finds the row of a block that has ended, in its own transaction."""
        return _settled().params(**self._step, of_action=action, of_generation=generation)

    def read(self, action: str, generation: int | None = None) -> Row | None:
        """A row as it was committed last, or as we changed it; without a generation, the newest of its action."""
        values = {"of_action": action} if generation is None else {"of_action": action, "of_generation": generation}
        query = _read(newest=generation is None)
        found = self.connection.execute(query, {**self._step, **values}).one_or_none()
        if found is None:
            return None
        state, patch, response, events = found
        return Row(
            state,
            codec.loads(patch) if patch is not None else None,
            codec.loads(response) if response is not None else None,
            codec.loads(events) if events is not None else [],
        )

    def _count(self, statement: Any, action: str, generation: int, values: dict[str, Any]) -> int:
        whole = {**self._step, "of_action": action, "of_generation": generation, **values}
        return run_straight(self.connection, statement, whole)


# The statements, each made once: to make one anew for each command cost as much as its way to the database and back.
# Their arguments are the row's key (of_…) and what is written (to_…).


def _is(*, any_generation: bool = False) -> tuple[sa.ColumnElement[bool], ...]:
    mine = (
        _row.saga_id == sa.bindparam("of_saga"),
        _row.step == sa.bindparam("of_step"),
        _row.action == sa.bindparam("of_action"),
    )
    return mine if any_generation else (*mine, _row.generation == sa.bindparam("of_generation"))


@functools.cache
def _insert(dialect: str) -> Any:
    values = {
        "saga_id": sa.bindparam("of_saga"),
        "step": sa.bindparam("of_step"),
        "action": sa.bindparam("of_action"),
        "generation": sa.bindparam("of_generation"),
        "attempt": sa.bindparam("to_attempt"),
        "state": sa.bindparam("to_state"),
        "at_ms": now_ms(dialect),
    }
    if dialect == "postgresql":
        return postgresql.insert(barrier_table).values(values).on_conflict_do_nothing()
    if dialect == "sqlite":
        return sqlite.insert(barrier_table).values(values).on_conflict_do_nothing()
    # Not IGNORE, which turns a duplicate into a warning that drivers pass on, and takes a shared lock, so that
    # two who then want to write wait for each other. An update that changes nothing counts like an insert;
    # one that does change something counts two.
    return mysql.insert(barrier_table).values(values).on_duplicate_key_update(at_ms=_row.at_ms + 1)


@functools.cache
def _move(dialect: str, before: tuple[str, ...]) -> Any:
    update = sa.update(barrier_table).where(*_is(), sa.or_(*[_row.state == state for state in before]))
    return update.values(state=sa.bindparam("to_state"), at_ms=now_ms(dialect))


@functools.cache
def _settle() -> Any:
    texts: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in ("patch", "response", "events")}
    return sa.update(barrier_table).where(*_is(), _row.state == BEGUN).values(state=DONE, **texts)


@functools.cache
def _settled() -> sa.Select[Any]:
    return sa.select(_row.state).where(*_is(), _row.state == DONE)


@functools.cache
def _read(*, newest: bool) -> sa.Select[Any]:
    # Locked, though it is only read: MariaDB would show it as it was when the transaction first read anything.
    return (
        sa.select(_row.state, _row.patch, _row.response, _row.events)
        .where(*_is(any_generation=newest))
        .order_by(_row.generation.desc())
        .limit(1)
        .with_for_update(read=True)
    )


@functools.cache
def now_ms(dialect: str) -> sa.ColumnElement[int]:
    """The database's clock, in milliseconds. Raises `ConfigurationError` for a dialect that the barrier does not speak."""
    found = _NOW_MS.get(dialect)
    if found is None:
        raise ConfigurationError(
            f"the barrier knows {', '.join(sorted(_NOW_MS))}; this session is on {dialect}, where it was never tried"
        )
    return sa.literal_column(found, sa.BigInteger)


async def delete_older(connection: AsyncConnection, older_than_ms: int, limit: int) -> int:
    """Deletes at most ``limit`` rows that did not change for so long; how many it deleted."""
    old = _row.at_ms < now_ms(connection.dialect.name) - older_than_ms
    key = sa.tuple_(_row.saga_id, _row.step, _row.action, _row.generation)
    keys = (
        await connection.execute(
            sa.select(_row.saga_id, _row.step, _row.action, _row.generation)
            .where(old)
            .order_by(_row.at_ms)
            .limit(limit)
        )
    ).all()
    if not keys:
        return 0
    # `old` again: a compensation may have come in between, and made the row of its act young.
    deleted = await connection.execute(sa.delete(barrier_table).where(key.in_([tuple(found) for found in keys]), old))
    return deleted.rowcount
