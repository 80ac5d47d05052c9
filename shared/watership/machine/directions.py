"""The two directions of a saga, as functions of its state alone: see the theory at the top of `react`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from watership.machine import changes as c
from watership.machine.apply import FOLDS
from watership.machine.nodes import (
    FallbackPlan,
    Node,
    ParallelPlan,
    SleepPlan,
    StepPlan,
    Unit,
    WaitPlan,
    members,
    units,
)
from watership.machine.plan import Plan
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
    UNKNOWN,
    WAITING,
    Action,
    Failure,
    SagaState,
    Status,
    StepState,
)

# What a command's deadline allows beyond its time in the queue and its run: the reply's way back.
GRACE_MS = 5_000


class Decision:
    """The saga as it stands while an event is decided: each recorded change is folded at once."""

    __slots__ = ("changes", "ledger", "now_ms", "plan", "refused", "state")

    def __init__(self, plan: Plan | None, state: SagaState, now_ms: int) -> None:
        self.plan = plan
        self.state = state
        self.now_ms = now_ms
        self.changes: list[c.Change] = []
        self.ledger: str | None = None
        self.refused: str | None = None

    def record(self, change: c.Change) -> None:
        FOLDS[type(change)](self.state, change)
        self.changes.append(change)

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.plan.nodes if self.plan is not None else ()

    def step_plan(self, name: str) -> StepPlan:
        assert self.plan is not None, "a step was touched, so the saga has its plan"
        return self.plan.by_name[name]

    def is_pivot(self, step: str) -> bool:
        return self.plan is not None and self.plan.pivot == step


def go_on(d: Decision) -> None:
    """Looks at the saga afresh, in the direction in which it runs."""
    if d.state.parked_reason is not None:
        return
    if d.state.status is RUNNING:
        _forward(d)
    elif d.state.status is Status.COMPENSATING:
        _backward(d)
    elif d.state.status is Status.COMPLETED:
        _undo_passed_over(d)


# --- forward -------------------------------------------------------------------------------------------------------


def _forward(d: Decision) -> None:
    steps = d.state.steps
    for node in d.nodes:
        if type(node) is StepPlan:  # nearly all nodes are steps, and nearly all of those are behind: no call for each
            known = steps.get(node.name)
            if known is not None and known.act.phase is SETTLED:
                continue
        if not _THROUGH[type(node)](d, node):
            return
        if d.state.status is not RUNNING or d.state.parked_reason is not None:
            return  # a signal that was there already turned it around
    d.record(c.Completed())


def _forward_step(d: Decision, step: StepPlan) -> bool:
    """Whether the step is done; if it was never told to act, or may try again, it is told now."""
    state = d.state.steps.get(step.name)
    if state is None or state.act.phase is IDLE:
        dispatch(d, step, ACT, attempt=1)
        return False
    if state.act.may_go_again:
        dispatch(d, step, ACT, attempt=state.act.attempt + 1)
        return False
    return state.act.phase is SETTLED


def _forward_fallback(d: Decision, node: FallbackPlan) -> bool:
    primary, fallback = d.state.peek(node.primary.name), d.state.peek(node.fallback.name)
    if primary is None or primary.act.phase is not SETTLED:
        return _forward_step(d, node.primary)
    untouched = primary.compensate.phase is IDLE and primary.generation == 1
    if primary.act.outcome is DONE and fallback is None and untouched:
        return True
    # From here the primary failed, or is unknown: what it may have done is undone before its stand-in acts.
    if primary.needs_undoing and not undo(d, node.primary, primary):
        return False
    return _forward_step(d, node.fallback)


def _forward_pause(d: Decision, node: SleepPlan | WaitPlan) -> bool:
    state = d.state.peek(node.name)
    if state is not None:
        return state.act.phase is SETTLED
    if isinstance(node, WaitPlan) and node.name in d.state.signals:
        signalled(d, node, d.state.signals[node.name])
        return True
    duration_ms = node.timeout_ms if isinstance(node, WaitPlan) else node.duration_ms
    d.record(c.Waiting(node.name, d.now_ms + duration_ms))
    return False


def _forward_group(d: Decision, node: ParallelPlan) -> bool:
    through = [_THROUGH[type(unit)](d, unit) for unit in node.nodes]  # each is begun, also behind one that is not done
    return all(through)


# Whether the saga has a node behind it; if that was not begun, it is now.
_THROUGH: dict[type[Node], Callable[[Decision, Any], bool]] = {
    StepPlan: _forward_step,
    FallbackPlan: _forward_fallback,
    ParallelPlan: _forward_group,
    SleepPlan: _forward_pause,
    WaitPlan: _forward_pause,
}


def signalled(d: Decision, wait: WaitPlan, data: object) -> None:
    """A wait has its signal: the data is kept, and turns the saga around if the plan says so."""
    d.record(c.Signalled(wait.name, data, wait.into))
    if wait.rejects(data):
        field, value = wait.reject_if or ("", None)
        d.record(
            c.CompensationBegan(
                Failure(
                    "wait_rejected",
                    "WaitRejected",
                    f"the signal {wait.name} has {field} = {value!r}",
                    ("wait_rejected",),
                    wait.name,
                )
            )
        )
        go_on(d)


# --- backward ------------------------------------------------------------------------------------------------------


def _backward(d: Decision) -> None:
    """Law 4: from the last node to the first, each only when the one after it is done compensating."""
    for node in reversed(d.nodes):
        if isinstance(node, SleepPlan | WaitPlan):
            state = d.state.peek(node.name)
            if state is not None and state.act.phase is WAITING:
                d.record(c.Dropped(node.name))
            continue
        if not _acts_are_over(d, node):
            return  # one may be acting right now: its outcome, or its deadline, comes first
        undone = [_is_undone(d, unit) for unit in units(node)]  # the members of a group are compensated together
        if not all(undone):
            return
    if d.state.parked_reason is None:
        d.record(c.Compensated())


def _acts_are_over(d: Decision, node: Node) -> bool:
    over = True
    for step in members(node):
        state = d.state.peek(step.name)
        if state is None:
            continue
        if state.act.phase is DELAYED:
            d.record(c.Dropped(step.name))
        elif state.act.phase is IN_DOUBT:  # nobody asks any more: in doubt means undone (law 5)
            d.record(c.Verified(step.name, state.act.attempt, UNKNOWN))
        over = over and state.act.phase is not AWAITED
    return over


def _is_undone(d: Decision, unit: Unit) -> bool:
    for step in reversed(members(unit)):
        state = d.state.peek(step.name)
        if state is not None and state.needs_undoing and not undo(d, step, state):
            return False
    return True


def _undo_passed_over(d: Decision) -> None:
    """In a saga that is COMPLETED: undoes the primaries that acted after all, late, behind their stand-ins."""
    for node in reversed(d.plan.fallbacks if d.plan is not None else ()):
        if not passed_over(d, node.primary.name):
            continue
        primary = d.state.step(node.primary.name)
        if primary.needs_undoing and not undo(d, node.primary, primary):
            return


def undo(d: Decision, step: StepPlan, state: StepState) -> bool:
    """Whether the step is undone; if its compensation was never sent, or a person allowed a retry, it is sent now."""
    undoing = state.compensate
    if undoing.phase is IDLE or undoing.may_go_again:
        if not step.compensable and d.is_pivot(step.name):
            d.record(c.Parked(_pivot_acted_late(d, step.name)))
            return False
        if not step.compensable:
            d.record(c.NothingToUndo(step.name))
            return True
        dispatch(d, step, COMPENSATE, attempt=undoing.attempt + 1)
    return False


def _pivot_acted_late(d: Decision, step: str) -> str:
    return (
        f"the pivot {step} acted after all, or may have, when the saga had turned around, and it cannot be undone: put its "
        f"effect right by hand, then `watership retry {d.state.saga_id} --reason …` to compensate the rest (embedded: recover_saga)"
    )


# --- commands ------------------------------------------------------------------------------------------------------


def dispatch(d: Decision, step: StepPlan, action: Action, *, attempt: int) -> None:
    """Decides a command; its reply is awaited until the deadline."""
    assert action is COMPENSATE or d.state.status is RUNNING, "law 3: no act is decided after the turn"
    if action is ACT and not d.state.pivoted and d.is_pivot(step.name):
        d.record(c.PivotReached(step.name))
    d.record(c.Dispatched(step.name, action, attempt, deadline_ms(d, step)))


def deadline_ms(d: Decision, step: StepPlan) -> int:
    """When a command that is sent now must have been answered."""
    return d.now_ms + step.queue_within_ms + step.timeout_ms + GRACE_MS


def turn_around(d: Decision, failure: Failure | None) -> None:
    """From here the saga only goes back (law 3)."""
    d.record(c.CompensationBegan(failure))
    go_on(d)


def passed_over(d: Decision, step: str) -> bool:
    """Whether another step acted in this one's place."""
    unit = d.plan.unit_of.get(step) if d.plan is not None else None
    return isinstance(unit, FallbackPlan) and step == unit.primary.name and unit.fallback.name in d.state.steps
