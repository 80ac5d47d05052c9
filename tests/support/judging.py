"""A saga as the orchestrator judges it, batch after batch: pure, no broker, no database."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from watership.bus.topology import Topology
from watership.machine.apply import fold
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action
from watership.messages import AdminRequest, AdminVerb, ErrorOnWire, ReplyOutcome, StartSaga, StepReply
from watership.saga.storage.protocol import LogEntry
from watership_orchestrator.judgement import Arrival, Judgement, Plans, judge
from watership_orchestrator.records import StoredSaga

SAGA_ID = uuid.UUID(int=5)
NOW_MS = 1_000_000
TOPOLOGY = Topology("test")


def step(name: str, **settings: Any) -> StepPlan:
    return StepPlan(name, queue=f"q-{name}", **settings)


PLAN = Plan("OrderSaga", (step("A"), step("B"), step("C")))


def plans(*known: Plan, trouble: str | None = None) -> Plans:
    return Plans(
        {plan.hash: plan for plan in known}, {plan.saga: plan for plan in known}, lambda *_: trouble, lambda *_: trouble
    )


def start(context: dict[str, Any] | None = None, **fields: Any) -> StartSaga:
    return StartSaga(saga=fields.pop("saga", "OrderSaga"), saga_id=SAGA_ID, context=context or {"n": 1}, **fields)


def reply(name: str, outcome: str = "done", *, attempt: int = 1, run: str | None = None, **fields: Any) -> StepReply:
    action = fields.pop("action", Action.ACT)
    error = ErrorOnWire(code="boom", type_name="Boom", message="boom") if outcome == "failed" else None
    return StepReply(
        saga_id=SAGA_ID,
        step=name,
        action=action,
        attempt=attempt,
        run=run or f"{name}-{action}-{attempt}",
        outcome=ReplyOutcome(outcome),
        error=error,
        **fields,
    )


def admin(verb: AdminVerb, seq: int | None = None) -> AdminRequest:
    return AdminRequest(verb=verb, saga_id=SAGA_ID, actor="ann", reason="why", seq=seq)


class Row:
    """The saga as the store has it, batch after batch."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.plan = plan
        self.stored: StoredSaga | None = None
        self.log: list[LogEntry] = []
        self.now_ms = NOW_MS

    def batch(self, *arrivals: Any, trouble: str | None = None, known: bool = True, history: bool = True) -> Judgement:
        known_plans = plans(*([self.plan] if known else []), trouble=trouble)
        wrapped = [one if isinstance(one, Arrival) else Arrival(SAGA_ID, one) for one in arrivals]
        it = judge(SAGA_ID, self.stored, wrapped, known_plans, self.now_ms, self.log if history else None)
        if it.moved:
            assert it.state is not None
            self.log += it.entries
            assert [entry.seq for entry in self.log] == list(range(1, len(self.log) + 1))
            assert fold(str(SAGA_ID), [entry.changes for entry in self.log]) == it.state, "law 8"
            self.stored = stored_from(it)
        return it

    def owes(self, reason: str | None) -> None:
        assert self.stored is not None
        self.stored = dataclasses.replace(self.stored, owed=True, owed_reason=reason)


def stored_from(it: Judgement) -> StoredSaga:
    assert it.state is not None
    values: dict[str, Any] = {
        "saga_id": it.saga_id,
        "state": it.state,
        "input_hash": it.input_hash,
        "reply_to": it.reply_to,
        "traceparent": it.traceparent,
        "progress": it.progress,
        "owed": False,
        "owed_reason": None,
    }
    names = [field.name for field in dataclasses.fields(StoredSaga)]
    known: dict[str, Any] = {name: values.get(name) for name in names}
    return StoredSaga(**known)


def sent(it: Judgement) -> list[str]:
    return [f"{command.action} {command.step} {command.attempt}" for command in it.commands_to_send()]
