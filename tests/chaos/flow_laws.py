"""The laws of what stands among steps: groups, pauses, signals, pivots, and cancels. See `tests.chaos.laws`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from watership.machine.apply import apply
from watership.machine.changes import (
    Change,
    CompensationBegan,
    Dispatched,
    Elapsed,
    Operated,
    PivotReached,
    Replied,
    SignalKept,
    Signalled,
    Verified,
    Waiting,
)
from watership.machine.nodes import names
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, Phase, SagaState

from tests.chaos.evidence import ACCEPTED, Evidence, Said, end_of
from tests.chaos.orders import Kind


def forward_order(evidence: Evidence) -> Iterator[str]:
    """An act is decided when all that stands before its step is done: each member of a group, a wait, a sleep."""
    for saga_id, changes in evidence.histories():
        plan = evidence.plan_of(saga_id)
        if plan is None:
            continue
        state = SagaState(str(saga_id))
        for change in changes:
            if isinstance(change, Dispatched) and change.action is Action.ACT:
                missing = [name for name in _earlier(plan, change.step) if not _is_done(state, name)]
                if missing:
                    yield f"saga {saga_id}: {change.step} was told to act before {', '.join(missing)} was done"
            try:
                apply(state, change)
            except ValueError:
                break  # a broken log: `the_log_is_the_truth` tells


def _earlier(plan: Plan, step: str) -> list[str]:
    nodes = [list(names(node)) for node in plan.nodes]
    position = next(index for index, node in enumerate(nodes) if step in node)
    return [name for node in nodes[:position] for name in node]


def _is_done(state: SagaState, name: str) -> bool:
    found = state.peek(name)
    return found is not None and found.act.phase is Phase.SETTLED and found.act.outcome is Outcome.DONE


def no_pause_ends_early(evidence: Evidence) -> Iterator[str]:
    """A sleep, or a wait without a signal, lasts as long as it was told to."""
    for saga_id in evidence.rows:
        due_at_ms: dict[str, int] = {}
        for entry in evidence.log[saga_id]:
            for change in entry.changes:
                if isinstance(change, Waiting):
                    due_at_ms[change.step] = change.due_at_ms
                elif isinstance(change, Elapsed) and entry.at_ms < due_at_ms.get(change.step, entry.at_ms + 1):
                    yield f"saga {saga_id}: {change.step} ended before its time"


def only_forward_past_the_pivot(evidence: Evidence) -> Iterator[str]:
    """Once its pivot is done a saga ends COMPLETED, nothing of it is undone, and no hand turned it around."""
    for saga_id, changes in evidence.histories():
        plan = evidence.plan_of(saga_id)
        if plan is None or plan.pivot is None:
            continue
        reached = done = False
        for change in changes:
            reached = reached or isinstance(change, PivotReached)
            done = done or _says_done(change, plan.pivot)
            if done and isinstance(change, CompensationBegan):
                yield f"saga {saga_id} turned around past its pivot"
            if reached and isinstance(change, Operated) and change.verb == "compensate":
                yield f"saga {saga_id}: {change.actor} had it undone past its pivot"
        effects = evidence.effects.get(saga_id, [])
        if any(effect.step == plan.pivot for effect in effects) and end_of(evidence.rows[saga_id]) != "COMPLETED":
            yield f"saga {saga_id} is {end_of(evidence.rows[saga_id])}, and its pivot had its effect"


def _says_done(change: Change, step: str) -> bool:
    if isinstance(change, Replied):
        return change.step == step and change.action is Action.ACT and change.outcome is Outcome.DONE
    return isinstance(change, Verified) and change.step == step and change.outcome is Outcome.DONE


def effects_come_in_order(evidence: Evidence) -> Iterator[str]:
    """Behind the barrier, what stands first has its effect first, by the participants' own ledger."""
    for saga_id, _, effects in evidence.sagas_of(Kind.CAREFUL, Kind.STUCK, Kind.FLOW):
        plan = evidence.plan_of(saga_id)
        acts = {effect.step: effect.effect_id for effect in effects if effect.action == "act"}
        if plan is None:
            continue
        for late, number in acts.items():
            early = [step for step in _earlier(plan, late) if acts.get(step, 0) > number]
            if early:
                yield f"saga {saga_id}: {late} had its effect before {', '.join(early)}"


def signals_count_once(evidence: Evidence) -> Iterator[str]:
    """Of a saga's signals the first that was accepted is taken, once; none that was accepted is lost."""
    for saga_id, changes in evidence.histories():
        said = evidence.said.get(saga_id, [])
        taken = [change.data for change in changes if isinstance(change, Signalled)]
        kept = [change.data for change in changes if isinstance(change, SignalKept)]
        if len(taken) > 1 or len(kept) > 1:
            yield f"saga {saga_id} took signals {taken}, and kept {kept}"
        if any(data not in [saying.data for saying in said] for data in (*taken, *kept)):
            yield f"saga {saga_id} took {taken} and kept {kept}, and nobody sent that: {said}"
        accepted = [saying.data for saying in said if saying.told == ACCEPTED]
        if accepted and (taken or kept) and accepted[0] not in (*taken, *kept):
            yield f"saga {saga_id} took {taken} and kept {kept}, and the first that was accepted is {accepted[0]}"
        if accepted and not taken and not kept and not _turned_before_it_came(changes):
            yield f"saga {saga_id} is {end_of(evidence.rows[saga_id])}, and never had {accepted[0]}, which was accepted"
        if (taken or kept) and _differ(said):
            yield f"saga {saga_id}: one signal was sent twice, and was told {[saying.told for saying in said]}"


def _turned_before_it_came(changes: list[Change]) -> bool:
    """It went back for a reason that is not the signal's: then it has no use for it."""
    turns = [change for change in changes if isinstance(change, CompensationBegan)]
    return bool(turns) and (turns[0].failure is None or turns[0].failure.code != "wait_timeout")


def _differ(said: list[Said]) -> bool:
    """Whether the same signal was accepted when it came first, and refused when it came again."""
    first: dict[str, str | None] = {}
    return any(
        first.setdefault(saying.signal_id, saying.told) == ACCEPTED and saying.told not in (None, ACCEPTED)
        for saying in said
    )


def cancels_are_kept(evidence: Evidence) -> Iterator[str]:
    """A cancel that was accepted is in the log and the saga is undone; one that was refused came too late for that."""
    for saga_id, changes in evidence.histories():
        told, end = evidence.called_off.get(saga_id), end_of(evidence.rows[saga_id])
        hands = [change for change in changes if isinstance(change, Operated)]
        if hands and saga_id not in evidence.called_off:
            yield f"saga {saga_id}: {hands[0]}, and nobody asked for that"
        if told == ACCEPTED and (not hands or end == "COMPLETED"):
            yield f"saga {saga_id} is {end} by {hands or 'nobody'}, and a cancel of it was accepted"
        late = end == "COMPLETED" or any(isinstance(change, CompensationBegan | PivotReached) for change in changes)
        if told not in (None, ACCEPTED) and not late:
            yield f"saga {saga_id} is {end}, and a cancel of it was {told}"


LAWS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    forward_order,
    no_pause_ends_early,
    only_forward_past_the_pivot,
    effects_come_in_order,
    signals_count_once,
    cancels_are_kept,
)
