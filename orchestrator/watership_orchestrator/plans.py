"""The plans and handlers that workers registered, and the check of a context against its plan's schema.

The only importer of jsonschema-rs.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jsonschema_rs
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from watership import codec
from watership.errors import DefinitionError
from watership.machine.plan import Plan
from watership.machine.state import Status
from watership.messages import HandlerOnWire, RegisterWorker
from watership.saga.storage.plan_records import standing_choices
from watership.saga.storage.schema import handler_table, plan_table, saga_table
from watership_orchestrator.judgement import Plans

log = logging.getLogger("watership.orchestrator")

NEWEST_FRESH_S = 1.0
NEWEST_MAX = 10_000
HANDLER_ALIVE_MS = 180_000
SERVED_FRESH_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class PlanRow:
    """A plan as it is kept: its JSON under its hash."""

    plan_hash: str
    saga: str
    plan: str


@dataclasses.dataclass(slots=True)
class _Newest:
    plan: Plan | None
    read_at_s: float


class PlanCache(abc.ABC):
    """Plans by hash, which never change, and the one of each saga that foreign starts get, read again every second.

    Where they are kept is its subclasses' affair.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._by_hash: dict[str, Plan] = {}
        self._newest: dict[str, _Newest] = {}
        self._validators: dict[str, Any] = {}
        self._served: frozenset[str] | None = None
        self._served_at_s = float("-inf")

    async def _find_served(self) -> frozenset[str] | None:
        """The steps that workers have announced of late; None: nobody keeps that."""
        return None

    @abc.abstractmethod
    async def _find(self, hashes: set[str], names: set[str]) -> Sequence[PlanRow]:
        """The plans of these hashes or of these sagas; of each saga last the one that a start gets that names none."""

    @abc.abstractmethod
    async def _release(self, worker: str) -> None:
        """A worker stopped: the names of its steps are free at once."""

    @abc.abstractmethod
    async def _keep(self, worker: str, plans: Sequence[Plan], handlers: Sequence[HandlerOnWire]) -> list[str]:
        """Keeps what a worker announced, in one transaction; what it refused, a sentence each."""

    async def get(self, hashes: Iterable[str], names: Iterable[str]) -> Plans:
        """The plans that a batch needs. Unknown ones are looked for in the database, at most once a second."""
        now_s = self._now_s()
        wanted = {plan_hash for plan_hash in hashes if plan_hash not in self._by_hash}
        stale = {name for name in names if self._is_stale(name, now_s)}
        if wanted or stale:
            await self._read(wanted, stale, now_s)
        if now_s - self._served_at_s >= SERVED_FRESH_S:
            self._served, self._served_at_s = await self._find_served(), now_s
        newest = {name: entry.plan for name, entry in self._newest.items() if entry.plan is not None}
        return Plans(self._by_hash, newest, self._trouble_with, self._field_trouble, self._served)

    def _is_stale(self, name: str, now_s: float) -> bool:
        entry = self._newest.get(name)
        return entry is None or now_s - entry.read_at_s >= NEWEST_FRESH_S

    async def _read(self, hashes: set[str], names: set[str], now_s: float) -> None:
        rows = await self._find(hashes, names)
        if len(self._newest) > NEWEST_MAX:  # names come from anybody: what nobody registered must not pile up
            self._newest.clear()
        for name in names:
            self._newest[name] = _Newest(None, now_s)
        for row in rows:
            plan = self._by_hash.get(row.plan_hash) or self._plan_of(row)
            if row.saga in names:
                self._newest[row.saga] = _Newest(plan, now_s)

    def _plan_of(self, row: PlanRow) -> Plan | None:
        """None: a newer version's, whose sagas are left to it; a start is put off until one of its reapers looks."""
        try:
            plan = self._by_hash[row.plan_hash] = Plan.from_data(codec.loads(row.plan))
        except DefinitionError as error:
            log.warning("plan %s of saga %s cannot be read here: %s", row.plan_hash, row.saga, error)
            return None
        return plan

    def _trouble_with(self, plan: Plan, context: dict[str, Any]) -> str | None:
        return self._trouble(plan.hash, plan.context_schema, context)

    def _field_trouble(self, plan: Plan, field: str, value: Any) -> str | None:
        schema = plan.context_schema.get("properties", {}).get(field)
        if schema is None:
            return f"the context of {plan.saga} has no field {field}"
        branches = [branch for branch in schema.get("anyOf", ()) if branch.get("type") != "null"]
        if value is not None and len(branches) == 1:
            schema = branches[0]  # what is wrong about it is said by the one type that it may have
        whole: dict[str, Any] = {"properties": {field: schema}}  # so that what is wrong is said with the field's name
        if "$defs" in plan.context_schema:
            whole["$defs"] = plan.context_schema["$defs"]
        return self._trouble(f"{plan.hash}.{field}.{value is None}", whole, {field: value})

    def _trouble(self, key: str, schema: Mapping[str, Any], value: Any) -> str | None:
        validator = self._validators.get(key)
        if validator is None:
            validator = self._validators[key] = jsonschema_rs.validator_for(dict(schema))
        if validator.is_valid(value):
            return None
        errors = list(validator.iter_errors(value))[:5]
        return "; ".join(f"{'.'.join(str(part) for part in e.instance_path) or 'it'}: {e.message}" for e in errors)

    @staticmethod
    def checked(data: Any) -> Plan:
        """A plan from its JSON data, with a schema that can be used. Raises `DefinitionError` or ``ValueError``."""
        if not isinstance(data, dict):
            raise DefinitionError(f"a plan must be a JSON object, it is a {type(data).__name__}")
        plan = Plan.from_data(data)
        jsonschema_rs.validator_for(dict(plan.context_schema))
        return plan

    async def keep(self, plans: Sequence[Plan]) -> None:
        """Keeps plans that came with starts; sagas that wait for one of them are looked at at once."""
        await self._keep("", plans, ())
        for plan in plans:
            self._newest.pop(plan.saga, None)

    async def register(self, message: RegisterWorker) -> list[str]:
        """Keeps the plans and handlers that a worker announced; what it refused, a sentence each."""
        if message.leaving:
            await self._release(message.worker)
            return []
        refused: list[str] = []
        plans: list[Plan] = []
        for data in message.plans:
            try:
                plans.append(self.checked(data))
            except (DefinitionError, ValueError) as error:
                refused.append(f"a plan of worker {message.worker}: {error}")
        handlers = sorted(message.handlers, key=lambda handler: handler.step)
        refused += await self._keep(message.worker, plans, handlers)
        for plan in plans:
            self._newest.pop(plan.saga, None)
        return refused


