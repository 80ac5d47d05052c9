"""What the laws say of a log: each new entry, against the plan, the state before it and the entries before it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeGuard

from watership import codec
from watership.machine import changes as c
from watership.machine.apply import apply
from watership.machine.effects import Effect, NotifyEnd, NotifyParked, SendCommand, effects_of
from watership.machine.nodes import FallbackPlan, members
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, Phase, SagaState, Status

CAUSES_OF_LOOKS = ("time", "owed", "look for plan")

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
    told = [change for entry in earlier for change in entry if isinstance(change, c.Replied | c.LateAct)]
    runs = {(change.kind, change.run) for change in told}
    for change in changes:
        try:
            apply(state, change)
        except ValueError as error:
            yield "law_08_the_log_is_the_truth", str(error)
            return
        had_late_act = had_late_act or isinstance(change, c.LateAct)
        if isinstance(change, c.Dispatched | c.Resent):
            yield from _law_03_strictly_backward(state, change)
        if plan is None and isinstance(change, c.Dispatched | c.Waiting):
            yield "law_07_pinned", f"{change.step} is begun, and its saga has no plan"
        if isinstance(change, c.Dispatched):
            if plan is not None and change.step not in plan.by_name:
                yield "law_07_pinned", f"{change.step} is no step of the plan"
            yield from _law_04_reverse_order(plan, state, change, had_late_act=had_late_act)
            yield from _law_05_in_doubt_means_undone(plan, state, change)
            yield from _law_06_one_key_for_a_generation(state, earlier, change)
        if isinstance(change, c.Overdue) and not state.step(change.step).act.may_have_run:
            yield "law_05_in_doubt_means_undone", f"{change.step} never replied, and is taken for one without effect"
        if isinstance(change, c.Replied):
            key = (change.step, change.action, change.attempt)
            if key in replied:
                yield "law_06_one_outcome_for_an_attempt", f"{key} has two"
            replied.add(key)
        if isinstance(change, c.Replied | c.LateAct):
            # One that is given up as lost, since it must not run twice, has no name.
            if change.run and (change.kind, change.run) in runs:
                yield "law_06_one_outcome_for_an_attempt", f"run {change.run} is told twice"
            runs.add((change.kind, change.run))
    if state.status is Status.COMPENSATED:
        yield from _law_05_all_is_undone(plan, state)
        if had_late_act and state.parked_reason is None:
            yield from _law_06_none_is_forgotten([*(change for entry in earlier for change in entry), *changes])


def _law_03_strictly_backward(state: SagaState, change: c.Dispatched | c.Resent) -> Iterator[Offence]:
    turned = state.status in (Status.COMPENSATING, Status.COMPENSATED)
    if change.action is not Action.COMPENSATE and turned:
        yield "law_03_strictly_backward", f"{change.kind} {change.action} {change.step} after the turn"
    if change.action is Action.COMPENSATE and state.status is Status.PENDING:
        yield "law_03_strictly_backward", f"compensates {change.step}, and has no plan"


def _law_04_reverse_order(
    plan: Plan | None, state: SagaState, change: c.Dispatched, *, had_late_act: bool
) -> Iterator[Offence]:
    if (
        plan is None
        or had_late_act
        or state.status is not Status.COMPENSATING
        or change.action is not Action.COMPENSATE
    ):
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


def _law_05_all_is_undone(plan: Plan | None, state: SagaState) -> Iterator[Offence]:
    for name, step in state.steps.items():
        is_pause = plan is not None and name not in plan.by_name
        if step.act.active or (step.needs_undoing and not is_pause):
            yield "law_05_in_doubt_means_undone", f"COMPENSATED, and {name} may have acted and is not undone"
        if step.act.outcome is Outcome.FAILED and step.compensate.outcome is not None:
            yield "law_05_in_doubt_means_undone", f"{name} had no effect, and was undone"


def _law_06_one_key_for_a_generation(
    state: SagaState, earlier: Sequence[Changes], sent: c.Dispatched
) -> Iterator[Offence]:
    """An undoing that is done has used up its key: another one has another."""
    if sent.action is not Action.COMPENSATE:
        return
    done = [change for entry in earlier for change in entry if _is_undone(change, sent.step)]
    if state.step(sent.step).generation <= len(done):
        yield "law_06_one_key_for_a_generation", f"{sent.step} is undone again, under the key of its first undoing"


def _law_06_none_is_forgotten(log: Sequence[c.Change]) -> Iterator[Offence]:
    """In a saga that is undone: an act that came late is undone by a compensation that was sent after it was known."""
    for place, late in enumerate(log):
        if not isinstance(late, c.LateAct):
            continue
        since = log[place + 1 :]
        sent = {change.attempt for change in since if _sends_undoing(change, late.step)}
        undone = any(_is_undone(one, late.step) and getattr(one, "attempt", None) in {*sent, None} for one in since)
        if not undone:
            yield "law_06_none_is_forgotten", f"{late.step} acted late, and was not undone after that"


def _sends_undoing(change: c.Change, step: str) -> TypeGuard[c.Dispatched]:
    return isinstance(change, c.Dispatched) and change.action is Action.COMPENSATE and change.step == step


def _is_undone(change: c.Change, step: str) -> bool:
    if isinstance(change, c.Replied):
        return (change.step, change.action, change.outcome) == (step, Action.COMPENSATE, Outcome.DONE)
    return isinstance(change, c.NothingToUndo) and change.step == step


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


def must_owe(state: SagaState, entries: Sequence[tuple[str, Changes]], *, by_reaper: bool) -> Iterator[Effect]:
    """What no message would bring again (law 1): what a look decided, or a row. ``entries``: of one commit, with causes.

    ``by_reaper``: it has no messages, but rows that were kept beside the sagas.
    """
    looks = [changes for cause, changes in entries if by_reaper or cause in CAUSES_OF_LOOKS]
    for effect in effects_of(state.seq, [change for changes in looks for change in changes]):
        if wanted(state, effect):
            yield effect


def wanted(state: SagaState, effect: Effect) -> bool:
    """Whether what an entry led to is still to be sent, as the saga stands now."""
    match effect:
        case SendCommand():
            too_late = effect.action is not Action.COMPENSATE and state.status is Status.COMPENSATING
            return state.awaits(effect.step, effect.action, effect.attempt) and not too_late
        case NotifyEnd():
            return state.status is effect.status
        case NotifyParked():
            return state.parked_reason is not None
        case _:
            return False


def steps_after(plan: Plan, step: str) -> list[str]:
    """The steps that must be undone before this one: those of later nodes, and a fallback's stand-in."""
    found = plan.unit_of[step]
    index = plan.places[step]
    inside = [member.name for member in members(found)]
    own = inside[inside.index(step) + 1 :] if isinstance(found, FallbackPlan) else []
    return own + [member.name for node in plan.nodes[index + 1 :] for member in members(node)]
