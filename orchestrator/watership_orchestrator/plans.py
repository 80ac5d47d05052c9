"""The plans and handlers that workers registered, and the check of a context against its plan's schema.

The only importer of jsonschema-rs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
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
from watership.saga.storage.schema import handler_table, plan_choice_table, plan_table, saga_table
from watership_orchestrator.judgement import Plans

NEWEST_FRESH_S = 1.0
NEWEST_MAX = 10_000
HANDLER_ALIVE_MS = 180_000


@dataclasses.dataclass(slots=True)
class _Newest:
    plan: Plan | None
    read_at_s: float


class PlanBook:
    """Plans by hash, which never change, and the one of each saga that foreign starts get, read again every second."""

    def __init__(self, engine: AsyncEngine, namespace: str) -> None:
        self._engine = engine
        self._namespace = namespace
        self._by_hash: dict[str, Plan] = {}
        self._newest: dict[str, _Newest] = {}
        self._validators: dict[str, Any] = {}

    async def get(self, hashes: Iterable[str], names: Iterable[str]) -> Plans:
        """The plans that a batch needs. Unknown ones are looked for in the database, at most once a second."""
        now_s = time.monotonic()
        wanted = {plan_hash for plan_hash in hashes if plan_hash not in self._by_hash}
        stale = {name for name in names if self._is_stale(name, now_s)}
        if wanted or stale:
            await self._read(wanted, stale, now_s)
        newest = {name: entry.plan for name, entry in self._newest.items() if entry.plan is not None}
        return Plans(self._by_hash, newest, self._trouble_with)

    def _is_stale(self, name: str, now_s: float) -> bool:
        entry = self._newest.get(name)
        return entry is None or now_s - entry.read_at_s >= NEWEST_FRESH_S

    async def _read(self, hashes: set[str], names: set[str], now_s: float) -> None:
        known, choice = plan_table.c, plan_choice_table.c
        chosen = sa.and_(
            choice.namespace == known.namespace, choice.saga == known.saga, choice.plan_hash == known.plan_hash
        )
        query = (
            sa.select(known.plan_hash, known.saga, known.plan)
            .outerjoin_from(plan_table, plan_choice_table, chosen)
            .where(known.namespace == self._namespace)
            .where(sa.or_(known.plan_hash.in_(hashes), known.saga.in_(names)))
            # The last one is what a start gets that names none: what an operator chose, else what was first registered
            # last, so that an old worker that restarts cannot take over.
            .order_by(choice.saga.is_not(None), known.registered_at_ms, known.plan_hash)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        if len(self._newest) > NEWEST_MAX:  # names come from anybody: what nobody registered must not pile up
            self._newest.clear()
        for name in names:
            self._newest[name] = _Newest(None, now_s)
        for row in rows:
            plan = self._by_hash.get(row.plan_hash)
            if plan is None:
                plan = self._by_hash[row.plan_hash] = Plan.from_data(codec.loads(row.plan))
            if row.saga in names:
                self._newest[row.saga] = _Newest(plan, now_s)

    def _trouble_with(self, plan: Plan, context: dict[str, Any]) -> str | None:
        validator = self._validators.get(plan.hash)
        if validator is None:
            validator = self._validators[plan.hash] = jsonschema_rs.validator_for(dict(plan.context_schema))
        if validator.is_valid(context):
            return None
        errors = list(validator.iter_errors(context))[:5]
        return "; ".join(f"{'.'.join(str(part) for part in e.instance_path) or 'it'}: {e.message}" for e in errors)

    # --- registering

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
        async with self._engine.begin() as connection:
            now_ms = await _clock_ms(connection)
            if plans:
                await self._keep_plans(connection, plans, now_ms)
            for handler in sorted(message.handlers, key=lambda handler: handler.step):
                problem = await self._keep_handler(connection, message.worker, handler, now_ms)
                if problem is not None:
                    refused.append(problem)
        for plan in plans:
            self._newest.pop(plan.saga, None)
        return refused

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
        async with self._engine.begin() as connection:
            await self._keep_plans(connection, plans, await _clock_ms(connection))
        for plan in plans:
            self._newest.pop(plan.saga, None)

    async def _release(self, worker: str) -> None:
        """A worker stopped: the names of its steps are free at once."""
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
        await connection.execute(  # sagas that waited for one of them are looked at at once
            sa.update(saga_table)
            .where(saga_table.c.namespace == self._namespace, saga_table.c.driver == "orchestrator")
            .where(saga_table.c.status == Status.PENDING.value, saga_table.c.wake_at_ms > now_ms)
            .where(saga_table.c.name.in_({plan.saga for plan in plans}))
            .values(wake_at_ms=now_ms)
        )

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
        seen_s = (now_ms - other.seen_at_ms) / 1000
        return (
            f"step {handler.step} is served by {other.source} already ({other.worker}, seen {seen_s:.0f} s ago), and "
            f"{handler.source} is another handler: a step's name is one within a namespace; give one of them another "
            f"`name`, or stop the other (a name is free {HANDLER_ALIVE_MS // 1000} s after its last worker was seen)"
        )


async def _clock_ms(connection: AsyncConnection) -> int:
    found = await connection.execute(sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)"))
    return int(found.scalar_one())