def taken(handler: HandlerOnWire, source: str, worker: str, seen_ms_ago: int) -> str:
    """Why a handler is refused: another one, ``source``, has its name."""
    return (
        f"step {handler.step} is served by {source} already ({worker}, seen {seen_ms_ago / 1000:.0f} s ago), and "
        f"{handler.source} is another handler: a step's name is one within a namespace; give one of them another "
        f"`name`, or stop the other (a name is free {HANDLER_ALIVE_MS // 1000} s after its last worker was seen)"
    )


class PlanBook(PlanCache):
    """Plans and handlers in Postgres."""

    def __init__(self, engine: AsyncEngine, namespace: str) -> None:
        super().__init__()
        self._engine = engine
        self._namespace = namespace

    async def _find(self, hashes: set[str], names: set[str]) -> Sequence[PlanRow]:
        known, choices = plan_table.c, standing_choices(self._namespace)
        choice = choices.c
        chosen = sa.and_(choice.saga == known.saga, choice.plan_hash == known.plan_hash)
        query = (
            sa.select(known.plan_hash, known.saga, known.plan)
            .outerjoin_from(plan_table, choices, chosen)
            .where(known.namespace == self._namespace)
            .where(sa.or_(known.plan_hash.in_(hashes), known.saga.in_(names)))
            # The last one is what a start gets that names none: what an operator chose, else what was first registered
            # last, so that an old worker that restarts cannot take over.
            .order_by(choice.saga.is_not(None), known.registered_at_ms, known.plan_hash)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [PlanRow(row.plan_hash, row.saga, row.plan) for row in rows]

    async def _find_served(self) -> frozenset[str] | None:
        table = handler_table.c
        now_ms = sa.literal_column("extract(epoch FROM clock_timestamp()) * 1000", sa.BigInteger)
        query = sa.select(table.step).where(
            table.namespace == self._namespace, table.seen_at_ms > now_ms - HANDLER_ALIVE_MS
        )
        async with self._engine.connect() as connection:
            return frozenset((await connection.execute(query)).scalars())

    # --- registering

    async def _keep(self, worker: str, plans: Sequence[Plan], handlers: Sequence[HandlerOnWire]) -> list[str]:
        refused: list[str] = []
        async with self._engine.begin() as connection:
            now_ms = await _clock_ms(connection)
            if plans:
                await self._keep_plans(connection, plans, now_ms)
            for handler in handlers:
                problem = await self._keep_handler(connection, worker, handler, now_ms)
                if problem is not None:
                    refused.append(problem)
        return refused

    async def _release(self, worker: str) -> None:
        table = handler_table
        async with self._engine.begin() as connection:
            await connection.execute(
                sa.delete(table).where(table.c.namespace == self._namespace, table.c.worker == worker)
            )

    async def _keep_plans(self, connection: Any, plans: Sequence[Plan], now_ms: int) -> None:
        rows = [
            {
                "namespace": self._namespace,
                "plan_hash": plan.hash,
                "saga": plan.saga,
                "plan": codec.dumps(plan.to_data()).decode(),
                "registered_at_ms": now_ms,
            }
            for plan in plans
        ]
        await connection.execute(insert(plan_table).on_conflict_do_nothing(), rows)
        # Sagas that waited for one of them are looked at at once. In the order of the index that has no finished ones: the
        # planner would go through any that begins with the namespace, and one that it chose on empty tables it keeps.
        of = saga_table.c
        pending = (of.status == Status.PENDING.value, of.wake_at_ms > now_ms)
        found = (
            sa.select(of.saga_id)
            .where(of.namespace == self._namespace, of.driver == "orchestrator", *pending)
            .where(of.name.in_({plan.saga for plan in plans}))
            .order_by(of.wake_at_ms)
        )
        await connection.execute(sa.update(saga_table).where(of.saga_id.in_(found), *pending).values(wake_at_ms=now_ms))

    async def _keep_handler(self, connection: Any, worker: str, handler: HandlerOnWire, now_ms: int) -> str | None:
        table = handler_table
        row = {
            "namespace": self._namespace,
            "step": handler.step,
            "source": handler.source,
            "queue": handler.queue,
            "worker": worker,
            "seen_at_ms": now_ms,
        }
        mine = sa.or_(table.c.source == handler.source, table.c.seen_at_ms < now_ms - HANDLER_ALIVE_MS)
        statement = insert(table).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=[table.c.namespace, table.c.step],
            set_={name: statement.excluded[name] for name in ("source", "queue", "worker", "seen_at_ms")},
            where=mine,
        )
        kept = (await connection.execute(statement.returning(table.c.step))).first()
        if kept is not None:
            return None
        other = (
            await connection.execute(
                sa.select(table.c.source, table.c.worker, table.c.seen_at_ms).where(
                    table.c.namespace == self._namespace, table.c.step == handler.step
                )
            )
        ).one()
        return taken(handler, other.source, other.worker, now_ms - other.seen_at_ms)


async def _clock_ms(connection: AsyncConnection) -> int:
    found = await connection.execute(sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)"))
    return int(found.scalar_one())
