"""The admin queue's verbs that move no saga: list, show, plans. The verbs that move one go through the engine."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership import codec
from watership.errors import OperationRefused, SagaNotFound, SagaPruned
from watership.machine.changes import change_to_data
from watership.messages import AdminAnswer, AdminRequest, AdminVerb
from watership.saga.storage.ledger import line_of, select_lines
from watership.saga.storage.plan_records import IN_FLIGHT
from watership.saga.storage.rows import changes_from_json
from watership.saga.storage.schema import IS_LOOKED_AT, dead_letter_table, log_table, saga_table
from watership.saga.storage.views import iso, ledger_view, saga_view, summary_view
from watership_orchestrator.fitting import BEGINNING, fitting_log, slim_ledger
from watership_orchestrator.judgement import Judgement
from watership_orchestrator.plan_verbs import OF_PLANS, answer_about_plans
from watership_orchestrator.waiting import tombstones

LOG_ENTRIES_MAX = 5_000
LEDGER_LINES_MAX = 100
LOG_BYTES_MAX = 524_288  # an answer is one message, and has a context beside the log
LETTER_BODY_CHARS_MAX = 131_072  # JSON may need six bytes for one
LEDGER_BYTES_MAX = 131_072
MOVES_A_SAGA = frozenset({AdminVerb.RETRY, AdminVerb.COMPENSATE})
OF_A_SAGA = MOVES_A_SAGA | {AdminVerb.SHOW}
OF_A_DEAD_LETTER = frozenset({AdminVerb.DEAD_SHOW, AdminVerb.DEAD_REQUEUE, AdminVerb.DEAD_DISCARD})


class Admin:
    """Reads sagas for operators."""

    def __init__(self, database: AsyncEngine, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def read(self, request: AdminRequest) -> AdminAnswer:
        """Answers a verb that moves no saga."""
        if request.verb is AdminVerb.LIST:
            return AdminAnswer(data=await self._list(request))
        if request.verb is AdminVerb.LEDGER:
            async with self._database.connect() as connection:
                lines = await connection.execute(select_lines(self._namespace, request.saga_id, request.limit))
                return AdminAnswer(data=slim_ledger([ledger_view(line_of(line)) for line in lines], LEDGER_BYTES_MAX))
        if request.verb is AdminVerb.DEAD_LIST:
            return AdminAnswer(data=await self._dead_letters(request))
        if request.verb in OF_PLANS:
            return await answer_about_plans(self._database, self._namespace, request)
        if request.verb in OF_A_DEAD_LETTER:
            return await self._dead_letter(request)
        assert request.saga_id is not None, "checked where the request was read"
        found = await self._show(request.saga_id)
        if found is None:
            return await self._gone(request.saga_id)
        found["log"] = fitting_log(found["log"], LOG_BYTES_MAX)
        found["ledger"] = slim_ledger(found["ledger"], LEDGER_BYTES_MAX)
        return AdminAnswer(data=found)

    async def _gone(self, saga_id: uuid.UUID) -> AdminAnswer:
        async with self._database.connect() as connection:
            pruned = await tombstones(connection, self._namespace, [saga_id])
        if pruned and pruned[0].ours:
            return AdminAnswer(code=SagaPruned.code, error=pruned[0].words)
        return AdminAnswer(code=SagaNotFound.code, error=f"no saga has the id {saga_id}")

    async def _list(self, request: AdminRequest) -> list[dict[str, Any]]:
        t = saga_table.c
        query = sa.select(t.saga_id, t.name, t.status, t.step, t.parked_reason, t.created_at_ms, t.updated_at_ms)
        query = query.where(t.namespace == self._namespace, t.driver == "orchestrator")
        if request.status is not None:
            status = request.status.upper()
            query = query.where(t.status == status)
            if status in IN_FLIGHT:
                query = query.where(IS_LOOKED_AT)
        if request.parked is not None:
            query = query.where(t.parked_reason.is_not(None) if request.parked else t.parked_reason.is_(None))
        query = query.order_by(t.created_at_ms.desc()).limit(request.limit)
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [summary_view(dict(row)) for row in rows]

    async def _dead_letters(self, request: AdminRequest) -> list[dict[str, Any]]:
        t = dead_letter_table.c
        query = sa.select(*_LETTER_LINE).where(t.namespace == self._namespace)
        if not request.everything:
            query = query.where(t.judged.is_(None))
        if request.saga_id is not None:
            query = query.where(t.saga_id == request.saga_id)
        async with self._database.connect() as connection:
            rows = (await connection.execute(query.order_by(t.id.desc()).limit(request.limit))).mappings().all()
        return [letter_view(dict(row)) for row in rows]

    async def _dead_letter(self, request: AdminRequest) -> AdminAnswer:
        t = dead_letter_table.c
        query = sa.select(dead_letter_table).where(t.namespace == self._namespace, t.id == request.letter_id)
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            return AdminAnswer(code=OperationRefused.code, error=f"there is no dead letter {request.letter_id}")
        body = row["body"].decode("utf-8", "replace")
        return AdminAnswer(
            data={
                **letter_view(dict(row)),
                "headers": codec.loads(row["headers"]),
                "body": body[:LETTER_BODY_CHARS_MAX].replace("\0", "�"),
                "body_bytes": len(row["body"]),
            }
        )

    async def _show(self, saga_id: uuid.UUID) -> dict[str, Any] | None:
        async with self._database.connect() as connection:
            query = sa.select(saga_table).where(
                saga_table.c.saga_id == saga_id, saga_table.c.namespace == self._namespace
            )
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            newest = row["seq"] - LOG_ENTRIES_MAX
            log_query = sa.select(log_table).where(
                log_table.c.saga_id == saga_id, (log_table.c.seq > newest) | (log_table.c.seq <= BEGINNING)
            )
            entries = (await connection.execute(log_query.order_by(log_table.c.seq))).mappings().all()
            late = (await connection.execute(select_lines(self._namespace, saga_id, LEDGER_LINES_MAX))).all()
        log = [
            {
                "seq": entry["seq"],
                "at_ms": entry["at_ms"],
                "cause": entry["cause"],
                "changes": [change_to_data(change) for change in changes_from_json(entry["changes"])],
            }
            for entry in entries
        ]
        return saga_view(dict(row), log, [line_of(line) for line in late])


_LETTER_LINE = [column for column in dead_letter_table.c if column.name not in ("headers", "body")]


def letter_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the dead letters. ``judged`` None: it waits, for the machine (``waits_for``) or for a person."""
    waits_for = None
    if row["judged"] is None:
        waits_for = "person" if row["judge_at_ms"] is None else "machine"
    return {
        "id": row["id"],
        "at": iso(row["at_ms"]),
        "queue": row["queue"],
        "reason": row["reason"],
        "kind": row["kind"],
        "message_id": row["message_id"],
        "saga_id": str(row["saga_id"]) if row["saga_id"] is not None else None,
        "waits_for": waits_for,
        "judged": row["judged"],
        "judged_at": iso(row["judged_at_ms"]) if row["judged_at_ms"] is not None else None,
        "actor": row["actor"],
        "actor_reason": row["actor_reason"],
    }


def operated(refusal: str | None, judgement: Judgement | None) -> AdminAnswer:
    """The answer to a verb that moved a saga, or did not."""
    if refusal is not None:
        missing = judgement is None or judgement.state is None
        return AdminAnswer(code=SagaNotFound.code if missing else OperationRefused.code, error=refusal)
    if judgement is None or judgement.state is None:
        return AdminAnswer(code=OperationRefused.code, error="the saga is busy elsewhere; try again")
    state = judgement.state
    return AdminAnswer(data={"saga_id": str(judgement.saga_id), "status": state.status.value, "seq": state.seq})
