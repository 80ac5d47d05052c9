"""given/when/expect: what the machine decides, told as a story. No handler runs, nothing is stored, time is virtual."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Self

from watership.errors import error_code, error_lineage
from watership.machine import events as e
from watership.machine.changes import Change
from watership.machine.effects import PublishEvent, SendCommand
from watership.machine.plan import Plan
from watership.machine.react import Reaction, react
from watership.machine.state import Action, Failure, Outcome, Phase, SagaState, Status
from watership.saga.compile import Definition, compile_saga
from watership.saga.models import shape_of
from watership.saga.saga import Saga
from watership.saga.signals import make_signal, signal_event
from watership.saga.step import StepEvent, Verified

SAGA_ID = "00000000-0000-4000-8000-000000000001"
NOW_MS = 1_700_000_000_000
TURNS_MAX = 10_000


def given(saga: type[Saga[Any]] | Plan) -> Scenario:
    """A scenario for a saga, or for a plan.

    ::

        (
            given(OrderSaga)
            .started(context)
            .expect_act("ReserveStock")
            .when_done("ReserveStock", patch={"reservation_id": "r-1"})
            .expect_act("ChargeCard")
            .when_failed("ChargeCard")
            .expect_compensate("ReserveStock")
            .when_done("ReserveStock")
            .expect_status("COMPENSATED")
        )
    """
    if isinstance(saga, Plan):
        return Scenario(saga)
    definition = compile_saga(saga)
    return Scenario(definition.plan, definition)


class Scenario:
    """One saga's story. ``when...`` and ``after`` are what happens, ``expect...`` raise AssertionError if it is not so.

    `state`, `log` (one tuple of changes for each entry) and `last` (what followed from the latest event) are there
    to look at.
    """

    def __init__(self, plan: Plan, definition: Definition | None = None, *, now_ms: int = NOW_MS) -> None:
        self.plan = plan
        self._definition = definition
        self.now_ms = now_ms
        self.state = SagaState(SAGA_ID)
        self.log: list[tuple[Change, ...]] = []
        self.last: Reaction | None = None
        self._sent: list[SendCommand] = []
        self._runs = 0

    # --- what happens

    def started(self, context: Any = None, *, plan_known: bool = True) -> Self:
        """The saga is started. ``context``: an object of its context class, or JSON data. ``plan_known`` False: PENDING."""
        context = {} if context is None else context
        data = context if isinstance(context, dict) else shape_of(type(context)).dump(context)
        look_again_at_ms = None if plan_known else self.now_ms + 5_000
        plan_hash = self.plan.hash if plan_known else None
        return self.when(e.SagaStarted(self.plan.saga, data, plan_hash, look_again_at_ms))

    def when(self, event: e.Event) -> Self:
        """Any event of the machine."""
        self.last = react(self.plan, self.state, event, self.now_ms)
        if self.last.changes:
            self.log.append(self.last.changes)
        self.state = self.last.state
        self._sent = [effect for effect in self.last.effects if isinstance(effect, SendCommand)]
        return self

    def when_done(
        self,
        step: str,
        patch: Mapping[str, Any] | None = None,
        response: Any = None,
        *,
        action: str | None = None,
        attempt: int | None = None,
        events: Sequence[StepEvent] = (),
    ) -> Self:
        """A worker reports "done". Of the action that is under way, and its newest attempt, unless you say which."""
        event = self._reply(step, Outcome.DONE, action, attempt)
        emitted = tuple({"name": one.name, "data": one.data} for one in events)
        patched = dict(patch) if patch else None
        return self.when(dataclasses.replace(event, patch=patched, response=response, events=emitted))

    def when_failed(
        self,
        step: str,
        error: type[Exception] | Exception | None = None,
        *,
        action: str | None = None,
        attempt: int | None = None,
        redelivered: bool = False,
    ) -> Self:
        """A worker reports "failed": it had no effect. ``redelivered``: its command had been delivered before."""
        event = self._reply(step, Outcome.FAILED, action, attempt)
        return self.when(dataclasses.replace(event, failure=_failure(step, error), redelivered=redelivered))

    def when_unknown(
        self,
        step: str,
        patch: Mapping[str, Any] | None = None,
        error: type[Exception] | Exception | None = None,
        *,
        action: str | None = None,
        attempt: int | None = None,
        redelivered: bool = False,
    ) -> Self:
        """A worker reports "unknown": it may have had an effect."""
        event = self._reply(step, Outcome.UNKNOWN, action, attempt)
        failure = _failure(step, error) if error is not None else None
        patched = dict(patch) if patch else None
        return self.when(dataclasses.replace(event, patch=patched, failure=failure, redelivered=redelivered))

    def when_verified(
        self, step: str, answer: Verified | str, patch: Mapping[str, Any] | None = None, *, attempt: int | None = None
    ) -> Self:
        """A worker answers what came of an act: "done", "not_done" or "still_unknown"."""
        outcomes = {
            Verified.DONE: Outcome.DONE,
            Verified.NOT_DONE: Outcome.FAILED,
            Verified.STILL_UNKNOWN: Outcome.UNKNOWN,
        }
        event = self._reply(step, outcomes[Verified(answer)], Action.VERIFY, attempt)
        return self.when(dataclasses.replace(event, patch=dict(patch) if patch else None))

    def when_signalled(self, name: str, data: Any = None) -> Self:
        """Somebody sends the signal ``name``. A scenario of a saga class checks that ``data`` fits, as production does."""
        signal = make_signal(uuid.UUID(SAGA_ID), name, data, None)
        if self._definition is None:
            return self.when(e.SignalReceived(name, signal.data))
        return self.when(signal_event(self._definition, signal))

    def when_not_served(self, step: str, *, refusals_max: int = 60, redelivered: bool = False) -> Self:
        """A worker got the command that is under way, and does not have the step. It is sent again 5 s later."""
        reply = self._reply(step, Outcome.FAILED, None, None)
        retry_at_ms = self.now_ms + 5_000
        return self.when(e.StepNotServed(step, reply.action, reply.attempt, retry_at_ms, refusals_max, redelivered))

    def after(self, seconds: float) -> Self:
        """Time passes. Whatever falls due on the way happens at its moment."""
        until_ms = self.now_ms + round(seconds * 1000)
        sent: list[SendCommand] = []
        for _ in range(TURNS_MAX):
            due_ms = self.state.due_at_ms
            if due_ms is None or due_ms > until_ms or self.state.status is Status.PENDING:
                self.now_ms, self._sent = until_ms, sent
                return self
            self.now_ms = max(self.now_ms, due_ms)
            self.when(e.TimePassed())
            sent += self._sent
        raise AssertionError(f"time stands still: the saga is due at {self.state.due_at_ms}, whatever is done")

    def when_retried(self, reason: str = "mended", *, actor: str = "operator", seq: int | None = None) -> Self:
        """An operator has the saga go on now. ``seq``: the log entry that they had seen."""
        return self.when(e.RetryRequested(actor, reason, seq))

    def when_cancelled(self, reason: str = "unwanted", *, actor: str = "operator", seq: int | None = None) -> Self:
        """An operator has the saga undone. ``seq``: the log entry that they had seen."""
        return self.when(e.CompensateRequested(actor, reason, seq))

    # --- what must be so

    def expect_act(self, step: str, *, attempt: int | None = None) -> Self:
        """The latest event told a worker to act."""
        return self._expect_command(step, Action.ACT, attempt)

    def expect_compensate(self, step: str, *, attempt: int | None = None) -> Self:
        """The latest event told a worker to compensate."""
        return self._expect_command(step, Action.COMPENSATE, attempt)

    def expect_verify(self, step: str, *, attempt: int | None = None) -> Self:
        """The latest event asked a worker what came of the act."""
        return self._expect_command(step, Action.VERIFY, attempt)

    def expect_waiting(self, name: str, *, seconds: float | None = None) -> Self:
        """The saga waits in this ``Sleep`` or ``Wait``; ``seconds``: for so long from now, at the longest."""
        state = self.state.peek(name)
        if state is None or state.act.phase is not Phase.WAITING or state.act.due_at_ms is None:
            found = [waiting for waiting, step in self.state.steps.items() if step.act.phase is Phase.WAITING]
            raise AssertionError(f"expected it to wait in {name}; it waits in {', '.join(found) or 'nothing'}")
        left_s = (state.act.due_at_ms - self.now_ms) / 1000
        if seconds is not None and left_s != seconds:
            raise AssertionError(f"expected {name} to wait for {seconds} s, it waits for {left_s} s")
        return self

    def expect_event(self, name: str, data: Any = None) -> Self:
        """The latest event had a step's event published."""
        found = [effect for effect in self.last.effects if isinstance(effect, PublishEvent)] if self.last else []
        if all((effect.name, effect.data) != (name, data) for effect in found):
            told = ", ".join(f"{effect.name} {effect.data!r}" for effect in found)
            raise AssertionError(f"expected the event {name} with {data!r}; published: {told or 'nothing'}")
        return self

    def expect_no_command(self) -> Self:
        """The latest event told no worker anything (else than what was expected already)."""
        if self._sent:
            raise AssertionError(f"expected no command, {self._sent_in_words()}")
        return self

    def expect_status(self, status: str) -> Self:
        """The saga has this status, and is not parked."""
        if self.state.status != status or self.state.parked_reason is not None:
            parked = f", parked: {self.state.parked_reason}" if self.state.parked_reason else ""
            raise AssertionError(f"expected the status {status}, it is {self.state.status}{parked}")
        return self

    def expect_parked(self, *words: str) -> Self:
        """The saga waits for a person, and its reason has all of ``words``."""
        reason = self.state.parked_reason
        if reason is None or any(word not in reason for word in words):
            raise AssertionError(f"expected it parked with {words}, its reason is {reason!r}")
        return self

    def expect_refused(self, *words: str) -> Self:
        """The operator's verb, or the signal, was refused with a reason that has all of ``words``."""
        return self._expect_words("refused", words)

    def expect_ledger(self, *words: str) -> Self:
        """The latest reply was not awaited: it went to the ledger with a reason that has all of ``words``."""
        return self._expect_words("ledger", words)

    def expect_context(self, **fields: Any) -> Self:
        """The context has these values."""
        found = {name: self.state.context.get(name) for name in fields}
        if found != fields:
            raise AssertionError(f"expected the context to have {fields}, it has {found}")
        return self

    # --- how

    def _expect_words(self, where: str, words: tuple[str, ...]) -> Self:
        text = getattr(self.last, where)
        if text is None or any(word not in text for word in words):
            raise AssertionError(f"expected {where} with {words}, it is {text!r}")
        return self

    def _expect_command(self, step: str, action: Action, attempt: int | None) -> Self:
        for command in self._sent:
            if command.step == step and command.action is action and attempt in (None, command.attempt):
                self._sent.remove(command)
                return self
        which = f", attempt {attempt}" if attempt is not None else ""
        raise AssertionError(f"expected {action} {step}{which}; {self._sent_in_words()}")

    def _sent_in_words(self) -> str:
        sent = ", ".join(f"{sent.action} {sent.step} (attempt {sent.attempt})" for sent in self._sent)
        return f"what was sent is: {sent or 'nothing'}; the saga is {self.state.status}"

    def _reply(self, step: str, outcome: Outcome, action: str | None, attempt: int | None) -> e.StepReplied:
        if step not in self.plan.by_name:
            raise AssertionError(f"{self.plan.saga} has no step {step}; it has {', '.join(self.plan.by_name)}")
        state = self.state.step(step) if step in self.state.steps else None
        undoing = state is not None and state.compensate.phase not in (Phase.IDLE, Phase.SETTLED)
        wanted = Action(action) if action is not None else Action.COMPENSATE if undoing else Action.ACT
        newest = state.of(wanted).attempt if state is not None else 0
        self._runs += 1
        return e.StepReplied(step, wanted, attempt or newest or 1, f"run-{self._runs}", outcome)


def _failure(step: str, error: type[Exception] | Exception | None) -> Failure:
    if error is None:
        return Failure("step_error", "StepError", "it failed", ("step_error",), step)
    kind = error if isinstance(error, type) else type(error)
    message = "" if isinstance(error, type) else str(error)
    return Failure(error_code(kind), kind.__name__, message, error_lineage(kind), step)
