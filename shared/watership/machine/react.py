"""Decides: `react(plan, state, event, now_ms)` gives the changes that follow from what happened, and their effects.

Theory of operation
===================

A saga is a list of *nodes*. A node is a step, a fallback (a primary step and its stand-in), a parallel group of these, a
sleep, or a wait for a signal. It runs in one of two directions, and turns around at most once:

* **forward** (`RUNNING`): the first node that is not done is begun. When none is left, the saga is `COMPLETED`.
* **backward** (`COMPENSATING`): from the last node to the first, each step that *may have acted* is told to
  compensate, each only when the node after it is done. When none is left, it is `COMPENSATED`.

Both are functions of the state alone (`directions.py`): an event first records what happened, then lets the
direction look at the saga afresh. So there is no "next step" to lose, and the same code starts a saga, goes on after a
reply, and picks up after a crash.

An action (the act, the compensation or the verification of a step) goes through phases::

    IDLE ──> AWAITED ──> SETTLED            replied, and that was the end of it
      │        │  ▲ └──> IN_DOUBT           an act that ended unknown, and is being verified
      │        ▼  │
      │      DELAYED                        a retry waits for its moment, or nobody served the command
      │        └──────> STOPPED             out of attempts, and nothing else to do: the saga is parked
      └──> WAITING ──> SETTLED              a sleep or a wait: no command, only a moment or a signal

What makes it right when messages are lost, doubled, late or out of order:

* **An attempt is awaited or it is not** (law 6). A reply to anything else is *stale*: it never moves the saga forward,
  unless it says that an act in doubt was done.
* **Outcomes only rise** (law 5): done > unknown > failed, over all runs of all attempts. A `failed` that comes from a
  command which may have been delivered twice counts as unknown, since it speaks for one run only (unless a barrier
  vouches for all of them).
  A step whose act is done or unknown needs undoing; a step whose act failed does not.
* **Unknown is asked about, then tried again, then undone** (law 5). That an act had no effect is believed only if no
  other delivery of its command may still run.
* **A stale act that may have had its effect** is merged, and undone, whatever the saga's status: if its undoing was
  decided already, it is undone again, under a new generation of its idempotency key. A second run of an act that is
  done and stands needs nothing: the saga wants it done.
* **The turn is a change of its own** (law 3): `CompensationBegan` is in the log before the first compensation is sent,
  and no act is decided after it. An act that is still awaited at the turn is waited for until its deadline, then
  unknown. One that was decided but provably never sent is withdrawn.
* **The pivot is the point of no return**: `PivotReached` is in the log with its dispatch, and takes deadline and cancel
  away. It can still fail, and then the saga goes back; while it is unknown, and for all that comes after it, there is
  only forward, or a person.
* **Nothing waits without a moment** (law 2): AWAITED, DELAYED and WAITING carry `due_at_ms`; a saga with none of them is
  terminal, or parked with the reason in words.

The rules that are a table are in tables: `_REACTIONS` below (event -> reaction), `STATUS_MOVES` in `apply`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.directions import Decision, deadline_ms, dispatch, go_on, signalled, turn_around
from watership.machine.effects import Effect, effects_of
from watership.machine.nodes import WaitPlan
from watership.machine.operating import compensate_requested, retry_requested
from watership.machine.plan import Plan
from watership.machine.replies import run_lost, step_replied
from watership.machine.state import Action, ActionState, Failure, Outcome, Phase, SagaState, Status
from watership.values import value


@value
class Reaction:
    """What follows from an event: ``state`` is where the saga stands now. ``seq``: of the log entry that it makes.

    ``ledger``: why the event moved nothing and must be kept in the ledger. ``refused``: why an operator's verb does
    not fit. Both None: it was applied, or there was nothing to do.
    """

    state: SagaState
    changes: tuple[c.Change, ...]
    seq: int
    ledger: str | None = None
    refused: str | None = None

    @property
    def effects(self) -> list[Effect]:
        """What must be done once the changes have committed."""
        return effects_of(self.seq, self.changes)


def react(plan: Plan | None, state: SagaState, event: e.Event, now_ms: int) -> Reaction:
    """What follows from ``event``. ``plan`` is the one that ``state`` is pinned to, or is about to be; None if unknown.

    Pure: the same arguments give the same answer, and ``state`` is not changed.
    """
    return lead_on(plan, state.successor(), event, now_ms)


def lead_on(plan: Plan | None, state: SagaState, event: e.Event, now_ms: int) -> Reaction:
    """The same, and ``state`` itself is led on: for whoever drops it if what was decided cannot be written."""
    decision = Decision(plan, state, now_ms)
    _REACTIONS[type(event)](decision, event)
    if decision.changes:
        state.seq += 1
    return Reaction(state, tuple(decision.changes), state.seq, decision.ledger, decision.refused)


# --- starting ------------------------------------------------------------------------------------------------------


def _saga_started(d: Decision, event: e.SagaStarted) -> None:
    assert d.state.seq == 0, "a saga starts once; its creator looks whether it exists"
    deadline_at_ms = _deadline_at_ms(d) if event.look_again_at_ms is None else None
    d.record(c.Created(event.name, event.context, event.plan_hash, event.look_again_at_ms, deadline_at_ms))
    go_on(d)


def _deadline_at_ms(d: Decision) -> int | None:
    if d.plan is None or d.plan.deadline_ms is None:
        return None
    return d.now_ms + d.plan.deadline_ms


def _plan_found(d: Decision, event: e.PlanFound) -> None:
    if d.state.status is Status.PENDING:
        d.record(c.PlanPinned(event.plan_hash, _deadline_at_ms(d)))
        if d.state.parked_reason is not None:
            d.record(c.Unparked())
        go_on(d)


def _plan_missing(d: Decision, event: e.PlanMissing) -> None:
    if d.state.status is not Status.PENDING:
        return
    d.record(c.PlanMissed(event.look_again_at_ms))
    if d.state.plan_looks >= event.looks_max:
        wanted = f"plan {d.state.plan_hash} of the saga" if d.state.plan_hash else "the saga"
        d.record(
            c.Parked(
                f"no worker or client has registered {wanted} {d.state.name!r}: start a worker that has it, "
                f"or compensate this saga if its name is wrong"
            )
        )


def _context_refused(d: Decision, event: e.ContextRefused) -> None:
    if d.state.status is Status.PENDING and d.state.parked_reason is None:
        d.record(c.Parked(event.reason))


# --- commands that nobody runs, or answers -------------------------------------------------------------------------


def _step_not_served(d: Decision, event: e.StepNotServed) -> None:
    if not d.state.awaits(event.step, event.action, event.attempt):
        return
    forward = event.action is Action.ACT and d.state.status is Status.RUNNING
    if forward and event.redelivered and not d.step_plan(event.step).rerun:
        run_lost(d, d.step_plan(event.step))  # it ran nothing; who had it before may have, and it must not run twice
        return
    d.record(c.Postponed(event.step, event.action, event.attempt, event.retry_at_ms, event.redelivered))
    action = d.state.step(event.step).of(event.action)
    if event.action is Action.ACT and d.state.status is Status.COMPENSATING:
        go_on(d)  # it will not be sent again: dropped
    elif event.reason is not None:
        d.record(
            c.Parked(f"{event.reason}; then `watership retry {d.state.saga_id} --reason …` (embedded: recover_saga)")
        )
    elif action.refusals >= event.refusals_max:
        d.record(c.Parked(_not_served(d, event.step, f"its queue's workers refused it {action.refusals} times")))


def _not_served(d: Decision, step: str, why: str) -> str:
    return (
        f"no worker serves step {step}: {why}; start a worker that has it, "
        f"then `watership retry {d.state.saga_id} --reason …` (embedded: recover_saga)"
    )


# --- time, and what went wrong on the way --------------------------------------------------------------------------


def _time_passed(d: Decision, _: e.TimePassed) -> None:
    if d.state.parked_reason is not None or d.state.paused:
        return
    deadline_at_ms = d.state.deadline_at_ms
    if d.state.status is Status.RUNNING and deadline_at_ms is not None and deadline_at_ms <= d.now_ms:
        limit_ms = d.plan.deadline_ms if d.plan is not None else None
        words = f"it was not done within its deadline of {(limit_ms or 0) / 1000:g} s"
        turn_around(d, Failure("deadline_passed", "DeadlinePassed", words, ("deadline_passed",)))
    due = [
        (name, action)
        for name, action, state in d.state.active_actions()
        if state.due_at_ms is not None and state.due_at_ms <= d.now_ms
    ]
    for name, action in due:
        state = d.state.step(name).of(action)
        if state.active and d.state.parked_reason is None:  # what fell due before it may have settled it, or parked all
            _fell_due(d, name, action, state)


def _fell_due(d: Decision, name: str, action: Action, state: ActionState) -> None:
    if state.phase is Phase.WAITING:
        _pause_ended(d, name)
        return
    step = d.step_plan(name)
    if action is Action.ACT and d.state.status is Status.COMPENSATING:
        if state.phase is Phase.AWAITED:
            d.record(c.Overdue(name, state.attempt))
        go_on(d)
    elif state.phase is Phase.DELAYED:
        dispatch(d, step, action, attempt=state.attempt)
    elif action is Action.ACT and not step.rerun:
        run_lost(d, step)
    else:
        d.record(c.Resent(name, action, state.attempt, deadline_ms(d, step), doubtful=True))


def _pause_ended(d: Decision, name: str) -> None:
    wait = d.plan.waits.get(name) if d.plan is not None else None
    if wait is not None and wait.on_timeout == "compensate":
        d.record(c.Elapsed(name, Outcome.FAILED))
        words = f"no signal {name} came within {wait.timeout_ms / 1000:g} s"
        turn_around(d, Failure("wait_timeout", "WaitTimeout", words, ("wait_timeout",), name))
    else:
        d.record(c.Elapsed(name, Outcome.DONE))
        go_on(d)


# --- signals -------------------------------------------------------------------------------------------------------


def _signal_received(d: Decision, event: e.SignalReceived) -> None:
    wait = d.plan.waits.get(event.name) if d.plan is not None else None
    if wait is None:
        known = ", ".join(d.plan.waits) if d.plan is not None and d.plan.waits else "none"
        d.refused = f"saga {d.state.name} {d.state.saga_id} waits for no signal {event.name!r}; its signals: {known}"
    elif event.trouble is not None:
        d.refused = f"the signal {event.name} to saga {d.state.name} {d.state.saga_id} does not fit: {event.trouble}"
    else:
        _take_signal(d, wait, event.data)
    d.ledger = d.refused


def _take_signal(d: Decision, wait: WaitPlan, data: Any) -> None:
    state = d.state.peek(wait.name)
    if state is not None and state.act.phase is Phase.WAITING:
        signalled(d, wait, data)
        go_on(d)
    elif d.state.status is not Status.RUNNING or state is not None:
        d.refused = f"the signal {wait.name} came too late: saga {d.state.saga_id} does not wait for it any more"
    elif wait.name in d.state.signals:
        d.refused = f"saga {d.state.saga_id} has a signal {wait.name} already, and keeps the first"
    else:
        d.record(c.SignalKept(wait.name, data))


# --- sent again ----------------------------------------------------------------------------------------------------


def _dispatch_repeated(d: Decision, event: e.DispatchRepeated) -> None:
    if not d.state.awaits(event.step, event.action, event.attempt):
        return
    if event.action is Action.ACT and d.state.status is Status.COMPENSATING:
        if event.unsent:
            _dispatch_withdrawn(d, e.DispatchWithdrawn(event.step, event.action, event.attempt))
        return
    action = d.state.step(event.step).of(event.action)
    if event.unsent and action.refusals + 1 >= event.refusals_max:
        d.record(c.Postponed(event.step, event.action, event.attempt, d.now_ms, doubtful=action.doubtful))
        d.record(c.Parked(_not_served(d, event.step, "no queue takes its commands")))
        return
    step = d.step_plan(event.step)
    if event.action is Action.ACT and not step.rerun and not event.unsent:
        return  # it may have been sent, and must not run twice: its reply, or its deadline, says what came of it
    d.record(c.Resent(event.step, event.action, event.attempt, deadline_ms(d, step), doubtful=not event.unsent))


def _run_interrupted(d: Decision, event: e.RunInterrupted) -> None:
    if not d.state.awaits(event.step, event.action, event.attempt):
        return
    if event.action is Action.ACT and d.state.status is Status.COMPENSATING:
        d.record(c.Overdue(event.step, event.attempt))  # it is not run again after the turn: unknown, so undone
        go_on(d)
    elif event.action is Action.ACT and not d.step_plan(event.step).rerun:
        run_lost(d, d.step_plan(event.step))
    else:
        _dispatch_repeated(d, e.DispatchRepeated(event.step, event.action, event.attempt, unsent=False))


def _dispatch_withdrawn(d: Decision, event: e.DispatchWithdrawn) -> None:
    if event.action is not Action.ACT or d.state.status is not Status.COMPENSATING:
        return  # only the turn overtakes, and only acts
    if d.state.awaits(event.step, event.action, event.attempt):
        if d.state.step(event.step).act.doubtful:  # this delivery was never sent; an earlier one may have run
            d.record(c.Overdue(event.step, event.attempt))
        else:
            d.record(c.Withdrawn(event.step, event.action, event.attempt))
        go_on(d)


def _dispatch_put_off(d: Decision, event: e.DispatchPutOff) -> None:
    if not d.state.awaits(event.step, event.action, event.attempt):
        return
    if d.state.step(event.step).of(event.action).doubtful:
        return  # this time it did not begin; an earlier delivery may have
    d.record(c.Delayed(event.step, event.action, event.attempt, d.now_ms))
    if event.action is Action.ACT and d.state.status is Status.COMPENSATING:
        go_on(d)  # it will not be sent again: dropped


_REACTIONS: dict[type[e.Event], Callable[[Decision, Any], None]] = {
    e.SagaStarted: _saga_started,
    e.PlanFound: _plan_found,
    e.PlanMissing: _plan_missing,
    e.ContextRefused: _context_refused,
    e.StepReplied: step_replied,
    e.StepNotServed: _step_not_served,
    e.SignalReceived: _signal_received,
    e.TimePassed: _time_passed,
    e.DispatchRepeated: _dispatch_repeated,
    e.RunInterrupted: _run_interrupted,
    e.DispatchWithdrawn: _dispatch_withdrawn,
    e.DispatchPutOff: _dispatch_put_off,
    e.RetryRequested: retry_requested,
    e.CompensateRequested: compensate_requested,
}
