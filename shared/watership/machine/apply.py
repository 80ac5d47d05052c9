"""Folds decided changes into a state. It decides nothing: the same log always gives the same saga (law 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from watership.machine import changes as c
from watership.machine.state import (
    ACT,
    AWAITED,
    COMPENSATE,
    DELAYED,
    DONE,
    IDLE,
    IN_DOUBT,
    RUNNING,
    SETTLED,
    STOPPED,
    UNKNOWN,
    VERIFY,
    WAITING,
    Action,
    ActionState,
    SagaState,
    Status,
    StepState,
    highest,
)

Fold = Callable[[SagaState, Any], None]

# The changes that move the status, from which to which. The README's diagram is drawn from this table.
STATUS_MOVES: dict[type[c.Change], tuple[frozenset[Status], Status]] = {
    c.PlanPinned: (frozenset({Status.PENDING}), RUNNING),
    c.CompensationBegan: (frozenset({Status.PENDING, RUNNING, Status.COMPENSATED}), Status.COMPENSATING),
    c.Completed: (frozenset({RUNNING}), Status.COMPLETED),
    c.Compensated: (frozenset({Status.COMPENSATING}), Status.COMPENSATED),
}


def apply(state: SagaState, change: c.Change) -> None:
    """Folds one change into ``state``, in place. Raises `ValueError` on a change that cannot follow: a broken log."""
    FOLDS[type(change)](state, change)


def fold(saga_id: str, entries: Iterable[Iterable[c.Change]]) -> SagaState:
    """The state that a whole log gives: one iterable of changes for each entry, from the first."""
    state = SagaState(saga_id)
    for entry in entries:
        state.seq += 1
        for change in entry:
            apply(state, change)
    return state


def _created(state: SagaState, change: c.Created) -> None:
    state.name, state.plan_hash = change.name, change.plan_hash
    state.context = dict(change.context)
    state.status = RUNNING if change.look_again_at_ms is None else Status.PENDING
    state.plan_due_at_ms, state.deadline_at_ms = change.look_again_at_ms, change.deadline_at_ms


def _plan_pinned(state: SagaState, change: c.PlanPinned) -> None:
    state.plan_hash, state.plan_due_at_ms = change.plan_hash, None
    state.deadline_at_ms = change.deadline_at_ms


def _plan_missed(state: SagaState, change: c.PlanMissed) -> None:
    state.plan_due_at_ms = change.look_again_at_ms
    state.plan_looks += 1


def _dispatched(state: SagaState, change: c.Dispatched) -> None:
    action = state.step(change.step).touch(change.action)
    if change.attempt != action.attempt:
        action.refusals, action.doubtful = 0, False
    action.phase, action.attempt, action.due_at_ms = AWAITED, change.attempt, change.due_at_ms


def _resent(state: SagaState, change: c.Resent) -> None:
    action = state.step(change.step).touch(change.action)
    action.due_at_ms = change.due_at_ms
    action.doubtful = action.doubtful or change.doubtful
    if not change.doubtful:  # sent again since no queue took it
        action.refusals += 1


def _withdrawn(state: SagaState, change: c.Withdrawn) -> None:
    action = state.step(change.step).touch(change.action)
    action.attempt = change.attempt - 1
    action.phase = SETTLED if action.attempt else IDLE
    action.due_at_ms = None


def _replied(state: SagaState, change: c.Replied) -> None:
    step = state.step(change.step)
    action = step.touch(change.action)
    action.run, action.due_at_ms = change.run, None
    if change.redelivered:
        action.doubtful = True
    if change.events:
        state.emits = True
    if change.patch:
        _merge(state, step, change)
    if change.in_doubt:  # not unknown yet: what came of it is asked about
        action.phase, step.doubt = IN_DOUBT, change.failure
        step.verify = ActionState(attempt=step.verify.attempt, spent=step.verify.attempt)
        return
    action.outcome = change.outcome if action.outcome is None else highest(action.outcome, change.outcome)
    if change.outcome is DONE or (change.final and change.action is ACT):
        action.phase = SETTLED
    elif change.final:
        action.phase = STOPPED
    if change.action is COMPENSATE and action.phase is SETTLED and step.undo_again:
        _begin_generation(step)


def _verified(state: SagaState, change: c.Verified) -> None:
    step = state.step(change.step)
    step.act.outcome, step.act.phase = highest(step.act.outcome, change.outcome), SETTLED
    asked = step.touch(VERIFY)
    asked.phase, asked.due_at_ms, step.doubt = SETTLED, None, None
    step.act.due_at_ms = None
    state.emits = state.emits or bool(change.events)
    _merge(state, step, change)


def _merge(state: SagaState, step: StepState, change: c.Replied | c.Verified) -> None:
    if change.patch:
        state.context = {**state.context, **change.patch}
        if change.shared:
            step.own = {**(step.own or {}), **change.patch}


def _stopped(state: SagaState, change: c.Stopped) -> None:
    state.step(change.step).act.phase = STOPPED


def _pivot_reached(state: SagaState, _: c.PivotReached) -> None:
    state.pivoted, state.deadline_at_ms = True, None


def _waiting(state: SagaState, change: c.Waiting) -> None:
    act = state.step(change.step).act
    act.phase, act.attempt, act.due_at_ms = WAITING, 1, change.due_at_ms


def _elapsed(state: SagaState, change: c.Elapsed) -> None:
    act = state.step(change.step).act
    act.phase, act.outcome, act.due_at_ms = SETTLED, change.outcome, None


def _signal_kept(state: SagaState, change: c.SignalKept) -> None:
    state.signals = {**state.signals, change.name: change.data}


def _signalled(state: SagaState, change: c.Signalled) -> None:
    act = state.step(change.step).act
    act.phase, act.outcome, act.due_at_ms = SETTLED, DONE, None
    if change.step in state.signals:
        state.signals = {name: data for name, data in state.signals.items() if name != change.step}
    if change.into is not None:
        state.context = {**state.context, change.into: change.data}


def _overdue(state: SagaState, change: c.Overdue) -> None:
    action = state.step(change.step).act
    action.outcome = highest(action.outcome, UNKNOWN)
    action.phase, action.due_at_ms = SETTLED, None


def _delayed(state: SagaState, change: c.Delayed) -> None:
    action = state.step(change.step).touch(change.action)
    action.phase, action.attempt, action.due_at_ms = DELAYED, change.attempt, change.due_at_ms
    action.refusals, action.doubtful = 0, False


def _postponed(state: SagaState, change: c.Postponed) -> None:
    action = state.step(change.step).touch(change.action)
    action.phase, action.due_at_ms = DELAYED, change.due_at_ms
    action.refusals += 1
    action.doubtful = action.doubtful or change.doubtful


def _dropped(state: SagaState, change: c.Dropped) -> None:
    action = state.step(change.step).act
    if action.doubtful:  # nobody served it the last time, but an earlier delivery may have run
        action.outcome = highest(action.outcome, UNKNOWN)
    action.phase, action.due_at_ms = SETTLED, None


def _nothing_to_undo(state: SagaState, change: c.NothingToUndo) -> None:
    step = state.step(change.step)
    undoing = step.touch(COMPENSATE)
    undoing.phase, undoing.outcome = SETTLED, DONE
    step.undo_again = False


def _late_act(state: SagaState, change: c.LateAct) -> None:
    step = state.step(change.step)
    step.act.outcome = highest(step.act.outcome, change.outcome)
    if change.patch and change.aside:
        step.own = {**(step.own or {}), **change.patch}
    elif change.patch:
        state.context = {**state.context, **change.patch}
    if step.compensate.phase is SETTLED:
        _begin_generation(step)
    elif step.compensate.phase is not IDLE:
        step.undo_again = True


def _begin_generation(step: StepState) -> None:
    # Attempts are counted on, with a fresh budget: a reply to an older generation is never taken for this one's.
    attempt = step.compensate.attempt
    step.generation += 1
    step.compensate = ActionState(attempt=attempt, spent=attempt)
    step.undo_again = False


def _compensation_began(state: SagaState, change: c.CompensationBegan) -> None:
    state.plan_due_at_ms = state.deadline_at_ms = None
    if change.failure is not None and state.failure is None:
        state.failure = change.failure


def _parked(state: SagaState, change: c.Parked) -> None:
    state.parked_reason = change.reason


def _unparked(state: SagaState, _: c.Unparked) -> None:
    state.parked_reason, state.plan_looks = None, 0
    for step in [state.step(name) for name in state.steps]:
        for action in Action:
            if step.of(action).refusals:
                step.touch(action).refusals = 0


def _retry_allowed(state: SagaState, change: c.RetryAllowed) -> None:
    action = state.step(change.step).touch(change.action)
    action.spent, action.refusals = action.attempt, 0


def _nothing(state: SagaState, change: c.Change) -> None:
    """The status move, or the mark in the log, was all."""


def _moved(fold: Fold, kind: str, before: frozenset[Status], after: Status) -> Fold:
    """``fold``, with the status move that comes first."""

    def move(state: SagaState, change: Any) -> None:
        if state.status not in before:
            raise ValueError(f"saga {state.saga_id}: {kind} cannot follow {state.status}; its log is broken")
        state.status = after
        fold(state, change)

    return move


_BARE_FOLDS: dict[type[c.Change], Fold] = {
    c.Created: _created,
    c.PlanPinned: _plan_pinned,
    c.PlanMissed: _plan_missed,
    c.Dispatched: _dispatched,
    c.Resent: _resent,
    c.Withdrawn: _withdrawn,
    c.Replied: _replied,
    c.Verified: _verified,
    c.Stopped: _stopped,
    c.PivotReached: _pivot_reached,
    c.Waiting: _waiting,
    c.Elapsed: _elapsed,
    c.SignalKept: _signal_kept,
    c.Signalled: _signalled,
    c.Overdue: _overdue,
    c.Delayed: _delayed,
    c.Postponed: _postponed,
    c.Dropped: _dropped,
    c.NothingToUndo: _nothing_to_undo,
    c.LateAct: _late_act,
    c.CompensationBegan: _compensation_began,
    c.Completed: _nothing,
    c.Compensated: _nothing,
    c.Parked: _parked,
    c.Unparked: _unparked,
    c.RetryAllowed: _retry_allowed,
    c.Operated: _nothing,
}
# How each kind of change is folded, its status move included: what `apply` looks up.
FOLDS: dict[type[c.Change], Fold] = {
    cls: _moved(fold, cls.kind, *STATUS_MOVES[cls]) if cls in STATUS_MOVES else fold
    for cls, fold in _BARE_FOLDS.items()
}
