"""Removes what is over, in small chunks: ended sagas with their logs, and old ledger lines, dead letters and signals.

A saga leaves a tombstone, so that a start of its id is still known for what it is (law 11). That is committed before the
saga goes: whoever would make it anew sees one or the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from watership import codec
from watership.errors import DefinitionError, LimitExceeded
from watership.machine.plan import Plan
from watership.machine.state import Status
from watership.saga.storage.engines import make_engine, parse_url
from watership.saga.storage.schema import (
    dead_letter_table,
    ledger_table,
    log_table,
    plan_table,
    saga_table,
    signal_table,
    tombstone_table,
)
from watership.saga.storage.trouble import Trouble, explained, trouble_of

CHUNK = 200
TRIES_MAX = 5
PAUSE_S = 0.01  # between two chunks, for those who wait for the same rows' pages
RETENTION_SETTING = "WATERSHIP_DEAD_LETTER_RETENTION_S"

_T = TypeVar("_T")
_saga = saga_table.c
_ENDED = [status.value for status in Status if status.terminal]


@dataclasses.dataclass(slots=True)
class Pruned:
    """How much went, or (a dry run) would go."""

    sagas: int = 0
    ledger_lines: int = 0
    dead_letters: int = 0
    signals: int = 0


class Pruner:
    """Prunes one namespace of one database. ``older_than_ms`` counts from a saga's last change, by the database's clock."""

    def __init__(self, url: str, namespace: str, *, older_than_ms: int, retention_ms: int) -> None:
        self._engine: AsyncEngine = make_engine(parse_url(url), pooled=False)
        self._namespace = namespace
        self._older_than_ms = older_than_ms
        self._retention_ms = retention_ms
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._insert: Any = sqlite.insert if self._is_sqlite else postgresql.insert

    async def run(self, *, dry_run: bool = False, on_progress: Callable[[Pruned], None] = lambda _: None) -> Pruned:
        """Removes, or counts. Raises `LimitExceeded` if a late message could still come for what would go."""
        try:
            await self._check_age()
            before_ms = await self._now_ms() - self._older_than_ms
            pruned = Pruned()
            if dry_run:
                await self._count(before_ms, pruned)
            else:
                await self._remove(before_ms, pruned, on_progress)
            return pruned
        except Exception as error:
            told = explained(error, self._engine.url)
            if told is None:
                raise
            raise told from error
        finally:
            await self._engine.dispose()

    # --- how young is too young

    async def _check_age(self) -> None:
        """What is in a queue, runs, or is a dead letter, may still come: its saga must be there to be asked."""

        async def look(connection: AsyncConnection) -> tuple[Sequence[str], bool]:
            plans = sa.select(plan_table.c.plan).where(plan_table.c.namespace == self._namespace)
            distributed = sa.select(sa.literal(1)).where(
                sa.exists().where(_saga.namespace == self._namespace, _saga.driver == "orchestrator")
            )
            found = (await connection.execute(plans)).scalars().all()
            return found, (await connection.execute(distributed)).first() is not None

        plans, is_distributed = await self._transact(look)
        least_ms = max((_longest_ms(text) for text in plans), default=0)
        if is_distributed:
            least_ms += self._retention_ms
        if self._older_than_ms < least_ms:
            raise LimitExceeded(
                "the age from which sagas may be pruned (their time in a queue, their timeout and the retention of dead "
                "letters together), in seconds,",
                value=self._older_than_ms // 1000,
                limit=-(-least_ms // 1000),
                setting=RETENTION_SETTING,
            )

    async def _now_ms(self) -> int:
        sql = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)" if self._is_sqlite else None
        clock = sa.text(f"SELECT {sql or 'CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)'}")  # noqa: S608

        async def look(connection: AsyncConnection) -> int:
            return int((await connection.execute(clock)).scalar_one())

        return await self._transact(look)

    # --- sagas

    def _over(self, before_ms: int) -> tuple[sa.ColumnElement[bool], ...]:
        """Ended, and nothing of it is still to be done, sent or seen to."""
        return (
            _saga.namespace == self._namespace,
            _saga.status.in_(_ENDED),
            _saga.created_at_ms < before_ms,
            _saga.updated_at_ms < before_ms,
            _saga.wake_at_ms.is_(None),
            _saga.parked_reason.is_(None),
            _saga.owed.is_(False),
        )

    async def _remove(self, before_ms: int, pruned: Pruned, on_progress: Callable[[Pruned], None]) -> None:
        after: tuple[int, uuid.UUID] | None = None
        while True:
            chunk = await self._chunk(before_ms, after)
            if not chunk:
                break
            after = (chunk[-1][1], chunk[-1][0])
            ids = [saga_id for saga_id, _ in chunk]
            await self._leave_tombstones(ids, before_ms)
            pruned.sagas += await self._remove_sagas(ids, before_ms)
            on_progress(pruned)
            await asyncio.sleep(PAUSE_S)
        for table, key, count in self._beside(before_ms):
            while True:
                gone = await self._remove_some(table, key, count)
                setattr(pruned, _NAMES[table], getattr(pruned, _NAMES[table]) + gone)
                on_progress(pruned)
                if gone < CHUNK:
                    break
                await asyncio.sleep(PAUSE_S)

    async def _chunk(self, before_ms: int, after: tuple[int, uuid.UUID] | None) -> list[tuple[uuid.UUID, int]]:
        """The next ones by their start: an index has them in this order, so that no chunk reads what another read."""
        query = sa.select(_saga.saga_id, _saga.created_at_ms).where(*self._over(before_ms))
        if after is not None:
            at_ms, saga_id = after
            same = sa.and_(_saga.created_at_ms == at_ms, _saga.saga_id > saga_id)
            query = query.where(_saga.created_at_ms >= at_ms, sa.or_(_saga.created_at_ms > at_ms, same))
        query = query.order_by(_saga.created_at_ms, _saga.saga_id).limit(CHUNK)

        async def look(connection: AsyncConnection) -> list[tuple[uuid.UUID, int]]:
            return [(uuid.UUID(bytes=row[0].bytes), row[1]) for row in await connection.execute(query)]

        return await self._transact(look)

    async def _leave_tombstones(self, ids: Sequence[uuid.UUID], before_ms: int) -> None:
        columns = (_saga.saga_id, _saga.namespace, _saga.driver, _saga.name, _saga.input_hash, _saga.status)
        source = sa.select(*columns, _saga.updated_at_ms).where(_saga.saga_id.in_(ids), *self._over(before_ms))
        names = [column.name for column in tombstone_table.columns]
        insert = self._insert(tombstone_table).from_select(names, source)
        insert = insert.on_conflict_do_update(
            index_elements=[tombstone_table.c.saga_id],
            set_={"status": insert.excluded.status, "ended_at_ms": insert.excluded.ended_at_ms},
        )
        await self._transact(lambda connection: connection.execute(insert))

    async def _remove_sagas(self, ids: Sequence[uuid.UUID], before_ms: int) -> int:
        """Those that are still over: a late act may have brought one back."""

        async def work(connection: AsyncConnection) -> int:
            delete = sa.delete(saga_table).where(_saga.saga_id.in_(ids), *self._over(before_ms))
            gone = (await connection.execute(delete.returning(_saga.saga_id))).scalars().all()
            if gone:
                await connection.execute(sa.delete(log_table).where(log_table.c.saga_id.in_(gone)))
            return len(gone)

        return await self._transact(work)

    # --- what lies beside sagas

    def _beside(self, before_ms: int) -> list[tuple[sa.Table, sa.ColumnElement[Any], sa.ColumnElement[bool]]]:
        """Table, key, and what of it is old: of the ledger and of signals what no living saga has, of dead letters what
        somebody or something has seen to.
        """
        ledger, letter, signal = ledger_table.c, dead_letter_table.c, signal_table.c

        def orphan(saga_id: sa.Column[Any]) -> sa.ColumnElement[bool]:
            return ~sa.exists().where(_saga.saga_id == saga_id)

        old = [
            (ledger_table, ledger.ledger_id, orphan(ledger.saga_id)),
            (dead_letter_table, letter.id, letter.judged.is_not(None)),
            (signal_table, signal.signal_id, orphan(signal.saga_id)),
        ]
        return [
            (table, key, sa.and_(table.c.namespace == self._namespace, table.c.at_ms < before_ms, condition))
            for table, key, condition in old
        ]

    async def _remove_some(self, table: sa.Table, key: sa.ColumnElement[Any], condition: sa.ColumnElement[bool]) -> int:
        some = sa.select(key).where(condition).limit(CHUNK)

        async def work(connection: AsyncConnection) -> int:
            deleted = await connection.execute(sa.delete(table).where(key.in_(some), condition))
            return deleted.rowcount

        return await self._transact(work)

    async def _count(self, before_ms: int, pruned: Pruned) -> None:
        async def look(connection: AsyncConnection) -> None:
            query = sa.select(sa.func.count()).select_from(saga_table).where(*self._over(before_ms))
            pruned.sagas = (await connection.execute(query)).scalar_one()
            for table, _, condition in self._beside(before_ms):
                query = sa.select(sa.func.count()).select_from(table).where(condition)
                setattr(pruned, _NAMES[table], (await connection.execute(query)).scalar_one())

        await self._transact(look)

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """One short transaction; again if it gave way to another. Each may run twice: what is gone is gone."""
        for attempt in range(1, TRIES_MAX + 1):
            try:
                async with self._engine.begin() as connection:
                    if self._is_sqlite:
                        await connection.exec_driver_sql("BEGIN IMMEDIATE")
                    else:
                        await connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
                    return await work(connection)
            except Exception as error:
                if trouble_of(error) is not Trouble.CONTENDED or attempt == TRIES_MAX:
                    raise
            await asyncio.sleep(0.1 * attempt)
        raise AssertionError("the last attempt returns or raises")


_NAMES = {ledger_table: "ledger_lines", dead_letter_table: "dead_letters", signal_table: "signals"}


def _longest_ms(text: str) -> int:
    """The longest time in a queue and run of a plan's steps together. A plan of a newer version cannot be read: 0."""
    try:
        plan = Plan.from_data(codec.loads(text))
    except (DefinitionError, ValueError):
        return 0
    return max((step.queue_within_ms + step.timeout_ms for step in plan.steps()), default=0)
