"""Folds what arrived for one saga in a batch through the machine: pure, no broker, no database.

It says what must be written and what must be sent once that has committed, and the fate of each arrival.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from watership import codec
from watership.errors import InvalidPayload, SagaConflict
from watership.machine import events as e
from watership.machine.apply import apply
from watership.machine.changes import Dispatched, Operated
from watership.machine.effects import NotifyEnd, NotifyParked, PublishEvent, SendCommand, effects_of
from watership.machine.plan import Plan
from watership.machine.react import Reaction, react
from watership.machine.state import Action, Outcome, SagaState, Status
from watership.messages import MISFIT, AdminRequest, AdminVerb, ReplyOutcome, Signal, StartSaga, StepReply
from watership.saga.storage.protocol import LogEntry, Tombstone
from watership_orchestrator.arrivals import UNREADABLE, Arrival, Mark, Plans, Rejection, too_large, within_limits
from watership_orchestrator.judged import Judgement
from watership_orchestrator.owed import UNCONFIRMED_YET, awaited_commands, is_events, is_unsent
from watership_orchestrator.records import StoredSaga, WaitingSignal
from watership_orchestrator.unserved import unserved

__all__ = ["Arrival", "Judgement", "NeedsHistory", "Plans", "Rejection", "judge"]

PLAN_LOOK_MS = 5_000
PLAN_LOOKS_MAX = 24
NOT_SERVED_RETRY_MS = 5_000
NOT_SERVED_MAX = 60
OVERTAKEN = "overtaken"
OUTCOMES = {ReplyOutcome(outcome.value): outcome for outcome in Outcome}
OPERATIONS: dict[AdminVerb, type[e.RetryRequested | e.CompensateRequested]] = {
    AdminVerb.RETRY: e.RetryRequested,
    AdminVerb.COMPENSATE: e.CompensateRequested,
}


class NeedsHistory(Exception):
    """A stale reply came: its saga must be judged again with its log at hand."""


def judge(
    saga_id: uuid.UUID,
    stored: StoredSaga | None,
    arrivals: Sequence[Arrival],
    plans: Plans,
    now_ms: int,
    history: Sequence[LogEntry] | None = None,
    tombstone: Tombstone | None = None,
) -> Judgement:
    """Everything that ``arrivals`` do to one saga, in their order. Raises `NeedsHistory` if its log must be known.

    ``tombstone``: there was such a saga; it was pruned.
    """
    if stored is None:
        judgement = Judgement(saga_id, None, "", None, None)
    else:
        judgement = Judgement(
            saga_id, stored.state, stored.input_hash, stored.reply_to, stored.traceparent, stored.progress
        )
        judgement.context_before = stored.state.context
        if stored.owed:
            judgement.owed_before = stored.owed_reason or UNCONFIRMED_YET
            judgement.awaited_before = awaited_commands(stored.state)
    judge_one = _Judge(judgement, plans, now_ms, history, tombstone)
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
        tombstone: Tombstone | None,
    ) -> None:
        self.it = judgement
        self.tombstone = tombstone
        self.plans = plans
        self.now_ms = now_ms
        self.history = history

    def arrival(self, arrival: Arrival) -> None:
        if arrival.row is None:
            self.it.by_message = self.it.by_message or arrival.message is not None
            self._judge(arrival)
            return
        entries, ledger, refused = len(self.it.entries), len(self.it.ledger), len(self.it.rejections)
        early = len(self.it.early)
        self._judge(arrival)
        if len(self.it.early) > early:
            return  # its saga does not run yet: the row stays
        self.it.unbacked = True
        if len(self.it.entries) > entries and arrival.mark is not None:
            self._leave(arrival.mark)
        self.it.told[id(arrival)] = self.it.came_since(entries, ledger, refused)

    def _judge(self, arrival: Arrival) -> None:
        message = arrival.message
        if message is None:
            self._look()
        elif isinstance(message, StartSaga):
            self._start(arrival, message)
        elif isinstance(message, StepReply):
            self._reply(arrival, message)
        elif isinstance(message, Signal):
            self._signal(arrival, message)
        else:
            self._operate(arrival, message)

    def _may_be_a_copy(self, reaction: Reaction) -> None:
        """Law 1: a message that nobody awaited is no outbox.

        It may have come over a channel that is gone, and its copy may be judged and acknowledged, from a time when it
        made no difference. If it makes one now, nothing may bring it again: what follows is owed in the row.
        """
        self.it.unbacked = self.it.unbacked or bool(reaction.changes)

    def _leave(self, mark: Mark) -> None:
        assert self.it.state is not None
        state = self.it.state.copy()
        state.seq += 1
        change = Operated(mark.actor, mark.verb, mark.reason)
        apply(state, change)
        self.it.state = state
        self.it.entries.append(LogEntry(state.seq, self.now_ms, mark.cause, (change,)))

    # --- starts

    def _start(self, arrival: Arrival, start: StartSaga) -> None:
        state = self.it.state
        trouble = arrival.unreadable
        try:
            codec.encode_context(start.context, what=f"saga {start.saga} {start.saga_id}: the context")
        except (InvalidPayload, ValueError) as error:
            if not arrival.must_stand:
                code = getattr(error, "code", InvalidPayload.code)
                self.it.rejections.append(Rejection(arrival, code, str(error)))
                return
            trouble, start = str(error), start.model_copy(update={"context": {}, "plan": UNREADABLE})
        input_hash = codec.input_hash(start.saga, start.context)
        if self.tombstone is not None and state is None:
            self._start_again(arrival, start, self.tombstone.name, self.tombstone.input_hash, input_hash)
            return
        if state is not None:
            self._start_again(arrival, start, state.name, self.it.input_hash, input_hash)
            return
        plan = self.plans.for_start(start)
        if trouble is None and plan is not None:
            trouble = self.plans.trouble_with(plan, start.context)
            if trouble is not None:
                trouble = f"the context of saga {start.saga} {start.saga_id} does not fit its schema: {trouble}"
        if trouble is not None and not arrival.must_stand:
            self.it.rejections.append(Rejection(arrival, InvalidPayload.code, trouble))
            return
        self.it.is_new, self.it.input_hash = True, input_hash
        self.it.reply_to, self.it.traceparent = arrival.reply_to, arrival.traceparent
        self.it.progress = start.progress
        self.it.state = SagaState(str(self.it.saga_id))
        plan = plan if trouble is None else None
        look_again_at_ms = None if plan is not None else self.now_ms + PLAN_LOOK_MS
        plan_hash = plan.hash if plan is not None else start.plan
        cause = arrival.mark.cause if arrival.mark is not None else "start"
        self._follow(plan, e.SagaStarted(start.saga, start.context, plan_hash, look_again_at_ms), cause)
        if trouble is not None:
            self._follow(None, e.ContextRefused(trouble), cause)

    # Law 11: the same id and input is the same saga; anything else is a conflict.
    def _start_again(self, arrival: Arrival, start: StartSaga, name: str, hash_before: str, input_hash: str) -> None:
        if name != start.saga or hash_before != input_hash:
            what = f"a saga {name}" if name != start.saga else "other input"
            reason = f"the id {start.saga_id} is taken: a saga was started under it with {what}"
            if arrival.must_stand:
                self.it.ledger.append((reason, start.to_body().decode()))
            else:
                self.it.rejections.append(Rejection(arrival, SagaConflict.code, reason))
            return
        if arrival.reply_to is not None:
            self.it.known_to.append(arrival.reply_to)
        if arrival.again and not self.it.is_new and self.it.state is not None:
            self._owed_again("start")

    # --- replies

    def _reply(self, arrival: Arrival, reply: StepReply) -> None:
        state = self.it.state
        if state is None:
            why = "there is no such saga" if self.tombstone is None else "its saga was pruned"
            self.it.ledger.append((why, reply.to_body().decode()))
            return
        plan = self.plans.of(state)
        not_served = reply.outcome is ReplyOutcome.NOT_SERVED
        step = state.peek(reply.step)
        if arrival.expired and (step is None or not step.of(reply.action).answered(reply.attempt)):
            return  # waiting in a queue is no outcome: the reaper sends the attempt again
        cause = f"{'not_served' if not_served else 'reply'}:{reply.step}:{reply.action}:{reply.attempt}:{reply.run}"
        awaited = state.awaits(reply.step, reply.action, reply.attempt)
        # A refusal that came before says nothing of a delivery since: the same attempt may have been sent anew, and run.
        if (not awaited or not_served) and self._knows(cause):
            if arrival.again:
                self._owed_again(cause)
            return
        if not_served:
            self._follow(plan, _not_served(reply, self.now_ms), cause)
            return
        reply = within_limits(state, reply)
        failure = reply.error.failure(reply.step) if reply.error is not None else None
        event_ = e.StepReplied(
            reply.step,
            reply.action,
            reply.attempt,
            reply.run,
            OUTCOMES[reply.outcome],
            reply.patch,
            reply.response,
            failure,
            reply.redelivered,
            certain=reply.certain,
            events=tuple({"name": event.name, "data": event.data} for event in reply.events) if reply.events else (),
        )
        reaction = self._follow(plan, event_, arrival.mark.cause if arrival.mark is not None else cause)
        if not awaited:
            self._may_be_a_copy(reaction)
        if reaction.ledger is not None:
            self.it.ledger.append((reaction.ledger, reply.to_body().decode()))

    # --- signals

    def _signal(self, arrival: Arrival, signal: Signal) -> None:
        state = self.it.state
        if self.tombstone is not None and state is None:
            self._refuse(arrival, self.tombstone.words, signal.to_body())
            return
        if state is None or state.status is Status.PENDING:  # kept beside it, until it runs
            data = codec.dumps(signal.data).decode()
            self.it.early.append(WaitingSignal(signal.saga_id, signal.signal_id, signal.name, data))
            return
        cause = f"signal:{signal.signal_id}"
        if self._knows(cause):
            if arrival.again:
                self._owed_again(cause)
            return
        plan = self.plans.of(state)
        wait = plan.waits.get(signal.name) if plan is not None else None
        trouble = None
        if plan is not None and wait is not None and wait.into is not None:
            trouble = self.plans.field_trouble(plan, wait.into, signal.data) or too_large(state, wait.into, signal.data)
        reaction = self._follow(plan, e.SignalReceived(signal.name, signal.data, trouble), cause)
        self._may_be_a_copy(reaction)
        if reaction.refused is not None:
            self._refuse(arrival, reaction.refused, signal.to_body())

    def _refuse(self, arrival: Arrival, why: str, body: bytes) -> None:
        self.it.refusals[id(arrival)] = why
        self.it.ledger.append((why, body.decode()))

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
            self._send_owed(state, plan, self.it.owed_before)
        if state.status is Status.PENDING:
            self._look_for_plan(state)
        else:
            for event in unserved(plan, state, self.plans.served, self.now_ms):
                self._follow(plan, event, "time")
            self._follow(plan, e.TimePassed(), "time")

    def _send_owed(self, state: SagaState, plan: Plan | None, owed: str) -> None:
        """What the saga awaits and owes, again: of a row that owes nobody knows which part of it was sent."""
        if state.emits:
            if self.history is None:
                raise NeedsHistory
            effects = [effect for entry in self.history for effect in effects_of(entry.seq, entry.changes)]
            self.it.notices.extend(effect for effect in effects if isinstance(effect, PublishEvent))
        commands = sorted(awaited_commands(state), key=lambda command: (command.step, command.action))
        for command in commands if not is_events(owed) else ():
            unsent = is_unsent(owed, command)
            again = e.DispatchRepeated(command.step, command.action, command.attempt, unsent, NOT_SERVED_MAX)
            self._follow(plan, again, "owed")
        if state.parked_reason is not None:
            self.it.notices.append(NotifyParked(state.seq, state.parked_reason))
        elif state.status.terminal:
            self.it.notices.append(NotifyEnd(state.seq, state.status))

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
            why = f"no saga has the id {request.saga_id}" if self.tombstone is None else self.tombstone.words
            self.it.refusals[id(arrival)] = why
            return
        cause = f"admin:{request.verb}:{arrival.message_id}"
        if arrival.again and arrival.message_id is not None and self._knows(cause):
            self._owed_again(cause)
            return
        event = OPERATIONS[request.verb](request.actor or "unknown", request.reason, request.seq)
        reaction = self._follow(self.plans.of(state), event, cause)
        self._may_be_a_copy(reaction)
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
        return reaction

    def withdraw_overtaken(self) -> None:
        """An act that this batch decided and then turned away from, or that no queue took, was never sent."""
        state = self.it.state
        if state is None or state.status is not Status.COMPENSATING:
            return
        unsent = {
            SendCommand(change.step, change.action, change.attempt)
            for entry in self.it.entries
            for change in entry.changes
            if isinstance(change, Dispatched)
        }
        owed = self.it.owed_before
        if owed is not None:
            unsent.update(command for command in self.it.awaited_before if is_unsent(owed, command))
        for command in sorted(unsent, key=lambda command: (command.step, command.action)):
            if command.action is Action.ACT and state.awaits(command.step, command.action, command.attempt):
                withdrawn = e.DispatchWithdrawn(command.step, command.action, command.attempt)
                self._follow(self.plans.of(state), withdrawn, OVERTAKEN)


def _not_served(reply: StepReply, now_ms: int) -> e.StepNotServed:
    misfit = reply.error.message if reply.error is not None and reply.error.code == MISFIT else None
    at_ms = now_ms + NOT_SERVED_RETRY_MS
    return e.StepNotServed(reply.step, reply.action, reply.attempt, at_ms, NOT_SERVED_MAX, reply.redelivered, misfit)
