"""Folds what arrived for one saga in a batch through the machine: pure, no broker, no database.

It says what must be written and what must be sent once that has committed, and the fate of each arrival.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from watership import codec
from watership.errors import InvalidPayload, LimitExceeded, SagaConflict
from watership.machine import events as e
from watership.machine.changes import Dispatched
from watership.machine.effects import Effect, NotifyEnd, NotifyParked, SendCommand, effects_of
from watership.machine.plan import Plan
from watership.machine.react import Reaction, react
from watership.machine.state import Action, Outcome, SagaState, Status
from watership.messages import AdminRequest, AdminVerb, ErrorOnWire, ReplyOutcome, StartSaga, StepReply
from watership.saga.storage.protocol import LogEntry
from watership_orchestrator.owed import UNCONFIRMED_YET, awaited_commands, is_unsent
from watership_orchestrator.store import StoredSaga

PLAN_LOOK_MS = 5_000
PLAN_LOOKS_MAX = 24
NOT_SERVED_RETRY_MS = 5_000
NOT_SERVED_MAX = 60
OVERTAKEN = "overtaken"


@dataclasses.dataclass(slots=True, eq=False)
class Arrival:
    """One thing to decide on. ``message`` None: the reaper's look.

    ``redelivered``: it was delivered to us before. ``in_doubt``: it was judged before, in a transaction of which nobody
    knows whether it was committed. Either way, what follows from it may be on record already, and never sent.
    """

    saga_id: uuid.UUID
    message: StartSaga | StepReply | AdminRequest | None
    redelivered: bool = False
    reply_to: str | None = None
    traceparent: str | None = None
    message_id: str | None = None
    in_doubt: bool = False

    @property
    def again(self) -> bool:
        """It may have been judged before."""
        return self.redelivered or self.in_doubt


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """An arrival that made no difference and must be given back: dead-lettered, with the reason to its sender."""

    arrival: Arrival
    code: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Plans:
    """The plans that a batch needs, looked up before it is judged; and whether a context satisfies one's schema."""

    by_hash: dict[str, Plan]
    newest: dict[str, Plan]
    trouble_with: Callable[[Plan, dict[str, Any]], str | None]

    def for_start(self, start: StartSaga) -> Plan | None:
        """The plan that a start runs on: the one that it names, else the newest of its saga's name."""
        if start.plan is not None:
            return self.by_hash.get(start.plan)
        return self.newest.get(start.saga)

    def of(self, state: SagaState) -> Plan | None:
        """The plan that a saga is pinned to (law 7), or may be pinned to now."""
        if state.plan_hash is not None:
            return self.by_hash.get(state.plan_hash)
        return self.newest.get(state.name)


def _within_limits(state: SagaState, reply: StepReply) -> StepReply:
    """A reply whose patch takes the context over its limit: the step may have acted, and its changes cannot be kept."""
    if not reply.patch:
        return reply
    size = len(codec.dumps({**state.context, **reply.patch}))
    if size <= codec.CONTEXT_BYTES_MAX:
        return reply
    over = LimitExceeded(
        f"saga {reply.saga_id}, step {reply.step}: the context's size in bytes",
        value=size,
        limit=codec.CONTEXT_BYTES_MAX,
    )
    error = ErrorOnWire(code=over.code, type_name=type(over).__name__, message=str(over))
    return reply.model_copy(update={"outcome": ReplyOutcome.UNKNOWN, "patch": None, "response": None, "error": error})


class NeedsHistory(Exception):
    """A stale reply came: its saga must be judged again with its log at hand."""


