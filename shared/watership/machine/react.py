"""Decides: `react(plan, state, event, now_ms)` gives the changes that follow from what happened, and their effects.

Theory of operation
===================

A saga is a list of *nodes*. A node is a step, or a fallback (a primary step and its stand-in). It runs in one of two
directions, and turns around at most once:

* **forward** (`RUNNING`): the first node that is not done is told to act. When none is left, the saga is `COMPLETED`.
* **backward** (`COMPENSATING`): from the last node to the first, each step that *may have acted* is told to
  compensate, one at a time, each only when the one after it is done. When none is left, it is `COMPENSATED`.

Both are functions of the state alone (`directions.py`): an event first records what happened, then lets the
direction look at the saga afresh. So there is no "next step" to lose, and the same code starts a saga, goes on after a
reply, and picks up after a crash.

An action (the act or the compensation of a step) goes through phases::

    IDLE ──> AWAITED ──> SETTLED            replied, and that was the end of it
               │  ▲
               ▼  │
             DELAYED                        a retry waits for its moment, or nobody served the command
               └──────> STOPPED             a compensation out of attempts: the saga is parked

What makes it right when messages are lost, doubled, late or out of order:

* **An attempt is awaited or it is not** (law 6). A reply to anything else is *stale*: it never moves the saga forward.
* **Outcomes only rise** (law 5): done > unknown > failed, over all runs of all attempts. A `failed` that comes from a
  command which may have been delivered twice counts as unknown, since it speaks for one run only (unless a barrier
  vouches for all of them).
  A step whose act is done or unknown needs undoing; a step whose act failed does not.
* **A stale act that may have had its effect** is merged, and undone, whatever the saga's status: if its undoing was
  decided already, it is undone again, under a new generation of its idempotency key. A second run of an act that is
  done and stands needs nothing: the saga wants it done.
* **The turn is a change of its own** (law 3): `CompensationBegan` is in the log before the first compensation is sent,
  and no act is decided after it. An act that is still awaited at the turn is waited for until its deadline, then
  unknown. One that was decided but provably never sent is withdrawn.
* **Nothing waits without a moment** (law 2): AWAITED and DELAYED carry `due_at_ms`; a saga with neither is
  terminal, or parked with the reason in words.

The rules that are a table are in tables: `_REACTIONS` below (event -> reaction), `STATUS_MOVES` in `apply`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.directions import Decision, deadline_ms, dispatch, go_on, passed_over, turn_around
from watership.machine.effects import Effect, effects_of
from watership.machine.plan import FallbackPlan, Plan, RetryPlan, StepPlan
from watership.machine.state import Action, Failure, Outcome, Phase, SagaState, Status


@dataclasses.dataclass(frozen=True, slots=True)
class Reaction:
    """What follows from an event. ``state`` is a new one; the given one is untouched.

    ``ledger``: why the event moved nothing and must be kept in the ledger. ``refused``: why an operator's verb does
    not fit. Both None: it was applied, or there was nothing to do.
    """

    state: SagaState
    changes: tuple[c.Change, ...]
    effects: list[Effect]
    ledger: str | None = None
    refused: str | None = None


def react(plan: Plan | None, state: SagaState, event: e.Event, now_ms: int) -> Reaction:
    """What follows from ``event``. ``plan`` is the one that ``state`` is pinned to, or is about to be; None if unknown.

    Pure: the same arguments give the same answer, and ``state`` is not changed.
    """
    decision = Decision(plan, state.copy(), now_ms)
    _REACTIONS[type(event)](decision, event)
    if decision.changes:
        decision.state.seq += 1
    effects = effects_of(decision.state.seq, decision.changes)
    return Reaction(decision.state, tuple(decision.changes), effects, decision.ledger, decision.refused)


# --- starting ------------------------------------------------------------------------------------------------------


def _saga_started(d: Decision, event: e.SagaStarted) -> None:
    assert d.state.seq == 0, "a saga starts once; its creator looks whether it exists"
    d.record(c.Created(event.name, event.context, event.plan_hash, event.look_again_at_ms))
    go_on(d)


def _plan_found(d: Decision, event: e.PlanFound) -> None:
    if d.state.status is Status.PENDING:
        d.record(c.PlanPinned(event.plan_hash))
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


# --- replies -------------------------------------------------------------------------------------------------------


def _step_replied(d: Decision, event: e.StepReplied) -> None:
    if not d.state.awaits(event.step, event.action, event.attempt):
        _stale_reply(d, event)
        return
    outcome = event.outcome
    action = d.state.step(event.step).of(event.action)
    if outcome is Outcome.FAILED and (event.redelivered or action.doubtful) and not event.certain:
        outcome = Outcome.UNKNOWN  # this run failed; another one of the same command may not have
    step = d.step_plan(event.step)
    retry = step.retry if event.action is Action.ACT else step.compensation_retry
    final = outcome is Outcome.DONE or not _may_try_again(d, event.action, action.attempt - action.spent, retry)
    d.record(
        c.Replied(
            event.step,
            event.action,
            event.attempt,
            event.run,
            outcome,
            final,
            event.patch if outcome is not Outcome.FAILED else None,
            event.response if outcome is Outcome.DONE else None,
            event.failure,
        )
    )
    if not final:
        _try_again(d, step, event.action, event.attempt + 1, retry)
    elif event.action is Action.ACT:
        _act_ended(d, event, outcome)
    else:
        _compensation_ended(d, event, outcome)


def _may_try_again(d: Decision, action: Action, attempts: int, retry: RetryPlan) -> bool:
    forward_or_undo = action is Action.COMPENSATE or d.state.status is Status.RUNNING
    return forward_or_undo and attempts < retry.attempts_max


def _try_again(d: Decision, step: StepPlan, action: Action, attempt: int, retry: RetryPlan) -> None:
    budget_attempt = attempt - d.state.step(step.name).of(action).spent
    delay_ms = retry.delay_before_ms(budget_attempt, salt=f"{d.state.saga_id}:{step.name}:{action}")
    if delay_ms or d.state.parked_reason is not None:  # a parked saga sends nothing until a person says so
        d.record(c.Delayed(step.name, action, attempt, d.now_ms + delay_ms))
    else:
        dispatch(d, step, action, attempt=attempt)


def _act_ended(d: Decision, event: e.StepReplied, outcome: Outcome) -> None:
    if d.state.status is not Status.RUNNING or outcome is Outcome.DONE:
        go_on(d)
        return
    failure = event.failure or Failure("unknown", "", f"step {event.step} ended {outcome}", (), event.step)
    assert d.plan is not None
    node = d.plan.node_of[event.step]
    if isinstance(node, FallbackPlan) and event.step == node.primary.name and node.takes_over_from(failure.lineage):
        go_on(d)
    else:
        turn_around(d, failure)


def _compensation_ended(d: Decision, event: e.StepReplied, outcome: Outcome) -> None:
    if outcome is Outcome.DONE:
        go_on(d)
        return
    why = f"{event.failure.type_name}: {event.failure.message}" if event.failure else f"it ended {outcome}"
    d.record(
        c.Parked(
            f"the compensation of step {event.step} is out of retries after {event.attempt} attempts ({why}): "
            f"mend its cause, then `watership retry {d.state.saga_id}` (embedded: recover_saga)"
        )
    )


def _stale_reply(d: Decision, event: e.StepReplied) -> None:
    d.ledger = f"{event.action} {event.step} attempt {event.attempt} was not awaited"
    state = d.state.peek(event.step)
    outcome = event.outcome
    if outcome is Outcome.FAILED and event.redelivered and not event.certain:
        outcome = Outcome.UNKNOWN  # as for an awaited one: this run failed, an earlier one may not have
    if event.known or event.action is Action.COMPENSATE or outcome is Outcome.FAILED or state is None:
        return
    if event.attempt > state.act.attempt:
        return  # never dispatched as far as this log knows: kept for a person to see
    stands = state.act.outcome is Outcome.DONE and state.compensate.phase is Phase.IDLE
    if stands and not passed_over(d, event.step):
        return  # it ran twice; the saga wants it done, and it is
    patch = event.patch if event.outcome is not Outcome.FAILED else None
    d.record(c.LateAct(event.step, event.attempt, event.run, outcome, patch))
    d.ledger += ": merged, and undone"
    _undo_late(d, event.step)


def _undo_late(d: Decision, step: str) -> None:
    state = d.state.step(step)
    if state.act.active or not state.needs_undoing or d.state.parked_reason is not None:
        return
    if d.state.status is Status.COMPENSATED:
        turn_around(d, None)
    else:
        go_on(d)


def _step_not_served(d: Decision, event: e.StepNotServed) -> None:
    if not d.state.awaits(event.step, event.action, event.attempt):
        return
    d.record(c.Postponed(event.step, event.action, event.attempt, event.retry_at_ms, event.redelivered))
    action = d.state.step(event.step).of(event.action)
    if event.action is Action.ACT and d.state.status is Status.COMPENSATING:
        go_on(d)  # it will not be sent again: dropped
    elif action.refusals >= event.refusals_max:
        d.record(c.Parked(_not_served(d, event.step, f"its queue's workers refused it {action.refusals} times")))


def _not_served(d: Decision, step: str, why: str) -> str:
    return (
        f"no worker serves step {step}: {why}; start a worker that has it, "
        f"then `watership retry {d.state.saga_id}` (embedded: recover_saga)"
    )


# --- time, and what went wrong on the way --------------------------------------------------------------------------


def _time_passed(d: Decision, _: e.TimePassed) -> None:
    if d.state.parked_reason is not None or d.state.paused:
        return
    due = [
        (name, action, state)
        for name, action, state in d.state.active_actions()
        if state.due_at_ms is not None and state.due_at_ms <= d.now_ms
    ]
    for name, action, state in due:
        step = d.step_plan(name)
        if action is Action.ACT and d.state.status is Status.COMPENSATING:
            if state.phase is Phase.AWAITED:
                d.record(c.Overdue(name, state.attempt))
            go_on(d)
        elif state.phase is Phase.DELAYED:
            dispatch(d, step, action, attempt=state.attempt)
        else:
            d.record(c.Resent(name, action, state.attempt, deadline_ms(d, step), doubtful=True))


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
    due_at_ms = deadline_ms(d, d.step_plan(event.step))
    d.record(c.Resent(event.step, event.action, event.attempt, due_at_ms, doubtful=not event.unsent))


def _run_interrupted(d: Decision, event: e.RunInterrupted) -> None:
    if not d.state.awaits(event.step, event.action, event.attempt):
        return
    if event.action is Action.ACT and d.state.status is Status.COMPENSATING:
        d.record(c.Overdue(event.step, event.attempt))  # it is not run again after the turn: unknown, so undone
        go_on(d)
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


# --- operators -----------------------------------------------------------------------------------------------------


def _moved_since(d: Decision, seq: int | None) -> bool:
    if seq is None or seq == d.state.seq:
        return False
    d.refused = (
        f"saga {d.state.saga_id} has moved: you saw entry {seq} of its log, it is at {d.state.seq} now; look again"
    )
    return True


def _retry_requested(d: Decision, event: e.RetryRequested) -> None:
    if _moved_since(d, event.seq):
        return
    state = d.state
    waiting = [(name, action) for name, action, st in state.active_actions() if st.phase is Phase.DELAYED]
    if state.parked_reason is None and not waiting:
        awaited = ", ".join(f"{action} of {name}" for name, action, _ in state.active_actions())
        where = f"it awaits the {awaited}" if awaited else f"it is {state.status}"
        d.refused = f"saga {state.saga_id} has nothing to retry: {where}"
        return
    d.record(c.Operated(event.actor, "retry", event.reason))
    _unpark(d)
    if state.status is Status.PENDING:
        d.record(c.PlanMissed(d.now_ms))
    for name, action in waiting:
        if action is Action.COMPENSATE or state.status is Status.RUNNING:  # else the way back drops it
            dispatch(d, d.step_plan(name), action, attempt=state.step(name).of(action).attempt)
    go_on(d)


def _unpark(d: Decision) -> None:
    """A person lets it go on: what was out of attempts has a fresh budget, and is sent when its turn comes."""
    if d.state.parked_reason is None:
        return
    d.record(c.Unparked())
    for name, step in d.state.steps.items():
        if step.compensate.phase is Phase.STOPPED:
            d.record(c.RetryAllowed(name, Action.COMPENSATE))


def _compensate_requested(d: Decision, event: e.CompensateRequested) -> None:
    if _moved_since(d, event.seq):
        return
    if d.state.status not in (Status.PENDING, Status.RUNNING):
        d.refused = f"saga {d.state.saga_id} is {d.state.status}: only a saga that goes forward can be compensated"
        return
    d.record(c.Operated(event.actor, "compensate", event.reason))
    _unpark(d)
    turn_around(d, Failure("saga_cancelled", "SagaCancelled", f"compensated by {event.actor}: {event.reason}"))


_REACTIONS: dict[type[e.Event], Callable[[Decision, Any], None]] = {
    e.SagaStarted: _saga_started,
    e.PlanFound: _plan_found,
    e.PlanMissing: _plan_missing,
    e.ContextRefused: _context_refused,
    e.StepReplied: _step_replied,
    e.StepNotServed: _step_not_served,
    e.TimePassed: _time_passed,
    e.DispatchRepeated: _dispatch_repeated,
    e.RunInterrupted: _run_interrupted,
    e.DispatchWithdrawn: _dispatch_withdrawn,
    e.RetryRequested: _retry_requested,
    e.CompensateRequested: _compensate_requested,
}
