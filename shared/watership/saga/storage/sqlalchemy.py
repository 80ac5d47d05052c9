"""Sagas in a SQL database, by SQLAlchemy: SQLite by aiosqlite, PostgreSQL by asyncpg."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from watership import codec
from watership.errors import ConfigurationError, SagaNotFound
from watership.machine.plan import Plan
from watership.machine.state import MACHINE_VERSION, SagaState, Status
from watership.saga.storage.database import Database
from watership.saga.storage.engines import (
    in_memory,
    leave_database,
    make_engine,
    parse_url,
    place,
    reopens,
    shared_database,
)
from watership.saga.storage.keeper import LeaseThread
from watership.saga.storage.ledger import insert_line, line_of, select_lines
from watership.saga.storage.protocol import (
    EarlySignal,
    HeldElsewhere,
    Lease,
    LeaseKeeper,
    LedgerLine,
    LogEntry,
    SagaLogEntry,
    SagaRecord,
    SagaStatus,
    SagaSummary,
    StartRow,
    Tombstone,
)
from watership.saga.storage.queries import EMBEDDED, commit_write, create_write
from watership.saga.storage.rows import changes_from_json, history_lines, state_from_row
from watership.saga.storage.schema import Base, log_table, plan_table, saga_table, start_table, tombstone_table
from watership.saga.storage.signals import early_signals, forget_signal, keep_signal, signal_of
from watership.saga.storage.starts import row_of, start_done, take_starts

__all__ = ["Base", "SqlAlchemySagaStorage"]

_saga = saga_table.c
_STATE_COLUMNS = (
    _saga.saga_id,
    _saga.name,
    _saga.plan_hash,
    _saga.status,
    _saga.seq,
    _saga.context,
    _saga.state,
    _saga.parked_reason,
    _saga.paused,
    _saga.input_hash,
    _saga.created_at_ms,
    _saga.updated_at_ms,
)

Source = AsyncSession | AsyncEngine | Callable[[], AsyncSession] | str | sa.URL


class SqlAlchemySagaStorage:
    """Keeps sagas in a SQL database. Making one is cheap and opens nothing: make one for each request if you like.

    ``source``: an `AsyncSession`, an `async_sessionmaker`, an `AsyncEngine` or a URL. Of a session or a factory only
    the bind is used: sagas are written on short connections of their own, so that a saga's progress is on record
    whatever becomes of the caller's transaction. An engine that is made from a URL is shared by all storages of that
    URL, and closed by the last one's `close`. Storages on one database with one ``namespace`` hold the same sagas.
    """

    def __init__(self, source: Source, *, namespace: str = "watership") -> None:
        self.namespace = self._namespace = namespace
        self._session: AsyncSession | None = None
        self._engine: AsyncEngine | None = None
        if isinstance(source, str | sa.URL):
            self._url = parse_url(source)
            if in_memory(self._url):
                self._engine = make_engine(self._url)  # each its own database: nothing else could find it
            self._owned = True
        else:
            self._engine, self._session = _bind_of(source)
            self._url = self._engine.url
            self._owned = False

    @property
    def session(self) -> AsyncSession:
        """The caller's session, or one of the caller's factory. Committing it is harmless: no saga is written by it."""
        if self._session is None:
            raise ConfigurationError("this storage was made of an engine or a URL: it has no session")
        return self._session

    @property
    def key(self) -> Hashable:
        """The database and the namespace; of a database in memory, its engine."""
        if in_memory(self._url):
            assert self._engine is not None
            return self._engine.sync_engine, self._namespace
        return place(self._url), self._namespace

    # --- writes ------------------------------------------------------------------------------------------------------

    async def create(
        self, saga_id: uuid.UUID, state: SagaState, entry: LogEntry, *, input_hash: str, lease_ms: int
    ) -> Lease | None:
        """See `SagaStorage.create`. Raises `SagaConflict` if a saga of another namespace has the id."""
        write = create_write(saga_id, state, entry, input_hash=input_hash, lease_ms=lease_ms)
        lease: Lease | None = await self._database().creates.put(write)
        return lease

    async def commit(self, lease: Lease, state: SagaState, entries: Sequence[LogEntry], *, release: bool) -> None:
        """See `SagaStorage.commit`."""
        await self._database().commits.put(commit_write(lease, state, entries, release=release))

    async def acquire(self, saga_id: uuid.UUID, *, lease_ms: int) -> Lease | HeldElsewhere | None:
        """See `SagaStorage.acquire`."""
        database = self._database()
        now = database.queries.now
        take = (
            sa.update(saga_table)
            .where(*self._own(saga_id), _saga.lease_until_ms <= now, _saga.machine_version <= MACHINE_VERSION)
            .values(epoch=_saga.epoch + 1, lease_until_ms=now + lease_ms)
            .returning(_saga.epoch, _saga.lease_until_ms)
        )
        look = sa.select(_saga.lease_until_ms - now, _saga.machine_version).where(*self._own(saga_id))

        async def work(connection: AsyncConnection) -> Lease | HeldElsewhere | None:
            taken = (await connection.execute(take)).one_or_none()
            if taken is not None:
                return Lease(saga_id, taken[0], taken[1], taken[1] - lease_ms)
            found = (await connection.execute(look)).one_or_none()
            if found is None:
                return None
            if found[1] > MACHINE_VERSION:
                raise ConfigurationError(
                    f"saga {saga_id} was written by a newer Watership (machine {found[1]}, this is {MACHINE_VERSION}): "
                    f"upgrade this process"
                )
            return HeldElsewhere(max(found[0], 1))

        return await database.write(work)

    async def renew(self, leases: Sequence[Lease], *, lease_ms: int) -> None:
        """See `SagaStorage.renew`."""
        if not leases:
            return
        database = self._database()

        async def work(connection: AsyncConnection) -> None:
            await database.queries.renew(connection, leases, lease_ms)

        await database.write(work)

    async def release(self, lease: Lease, *, retry_in_ms: int | None = None) -> None:
        """See `SagaStorage.release`."""
        database = self._database()
        values: dict[str, Any] = {"lease_until_ms": 0}
        if retry_in_ms is not None:  # what has no moment stays without: it ended
            values["wake_at_ms"] = sa.case((_saga.wake_at_ms.is_not(None), database.queries.now + retry_in_ms))
        statement = sa.update(saga_table).where(*self._own(lease.saga_id), _saga.epoch == lease.epoch).values(values)
        await database.write(lambda connection: connection.execute(statement))

    def keeper(self) -> LeaseKeeper | None:
        """See `SagaStorage.keeper`. None for what a thread of ours cannot open again: it is in memory, or not our driver's."""
        return LeaseThread(self._url, self._namespace) if reopens(self._url) else None

    async def keep_signal(self, signal: EarlySignal) -> None:
        """See `SagaStorage.keep_signal`."""
        database = self._database()
        statement = keep_signal(database.queries, self._namespace, signal)
        await database.write(lambda connection: connection.execute(statement))

    async def forget_signal(self, signal: EarlySignal) -> None:
        """See `SagaStorage.forget_signal`."""
        statement = forget_signal(self._namespace, signal)
        await self._database().write(lambda connection: connection.execute(statement))

    async def save_plan(self, plan: Plan) -> None:
        """See `SagaStorage.save_plan`."""
        database = self._database()
        values = {
            "namespace": self._namespace,
            "plan_hash": plan.hash,
            "saga": plan.saga,
            "plan": codec.dumps(plan.to_data()).decode(),
        }
        statement = database.queries.insert(plan_table).values(**values, registered_at_ms=database.queries.now)
        await database.write(lambda connection: connection.execute(statement.on_conflict_do_nothing()))

    async def create_tables(self) -> None:
        """Makes the tables that are missing: for tests and scripts. A service runs ``watership db upgrade``."""
        await self._database().create_tables()

    async def close(self) -> None:
        """See `SagaStorage.close`."""
        await leave_database(self, self._identity, self._namespace)

    # --- reads -------------------------------------------------------------------------------------------------------

    async def load(self, saga_id: uuid.UUID) -> SagaRecord | None:
        """See `SagaStorage.load`."""
        rows = await self._select(sa.select(*_STATE_COLUMNS).where(*self._own(saga_id)))
        if not rows:
            return None
        row = dict(zip((column.name for column in _STATE_COLUMNS), rows[0], strict=True))
        state = state_from_row(row)
        return SagaRecord(saga_id, state, row["input_hash"], row["created_at_ms"], row["updated_at_ms"])

    async def due(self, *, names: Sequence[str], limit: int) -> list[uuid.UUID]:
        """See `SagaStorage.due`."""
        rows = await self._select(self._due(names=names, limit=limit))
        return [saga_id for (saga_id,) in rows]

    def _due(self, *, names: Sequence[str], limit: int) -> sa.Select[tuple[uuid.UUID]]:
        now = self._database().queries.now_once
        return (
            sa.select(_saga.saga_id)
            .where(
                _saga.namespace == self._namespace,
                _saga.driver == EMBEDDED,
                _saga.wake_at_ms.is_not(None),  # the index is partial: the planner must see that it will do
                _saga.wake_at_ms <= now,
                _saga.lease_until_ms <= now,
                _saga.parked_reason.is_(None),
                _saga.paused.is_(False),
                _saga.name.in_(names),
                _saga.machine_version <= MACHINE_VERSION,
            )
            .order_by(_saga.wake_at_ms)
            .limit(limit)
        )

    async def history(self, saga_id: uuid.UUID) -> list[LogEntry]:
        """See `SagaStorage.history`."""
        log = log_table.c
        statement = (
            sa.select(log.seq, log.at_ms, log.cause, log.changes)
            .join_from(log_table, saga_table, log.saga_id == _saga.saga_id)
            .where(*self._own(saga_id))
            .order_by(log.seq)
        )
        rows = await self._select(statement)
        return [LogEntry(seq, at_ms, cause, changes_from_json(changes)) for seq, at_ms, cause, changes in rows]

    async def early_signals(
        self, *, saga_id: uuid.UUID | None = None, names: Sequence[str] | None = None, limit: int = 100
    ) -> list[EarlySignal]:
        """See `SagaStorage.early_signals`."""
        return [signal_of(row) for row in await self._select(early_signals(self._namespace, saga_id, names, limit))]

    async def load_plan(self, plan_hash: str) -> Plan | None:
        """See `SagaStorage.load_plan`."""
        plan = plan_table.c
        where = (plan.namespace == self._namespace, plan.plan_hash == plan_hash)
        rows = await self._select(sa.select(plan.plan).where(*where))
        return Plan.from_data(codec.loads(rows[0][0])) if rows else None

    async def list_sagas(
        self, *, limit: int, status: Status | None = None, parked: bool | None = None
    ) -> list[SagaSummary]:
        """See `SagaStorage.list_sagas`."""
        statement = (
            sa.select(_saga.saga_id, _saga.name, _saga.status, _saga.step, _saga.parked_reason)
            .add_columns(_saga.created_at_ms, _saga.updated_at_ms)
            .where(_saga.namespace == self._namespace, _saga.driver == EMBEDDED)
            .order_by(_saga.created_at_ms.desc())
            .limit(limit)
        )
        if status is not None:
            statement = statement.where(_saga.status == status.value)
        if parked is not None:
            statement = statement.where(_saga.parked_reason.is_not(None) if parked else _saga.parked_reason.is_(None))
        return [
            SagaSummary(saga_id, name, Status(status), step, reason, _moment(created), _moment(updated))
            for saga_id, name, status, step, reason, created, updated in await self._select(statement)
        ]

    async def take_starts(self, *, names: Sequence[str], limit: int, hold_ms: int) -> list[StartRow]:
        """See `SagaStorage.take_starts`."""
        database = self._database()
        now = database.queries.now_once
        there = sa.select(start_table.c.start_id).where(start_table.c.namespace == self._namespace).limit(1)
        if not await self._select(there):  # the usual case costs no write
            return []
        taken = take_starts(self._namespace, EMBEDDED, names, limit=limit, hold_ms=hold_ms, now=now)

        async def work(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(taken)).all()

        return sorted(map(row_of, await database.write(work)), key=lambda row: row.start_id)

    async def start_done(self, start_id: int) -> None:
        """See `SagaStorage.start_done`."""
        await self._database().write(lambda connection: connection.execute(start_done(start_id)))

    async def tombstone(self, saga_id: uuid.UUID) -> Tombstone | None:
        """See `SagaStorage.tombstone`."""
        rows = await self._select(sa.select(tombstone_table).where(tombstone_table.c.saga_id == saga_id))
        if not rows:
            return None
        ours = rows[0].namespace == self._namespace and rows[0].driver == EMBEDDED
        return Tombstone(saga_id, rows[0].name, rows[0].input_hash, rows[0].status, ours)

    async def keep_in_ledger(self, saga_id: uuid.UUID, reason: str, message: str) -> None:
        """See `SagaStorage.keep_in_ledger`."""
        database = self._database()
        statement = insert_line(self._namespace, saga_id, reason, message, database.queries.now)
        await database.write(lambda connection: connection.execute(statement))

    async def ledger(self, *, saga_id: uuid.UUID | None = None, limit: int) -> list[LedgerLine]:
        """See `SagaStorage.ledger`."""
        return [line_of(row) for row in await self._select(select_lines(self._namespace, saga_id, limit))]

    async def now_ms(self) -> int:
        """See `SagaStorage.now_ms`."""
        rows = await self._select(sa.select(self._database().queries.now))
        return int(rows[0][0])

    async def load_saga_state(
        self, saga_id: uuid.UUID, *, read_for_update: bool = False
    ) -> tuple[SagaStatus, dict[str, Any], int]:
        """See `SagaStorage.load_saga_state`."""
        record = await self.load(saga_id)
        if record is None:
            raise SagaNotFound(f"there is no saga {saga_id}")
        state = record.state
        return SagaStatus(state.status.value.lower()), state.context, state.seq

    async def get_step_history(self, saga_id: uuid.UUID) -> list[SagaLogEntry]:
        """See `SagaStorage.get_step_history`."""
        entries = await self.history(saga_id)
        if not entries:
            raise SagaNotFound(f"there is no saga {saga_id}")
        return history_lines(saga_id, entries)

    # --- the database ------------------------------------------------------------------------------------------------

    @property
    def _identity(self) -> Hashable:
        """What storages must have in common to share connections: the very engine, or the very URL, password and all."""
        if self._engine is not None:
            return self._engine.sync_engine
        return self._url

    def _database(self) -> Database:
        return shared_database(self, self._identity, self._namespace, self._make_engine, owned=self._owned)

    def _make_engine(self) -> AsyncEngine:
        return self._engine if self._engine is not None else make_engine(self._url)

    def _own(self, saga_id: uuid.UUID) -> tuple[sa.ColumnElement[bool], ...]:
        return (_saga.saga_id == saga_id, _saga.namespace == self._namespace, _saga.driver == EMBEDDED)

    async def _select(self, statement: sa.Select[*tuple[Any, ...]]) -> Sequence[Any]:
        async def work(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(statement)).all()

        return await self._database().read(work)


def _bind_of(
    source: AsyncSession | AsyncEngine | Callable[[], AsyncSession],
) -> tuple[AsyncEngine, AsyncSession | None]:
    if isinstance(source, AsyncEngine):
        return source, None
    session = source() if callable(source) else source
    if not isinstance(session, AsyncSession):
        raise ConfigurationError(
            f"SqlAlchemySagaStorage takes an AsyncSession, an async_sessionmaker, an AsyncEngine or a URL, "
            f"not a {type(session).__name__}; an engine comes from create_async_engine()"
        )
    if isinstance(session.bind, AsyncEngine):
        return session.bind, session
    if session.bind is not None:  # a connection: a test's, perhaps, that will roll back all it did
        return session.bind.engine, session
    try:
        bind = session.get_bind()
    except sa.exc.UnboundExecutionError as error:
        raise ConfigurationError(
            "this session has no engine: make its factory with async_sessionmaker(engine)"
        ) from error
    return AsyncEngine(bind.engine), session


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC)