@dataclasses.dataclass(slots=True)
class Judgement:
    """What a batch does to one saga. ``state`` None: there is no such saga, and none is made."""

    saga_id: uuid.UUID
    state: SagaState | None
    input_hash: str
    reply_to: str | None
    traceparent: str | None
    is_new: bool = False
    entries: list[LogEntry] = dataclasses.field(default_factory=list)
    notices: list[Effect] = dataclasses.field(default_factory=list)
    commands: set[SendCommand] = dataclasses.field(default_factory=set)
    ledger: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    refusals: dict[int, str] = dataclasses.field(default_factory=dict)  # by id() of the arrival
    known_to: list[str] = dataclasses.field(default_factory=list)  # who started it again, and would know
    owed_before: str | None = None  # the reason, if what the row awaited before this batch was not confirmed
    awaited_before: frozenset[SendCommand] = frozenset()
    looked: bool = False
    by_message: bool = False

    @property
    def moved(self) -> bool:
        """Something must be written."""
        return bool(self.entries)

    def owed_reason(self) -> str | None:
        """Why the row owes something from this commit on; None: nothing, or its message brings it back."""
        if self.by_message and self.owed_before is None:
            return None  # the hot path: what follows is brought back by its message
        sends = self.commands_to_send()
        if (sends or self.notices) and not self.by_message:
            return UNCONFIRMED_YET
        if self.owed_before is None or self.state is None:
            return None
        forgotten = self.awaited_before.intersection(awaited_commands(self.state)).difference(sends)
        ended = self.state.status.terminal or self.state.parked_reason is not None
        told = any(isinstance(notice, NotifyEnd | NotifyParked) for notice in self.notices)
        return self.owed_before if forgotten or (ended and not told) else None

    def commands_to_send(self) -> list[SendCommand]:
        """What the final state awaits of what was decided: a command that was overtaken is not sent."""
        state = self.state
        if state is None:
            return []
        awaited = [c for c in self.commands if state.awaits(c.step, c.action, c.attempt)]
        if state.status is Status.COMPENSATING:  # law 3: one that was to be sent again, and then the saga turned
            awaited = [c for c in awaited if c.action is Action.COMPENSATE]
        return sorted(awaited, key=lambda c: (c.step, c.action))


def judge(
    saga_id: uuid.UUID,
    stored: StoredSaga | None,
    arrivals: Sequence[Arrival],
    plans: Plans,
    now_ms: int,
    history: Sequence[LogEntry] | None = None,
) -> Judgement:
    """Everything that ``arrivals`` do to one saga, in their order. Raises `NeedsHistory` if its log must be known."""
    if stored is None:
        judgement = Judgement(saga_id, None, "", None, None)
    else:
        judgement = Judgement(saga_id, stored.state, stored.input_hash, stored.reply_to, stored.traceparent)
        if stored.owed:
            judgement.owed_before = stored.owed_reason or UNCONFIRMED_YET
            judgement.awaited_before = awaited_commands(stored.state)
    judge_one = _Judge(judgement, plans, now_ms, history)
    for arrival in arrivals:
        judge_one.arrival(arrival)
    judge_one.withdraw_overtaken()
    return judgement


