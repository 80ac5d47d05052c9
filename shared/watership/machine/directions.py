"""The two directions of a saga, as functions of its state alone: see the theory at the top of `react`."""

from __future__ import annotations

from watership.machine import changes as c
from watership.machine.apply import apply
from watership.machine.plan import FallbackPlan, Node, Plan, StepPlan, members
from watership.machine.state import Action, Failure, Outcome, Phase, SagaState, Status, StepState

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
        apply(self.state, change)
        self.changes.append(change)

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.plan.nodes if self.plan is not None else ()

    def step_plan(self, name: str) -> StepPlan:
        assert self.plan is not None, "a step was touched, so the saga has its plan"
        return self.plan.by_name[name]


def go_on(d: Decision) -> None:
    """Looks at the saga afresh, in the direction in which it runs."""
    if d.state.parked_reason is not None:
        return
    if d.state.status is Status.RUNNING:
        _forward(d)
    elif d.state.status is Status.COMPENSATING:
        _backward(d)
    elif d.state.status is Status.COMPLETED:
        _undo_passed_over(d)


def _forward(d: Decision) -> None:
    for node in d.nodes:
        if not (_forward_fallback(d, node) if isinstance(node, FallbackPlan) else _forward_step(d, node)):
            return
    d.record(c.Completed())


def _forward_step(d: Decision, step: StepPlan) -> bool:
    """Whether the step is done; if it was never told to act, it is now."""
    state = d.state.peek(step.name)
    if state is None or state.act.phase is Phase.IDLE:
        dispatch(d, step, Action.ACT, attempt=1)
        return False
    return state.act.phase is Phase.SETTLED


def _forward_fallback(d: Decision, node: FallbackPlan) -> bool:
    primary, fallback = d.state.peek(node.primary.name), d.state.peek(node.fallback.name)
    if primary is None or primary.act.phase is not Phase.SETTLED:
        return _forward_step(d, node.primary)
    untouched = primary.compensate.phase is Phase.IDLE and primary.generation == 1
    if primary.act.outcome is Outcome.DONE and fallback is None and untouched:
        return True
    # From here the primary failed, or is unknown: what it may have done is undone before its stand-in acts.
    if primary.needs_undoing and not undo(d, node.primary, primary):
        return False
    return _forward_step(d, node.fallback)


def _backward(d: Decision) -> None:
    """Law 4: from the last node to the first, each only when the one after it is done compensating."""
    for node in reversed(d.nodes):
        for step in reversed(members(node)):
            state = d.state.peek(step.name)
            if state is None:
                continue
            if state.act.phase is Phase.DELAYED:
                d.record(c.Dropped(step.name))
            if state.act.phase is Phase.AWAITED:
                return  # it may be acting right now: its outcome, or its deadline, comes first
            if state.needs_undoing and not undo(d, step, state):
                return
    d.record(c.Compensated())


def _undo_passed_over(d: Decision) -> None:
    """In a saga that is COMPLETED: undoes the primaries that acted after all, late, behind their stand-ins."""
    for node in reversed(d.nodes):
        if not isinstance(node, FallbackPlan) or not passed_over(d, node.primary.name):
            continue
        primary = d.state.step(node.primary.name)
        if primary.needs_undoing and not undo(d, node.primary, primary):
            return


def undo(d: Decision, step: StepPlan, state: StepState) -> bool:
    """Whether the step is undone; if its compensation was never sent, or a person allowed a retry, it is sent now."""
    undoing = state.compensate
    allowed_again = undoing.phase is Phase.STOPPED and undoing.spent == undoing.attempt
    if undoing.phase is Phase.IDLE or allowed_again:
        if not step.compensable:
            d.record(c.NothingToUndo(step.name))
            return True
        dispatch(d, step, Action.COMPENSATE, attempt=undoing.attempt + 1)
    return False


def dispatch(d: Decision, step: StepPlan, action: Action, *, attempt: int) -> None:
    """Decides a command; its reply is awaited until the deadline."""
    assert action is Action.COMPENSATE or d.state.status is Status.RUNNING, "law 3: no act is decided after the turn"
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
    node = d.plan.node_of.get(step) if d.plan is not None else None
    return isinstance(node, FallbackPlan) and step == node.primary.name and node.fallback.name in d.state.steps
