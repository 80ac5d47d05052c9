"""What follows from an operator's verb (law 12): the part of `react` that knows people."""

from __future__ import annotations

from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.directions import Decision, dispatch, go_on, turn_around
from watership.machine.state import Action, Failure, Phase, Status


def _moved_since(d: Decision, seq: int | None) -> bool:
    if seq is None or seq == d.state.seq:
        return False
    d.refused = (
        f"saga {d.state.saga_id} has moved: you saw entry {seq} of its log, it is at {d.state.seq} now; look again"
    )
    return True


def retry_requested(d: Decision, event: e.RetryRequested) -> None:
    """A person lets the saga go on, or go on now."""
    if _moved_since(d, event.seq):
        return
    state = d.state
    waiting = [(name, action) for name, action, st in state.active_actions() if st.phase is Phase.DELAYED]
    if state.parked_reason is None and not waiting:
        awaited = ", ".join(_words(name, action, st.phase) for name, action, st in state.active_actions())
        where = f"it awaits {awaited}" if awaited else f"it is {state.status}"
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


def _words(name: str, action: Action, phase: Phase) -> str:
    return f"what ends {name}" if phase is Phase.WAITING else f"the {action} of {name}"


def _unpark(d: Decision) -> None:
    """A person lets it go on: what was out of attempts has a fresh budget, and is sent when its turn comes."""
    if d.state.parked_reason is None:
        return
    d.record(c.Unparked())
    for name, step in d.state.steps.items():
        if step.act.phase is Phase.STOPPED:
            d.record(c.RetryAllowed(name, Action.ACT))
        if step.compensate.phase is Phase.STOPPED:
            d.record(c.RetryAllowed(name, Action.COMPENSATE))
        late_pivot = d.is_pivot(name) and not d.step_plan(name).compensable and step.needs_undoing
        if late_pivot and d.state.status is Status.COMPENSATING:
            d.record(c.NothingToUndo(name))  # a person has put it right by hand


def compensate_requested(d: Decision, event: e.CompensateRequested) -> None:
    """A person wants the saga undone."""
    if _moved_since(d, event.seq):
        return
    if d.state.status not in (Status.PENDING, Status.RUNNING):
        d.refused = f"saga {d.state.saga_id} is {d.state.status}: only a saga that goes forward can be compensated"
        return
    if d.state.pivoted:
        pivot = d.plan.pivot if d.plan is not None else None
        d.refused = f"saga {d.state.saga_id} has sent its pivot {pivot}: from there it only goes forward"
        return
    d.record(c.Operated(event.actor, "compensate", event.reason))
    _unpark(d)
    turn_around(d, Failure("saga_cancelled", "SagaCancelled", f"compensated by {event.actor}: {event.reason}"))