class _Judge:
    def __init__(
        self,
        judgement: Judgement,
        plans: Plans,
        now_ms: int,
        history: Sequence[LogEntry] | None,
    ) -> None:
        self.it = judgement
        self.plans = plans
        self.now_ms = now_ms
        self.history = history
        self.decided_now: set[SendCommand] = set()

    def arrival(self, arrival: Arrival) -> None:
        message = arrival.message
        if message is None:
            self._look()
        elif isinstance(message, StartSaga):
            self.it.by_message = True
            self._start(arrival, message)
        elif isinstance(message, StepReply):
            self.it.by_message = True
            self._reply(arrival, message)
        else:
            self.it.by_message = True
            self._operate(arrival, message)

    # --- starts

    def _start(self, arrival: Arrival, start: StartSaga) -> None:
        state = self.it.state
        try:
            codec.encode_context(start.context, what=f"saga {start.saga} {start.saga_id}: the context")
        except (InvalidPayload, ValueError) as error:
            code = getattr(error, "code", InvalidPayload.code)
            self.it.rejections.append(Rejection(arrival, code, str(error)))
            return
        input_hash = codec.input_hash(start.saga, start.context)
        if state is not None:
            self._start_again(arrival, start, state, input_hash)
            return
        plan = self.plans.for_start(start)
        trouble = self.plans.trouble_with(plan, start.context) if plan is not None else None
        if trouble is not None:
            reason = f"the context of saga {start.saga} {start.saga_id} does not fit its schema: {trouble}"
            self.it.rejections.append(Rejection(arrival, InvalidPayload.code, reason))
            return
        self.it.is_new, self.it.input_hash = True, input_hash
        self.it.reply_to, self.it.traceparent = arrival.reply_to, arrival.traceparent
        self.it.state = SagaState(str(self.it.saga_id))
        look_again_at_ms = None if plan is not None else self.now_ms + PLAN_LOOK_MS
        plan_hash = plan.hash if plan is not None else start.plan
        self._follow(plan, e.SagaStarted(start.saga, start.context, plan_hash, look_again_at_ms), "start")

    # Law 11: the same id and input is the same saga; anything else is a conflict.
    def _start_again(self, arrival: Arrival, start: StartSaga, state: SagaState, input_hash: str) -> None:
        if state.name != start.saga or self.it.input_hash != input_hash:
            what = f"a saga {state.name}" if state.name != start.saga else "other input"
            reason = f"the id {start.saga_id} is taken: a saga was started under it with {what}"
            self.it.rejections.append(Rejection(arrival, SagaConflict.code, reason))
            return
        if arrival.reply_to is not None:
            self.it.known_to.append(arrival.reply_to)
        if arrival.again and not self.it.is_new:
            self._owed_again("start")

    # --- replies

    def _reply(self, arrival: Arrival, reply: StepReply) -> None:
        state = self.it.state
        if state is None:
            self.it.ledger.append(("there is no such saga", reply.to_body().decode()))
            return
        plan = self.plans.of(state)
        if reply.outcome is ReplyOutcome.NOT_SERVED:
            at_ms = self.now_ms + NOT_SERVED_RETRY_MS
            event = e.StepNotServed(reply.step, reply.action, reply.attempt, at_ms, NOT_SERVED_MAX, reply.redelivered)
            self._follow(plan, event, f"not_served:{reply.step}:{reply.action}:{reply.attempt}:{reply.run}")
            return
        cause = f"reply:{reply.step}:{reply.action}:{reply.attempt}:{reply.run}"
        known = False
        if not state.awaits(reply.step, reply.action, reply.attempt):
            known = self._knows(cause)
            if known:
                if arrival.again:
                    self._owed_again(cause)
                return
        reply = _within_limits(state, reply)
        failure = reply.error.failure(reply.step) if reply.error is not None else None
        event_ = e.StepReplied(
            reply.step,
            reply.action,
            reply.attempt,
            reply.run,
            Outcome(reply.outcome.value),
            reply.patch,
            reply.response,
            failure,
            reply.redelivered,
            known,
        )
        reaction = self._follow(plan, event_, cause)
        if reaction.ledger is not None:
            self.it.ledger.append((reaction.ledger, reply.to_body().decode()))

    def _knows(self, cause: str) -> bool:
        if any(entry.cause == cause for entry in self.it.entries):
            return True
        if self.it.is_new:
            return False
        if self.history is None:
            raise NeedsHistory
        return any(entry.cause == cause for entry in self.history)

    def _owed_again(self, cause: str) -> None:
        """A message of which the log knows came again: what followed from it may never have been sent (law 6)."""
        if self.history is None:
            raise NeedsHistory
        found = next((entry for entry in self.history if entry.cause == cause), None)
        if found is None or self.it.state is None:
            return
        plan = self.plans.of(self.it.state)
        # A reply that came while its attempt was put off may be taken once more, when that is sent again. And what was
        # overtaken in a batch has no message of its own: any message from before it brings it back.
        later = [entry for entry in self.history if entry.seq > found.seq and entry.cause in (cause, OVERTAKEN)]
        for effect in [effect for entry in (found, *later) for effect in effects_of(entry.seq, entry.changes)]:
            if not isinstance(effect, SendCommand):
                self.it.notices.append(effect)
            else:
                again = e.DispatchRepeated(effect.step, effect.action, effect.attempt, unsent=False)
                self._follow(plan, again, f"again:{cause}")

    # --- the reaper's look

    def _look(self) -> None:
        state = self.it.state
        self.it.looked = True
        if state is None:
            return
        plan = self.plans.of(state)
        if self.it.owed_before is not None:
            for command in sorted(awaited_commands(state), key=lambda command: (command.step, command.action)):
                unsent = is_unsent(self.it.owed_before, command)
                again = e.DispatchRepeated(command.step, command.action, command.attempt, unsent, NOT_SERVED_MAX)
                self._follow(plan, again, "owed")
            if state.parked_reason is not None:
                self.it.notices.append(NotifyParked(state.seq, state.parked_reason))
            elif state.status.terminal:
                self.it.notices.append(NotifyEnd(state.seq, state.status))
        if state.status is Status.PENDING:
            self._look_for_plan(state)
        else:
            self._follow(plan, e.TimePassed(), "time")

    def _look_for_plan(self, state: SagaState) -> None:
        plan = self.plans.of(state)
        if plan is None:
            if state.plan_due_at_ms is None or state.plan_due_at_ms > self.now_ms or state.parked_reason is not None:
                return
            self._follow(None, e.PlanMissing(self.now_ms + PLAN_LOOK_MS, PLAN_LOOKS_MAX), "look for plan")
            return
        trouble = self.plans.trouble_with(plan, state.context)
        if trouble is not None:
            reason = f"its context does not fit the schema of {plan.saga}: {trouble}"
            self._follow(plan, e.ContextRefused(reason), "look for plan")
        else:
            self._follow(plan, e.PlanFound(plan.hash), "look for plan")

    # --- operators

    def _operate(self, arrival: Arrival, request: AdminRequest) -> None:
        state = self.it.state
        if state is None:
            self.it.refusals[id(arrival)] = f"no saga has the id {request.saga_id}"
            return
        cause = f"admin:{request.verb}:{arrival.message_id}"
        if arrival.again and arrival.message_id is not None and self._knows(cause):
            self._owed_again(cause)
            return
        kind = e.RetryRequested if request.verb is AdminVerb.RETRY else e.CompensateRequested
        event = kind(request.actor or "unknown", request.reason, request.seq)
        reaction = self._follow(self.plans.of(state), event, cause)
        if reaction.refused is not None:
            self.it.refusals[id(arrival)] = reaction.refused

    # --- the machine

    def _follow(self, plan: Plan | None, event: e.Event, cause: str) -> Reaction:
        assert self.it.state is not None
        reaction = react(plan, self.it.state, event, self.now_ms)
        if reaction.changes:
            self.it.state = reaction.state
            self.it.entries.append(LogEntry(reaction.state.seq, self.now_ms, cause, reaction.changes))
        for effect in reaction.effects:
            if isinstance(effect, SendCommand):
                self.it.commands.add(effect)
            else:
                self.it.notices.append(effect)
        self.decided_now.update(
            SendCommand(change.step, change.action, change.attempt)
            for change in reaction.changes
            if isinstance(change, Dispatched)
        )
        return reaction

    def withdraw_overtaken(self) -> None:
        """An act that this batch decided and then turned away from, or that no queue took, was never sent."""
        state = self.it.state
        if state is None or state.status is not Status.COMPENSATING:
            return
        unsent = set(self.decided_now)
        owed = self.it.owed_before
        if owed is not None:
            unsent.update(command for command in self.it.awaited_before if is_unsent(owed, command))
        for command in sorted(unsent, key=lambda command: (command.step, command.action)):
            if command.action is Action.ACT and state.awaits(command.step, command.action, command.attempt):
                withdrawn = e.DispatchWithdrawn(command.step, command.action, command.attempt)
                self._follow(self.plans.of(state), withdrawn, OVERTAKEN)
