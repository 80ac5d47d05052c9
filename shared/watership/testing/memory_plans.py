"""Plans, operators' questions, and all that a service's database is, on a `MemoryDatabase`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from watership import codec
from watership.errors import StoreUnavailable
from watership.machine.changes import change_to_data
from watership.machine.plan import Plan
from watership.machine.state import MACHINE_VERSION
from watership.messages import AdminAnswer, AdminRequest, AdminVerb, HandlerOnWire
from watership.saga.storage.rows import changes_from_json
from watership.saga.storage.views import saga_view, summary_view
from watership.testing.memory_database import HandlerRecord, LogRow, MemoryDatabase, PlanRecord
from watership.testing.memory_line import Line, StraightLine
from watership.testing.memory_store import MemoryStore
from watership_orchestrator.plans import HANDLER_ALIVE_MS, PlanCache, PlanRow, taken


class MemoryPlanBook(PlanCache):
    """Plans and handlers. See `watership_orchestrator.plans.PlanBook`."""

    def __init__(
        self,
        database: MemoryDatabase,
        namespace: str,
        line: Line | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(now_s)
        self._database = database
        self._namespace = namespace
        self._line = line or StraightLine()

    async def _find(self, hashes: set[str], names: set[str]) -> Sequence[PlanRow]:
        await self._line.point("find plans")
        found = [
            (record.registered_at_ms, plan_hash, record)
            for (namespace, plan_hash), record in self._database.plans.items()
            if namespace == self._namespace and (plan_hash in hashes or record.saga in names)
        ]
        found.sort(key=lambda each: each[:2])
        return [PlanRow(plan_hash, record.saga, record.plan) for _, plan_hash, record in found]

    async def _release(self, worker: str) -> None:
        await self._line.point("release")
        transaction = self._database.begin(self._line)
        for key, record in self._database.handlers.items():
            if key[0] == self._namespace and record.worker == worker:
                transaction.keep("handlers", key, None)
        transaction.commit()
        await self._line.point("committed")

    async def _keep(self, worker: str, plans: Sequence[Plan], handlers: Sequence[HandlerOnWire]) -> list[str]:
        await self._line.point("keep plans")
        transaction = self._database.begin(self._line)
        now_ms = self._database.now_ms()
        refused: list[str] = []
        try:
            for plan in plans:
                if (self._namespace, plan.hash) not in self._database.plans:
                    record = PlanRecord(plan.saga, codec.dumps(plan.to_data()).decode(), now_ms)
                    transaction.keep("plans", (self._namespace, plan.hash), record)
            waiting = self._waiting_for({plan.saga for plan in plans}, now_ms)
            for key in waiting:
                await transaction.wait_lock(key)
                if key in self._waiting_for({plan.saga for plan in plans}, now_ms):
                    transaction.write(key, {"wake_at_ms": now_ms})
            for handler in handlers:
                known = self._database.handlers.get((self._namespace, handler.step))
                if known and known.source != handler.source and known.seen_at_ms >= now_ms - HANDLER_ALIVE_MS:
                    refused.append(taken(handler, known.source, known.worker, now_ms - known.seen_at_ms))
                    continue
                seen = HandlerRecord(handler.source, handler.queue, worker, now_ms)
                transaction.keep("handlers", (self._namespace, handler.step), seen)
            await self._line.point("commit")
            transaction.commit()
        finally:
            transaction.roll_back()
        await self._line.point("committed")
        return refused

    def _waiting_for(self, sagas: set[str], now_ms: int) -> list[uuid.UUID]:
        """Sagas that waited for one of these plans: they are looked at at once."""
        return [
            key
            for key, row in sorted(self._database.sagas.items())
            if row["namespace"] == self._namespace
            and row["driver"] == "orchestrator"
            and row["status"] == "PENDING"
            and row["name"] in sagas
            and row["wake_at_ms"] is not None
            and row["wake_at_ms"] > now_ms
        ]


class MemoryReader:
    """List and show. See `watership_orchestrator.admin.Admin`."""

    def __init__(self, database: MemoryDatabase, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def read(self, request: AdminRequest) -> AdminAnswer:
        """See `Admin.read`."""
        rows = [row for row in self._database.sagas.values() if row["namespace"] == self._namespace]
        if request.verb is AdminVerb.LIST:
            return AdminAnswer(data=[summary_view(row) for row in rows[-request.limit :]])
        for row in rows:
            if row["saga_id"] == request.saga_id:
                entries = self._database.logs.get(row["saga_id"], [])
                return AdminAnswer(data=saga_view(row, [_entry_view(entry) for entry in entries]))
        return AdminAnswer(code="saga_not_found", error=f"no saga has the id {request.saga_id}")


def _entry_view(entry: LogRow) -> dict[str, Any]:
    changes = [change_to_data(change) for change in changes_from_json(entry.changes)]
    return {"seq": entry.seq, "at_ms": entry.at_ms, "cause": entry.cause, "changes": changes}


class MemoryBacking:
    """All of it for one process. See `watership_orchestrator.ports.Backing`."""

    def __init__(
        self,
        database: MemoryDatabase,
        namespace: str,
        line: Line | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        machine_version: int = MACHINE_VERSION,
    ) -> None:
        self._line = line or StraightLine()
        self.store = MemoryStore(database, namespace, self._line, machine_version=machine_version)
        self.plans = MemoryPlanBook(database, namespace, self._line, now_s=now_s)
        self.reader = MemoryReader(database, namespace)

    async def check(self) -> None:
        """See `Backing.check`."""
        try:
            await self._line.point("check")
        except (OSError, SQLAlchemyError) as error:
            raise StoreUnavailable(f"the database does not answer: {error}") from error

    async def close(self) -> None:
        """See `Backing.close`."""
