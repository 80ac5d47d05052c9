"""What the laws say of a log: each new entry, against the plan, the state before it and the entries before it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from watership import codec
from watership.machine import changes as c
from watership.machine.apply import apply
from watership.machine.nodes import FallbackPlan, members
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, Phase, SagaState, Status

Changes = tuple[c.Change, ...]
Offence = tuple[str, str]


def offences(
    plan: Plan | None, before: SagaState, earlier: Sequence[Changes], seq: int, changes: Changes
) -> Iterator[Offence]:
    """Each broken law by name, and in words."""
    if seq != before.seq + 1:
        yield "law_08_the_log_is_the_truth", f"entry {seq} follows entry {before.seq}"
    state = before.copy()
    had_late_act = any(isinstance(change, c.LateAct) for entry in earlier for change in entry)
    replied = {
        (change.step, change.action, change.attempt)
        for entry in earlier
        for change in entry
        if isinstance(change, c.Replied)
    }
    # A run may be told as late, and once more when its attempt, which was put off, is awaited again.
    runs = {
        (change.kind, change.run) for entry in earlier for change in entry if isinstance(change, c.Replied | c.LateAct)
    }
    for change in changes:
        try:
            apply(state, change)
        except ValueError as error:
            yield "law_08_the_log_is_the_truth", str(error)
            return
        had_late_act = had_late_act or isinstance(change, c.LateAct)
        if isinstance(change, c.Dispatched | c.Resent):
            yield from _law_03_strictly_backward(state, change)
        if isinstance(change, c.Dispatched):
            if plan is not None and change.step not in plan.by_name:
                yield "law_07_pinned", f"{change.step} is no step of the plan"
            yield from _law_04_reverse_order(plan, state, change, had_late_act=had_late_act)
            yield from _law_05_in_doubt_means_undone(plan, state, change)
        if isinstance(change, c.Replied):
            key = (change.step, change.action, change.attempt)
            if key in replied:
                yield "law_06_one_outcome_for_an_attempt", f"{key} has two"
            replied.add(key)
        if isinstance(change, c.Replied | c.LateAct):
            if (change.kind, change.run) in runs:
                yield "law_06_one_outcome_for_an_attempt", f"run {change.run} is told twice"
            runs.add((change.kind, change.run))
    if state.status is Status.COMPENSATED:
        yield from _law_05_all_is_undone(state)


def _law_03_strictly_backward(state: SagaState, change: c.Dispatched | c.Resent) -> Iterator[Offence]:
    turned = state.status in (Status.COMPENSATING, Status.COMPENSATED)
    if change.action is Action.ACT and turned:
        yield "law_03_strictly_backward", f"{change.kind} act {change.step} after the turn"
    if change.action is Action.COMPENSATE and state.status is Status.PENDING:
        yield "law_03_strictly_backward", f"compensates {change.step}, and has no plan"


def _law_04_reverse_order(
    plan: Plan | None, state: SagaState, change: c.Dispatched, *, had_late_act: bool
) -> Iterator[Offence]:
    if plan is None or had_late_act or state.status is not Status.COMPENSATING or change.action is Action.ACT:
        return
    for later in steps_after(plan, change.step):
        other = state.peek(later)
        if other is not None and (other.act.active or other.needs_undoing):
            yield "law_04_reverse_order", f"compensates {change.step} before {later}, which may have acted"


def _law_05_in_doubt_means_undone(plan: Plan | None, state: SagaState, change: c.Dispatched) -> Iterator[Offence]:
    """A fallback acts only when its primary surely had no effect, or is undone."""
    node = plan.unit_of.get(change.step) if plan is not None else None
    if not isinstance(node, FallbackPlan) or change.action is not Action.ACT or change.step != node.fallback.name:
        return
    primary = state.peek(node.primary.name)
    first = change.attempt == 1
    if first and primary is not None and primary.needs_undoing:
        yield "law_05_in_doubt_means_undone", f"{change.step} acts, and {node.primary.name} is not undone"


def _law_05_all_is_undone(state: SagaState) -> Iterator[Offence]:
    for name, step in state.steps.items():
        if step.needs_undoing or step.act.active:
            yield "law_05_in_doubt_means_undone", f"COMPENSATED, and {name} may have acted and is not undone"
        if step.act.outcome is Outcome.FAILED and step.compensate.outcome is not None:
            yield "law_05_in_doubt_means_undone", f"{name} had no effect, and was undone"


def is_forgotten(state: SagaState | None, message: str) -> bool:
    """Whether a reply that moved nothing tells of an act that may have had its effect, and that nobody will undo."""
    reply = codec.loads(message)
    if state is None or reply.get("action") != Action.ACT or reply.get("outcome") not in ("done", "unknown", "failed"):
        return False
    step = state.peek(reply["step"])
    harmless = reply["outcome"] == "failed" and (reply.get("certain") or not reply.get("redelivered"))
    if harmless or step is None or reply["attempt"] > step.act.attempt:
        return False
    # A second run of an act that is done and stands changes nothing: the saga wants it done.
    return step.act.outcome is not Outcome.DONE or step.compensate.phase is not Phase.IDLE


def steps_after(plan: Plan, step: str) -> list[str]:
    """The steps that must be undone before this one: those of later nodes, and a fallback's stand-in."""
    found = plan.unit_of[step]
    index = plan.places[step]
    inside = [member.name for member in members(found)]
    own = inside[inside.index(step) + 1 :] if isinstance(found, FallbackPlan) else []
    return own + [member.name for node in plan.nodes[index + 1 :] for member in members(node)]
