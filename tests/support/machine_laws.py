"""The laws of DESIGN as checks on a plan, a state, its log and one transition. They raise AssertionError."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from watership.machine import changes as c
from watership.machine.apply import fold
from watership.machine.effects import NotifyStep, PublishEvent, effects_of
from watership.machine.nodes import FallbackPlan, Unit, WaitPlan, members, names, units
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, Phase, SagaState, Status, highest
from watership.saga.storage import rows

Log = Sequence[tuple[c.Change, ...]]


# --- one transition


def no_act_after_the_turn(before: SagaState, changes: Sequence[c.Change]) -> None:
    turned = before.status in (Status.COMPENSATING, Status.COMPENSATED)
    for change in changes:
        turned = turned or isinstance(change, c.CompensationBegan)
        sends = isinstance(change, c.Dispatched | c.Resent) and change.action is Action.ACT
        assert not (turned and sends), "law 3"
        asks = isinstance(change, c.Dispatched) and change.action is Action.VERIFY
        assert not (turned and asks), "nobody asks about an act that will be undone"
        assert not (turned and isinstance(change, c.Waiting)), "no wait begins after the turn"


def in_reverse_order(plan: Plan, after: SagaState, changes: Sequence[c.Change]) -> None:
    """Law 4, of a saga without late acts: what comes later is undone first; a group's members go together."""
    if after.status is not Status.COMPENSATING:
        return
    for change in changes:
        if not (isinstance(change, c.Dispatched) and change.action is Action.COMPENSATE and change.attempt == 1):
            continue
        place = plan.places[change.step]
        for node in plan.nodes[place + 1 :]:
            for name in names(node):
                state = after.peek(name)
                assert state is None or not state.act.active, "law 4: a later node is under way"
            for step in members(node):
                state = after.peek(step.name)
                assert state is None or not state.needs_undoing, "law 4: a later step is not undone"
        for step in members(plan.nodes[place]):
            state = after.peek(step.name)
            assert state is None or not (state.act.active or state.act.phase is Phase.IN_DOUBT), "law 4: the group acts"
        unit = plan.unit_of[change.step]
        if isinstance(unit, FallbackPlan) and change.step == unit.primary.name:
            stand_in = after.peek(unit.fallback.name)
            assert stand_in is None or not stand_in.needs_undoing, "law 4: the stand-in comes first"


def outcomes_only_rise(before: SagaState, after: SagaState) -> None:
    for name, old in before.steps.items():
        new = after.steps[name]
        assert highest(old.act.outcome, new.act.outcome) == new.act.outcome, "law 5"
        if old.generation == new.generation:
            assert highest(old.compensate.outcome, new.compensate.outcome) == new.compensate.outcome
        assert new.generation >= old.generation
        assert new.compensate.attempt >= old.compensate.attempt, "attempts are counted on"
        assert new.verify.attempt >= old.verify.attempt, "attempts are counted on"


def only_forward_from_the_pivot(plan: Plan, before: SagaState, after: SagaState, changes: Sequence[c.Change]) -> None:
    """The saga turns around behind its pivot only if no run of the pivot may have had an effect."""
    if plan.pivot is None:
        return
    pivoted = before.pivoted
    for change in changes:
        if isinstance(change, c.Dispatched) and change.step == plan.pivot and change.action is Action.ACT:
            assert pivoted or any(isinstance(one, c.PivotReached) for one in changes), "the pivot is sent unannounced"
        pivoted = pivoted or isinstance(change, c.PivotReached)
        if isinstance(change, c.CompensationBegan) and pivoted and before.status is Status.RUNNING:
            assert after.steps[plan.pivot].act.outcome is Outcome.FAILED, "law 5: undone behind its pivot"
    if after.pivoted:
        assert after.deadline_at_ms is None, "the pivot takes the deadline away"
    place = plan.places[plan.pivot]
    if any(name in after.steps for node in plan.nodes[place + 1 :] for name in names(node)):
        assert after.status in (Status.RUNNING, Status.COMPLETED), "law 5: past the pivot there is only forward"


# --- where it stands


def nothing_is_stuck(state: SagaState) -> None:
    if state.seq and (not state.status.terminal or any(state.active_actions())):
        assert state.parked_reason is not None or state.due_at_ms is not None, "law 2"


def the_log_is_the_truth(state: SagaState, log: Log) -> None:
    assert fold(state.saga_id, log) == state, "law 8"
    for entry in log[-1:]:
        assert rows.changes_from_json(rows.changes_to_json(entry)) == entry, "law 8: the log as it is written"


def the_row_is_the_state(state: SagaState) -> None:
    row = {
        "saga_id": state.saga_id,
        "name": state.name,
        "status": state.status.value,
        "plan_hash": state.plan_hash,
        "seq": state.seq,
        "context": rows.context_to_json(state),
        "state": rows.state_to_json(state),
        "parked_reason": state.parked_reason,
        "paused": state.paused,
    }
    assert rows.state_from_row(row) == state, "law 8: the row reads as another state"


def compensated_means_undone(plan: Plan, state: SagaState, log: Log, really_acted: set[str]) -> None:
    if state.status is not Status.COMPENSATED:
        return
    for name, step in state.steps.items():
        assert not step.act.active
        if name not in plan.by_name:
            continue  # a pause
        assert not step.needs_undoing
        assert step.act.phase is not Phase.IN_DOUBT
        assert step.act.may_have_run or name not in really_acted, f"{name} acted, and is forgotten"
        if step.act.may_have_run and plan.by_name[name].compensable:
            assert _undone_after_its_last_effect(name, log), f"{name} is not undone"


def completed_means_done_once(plan: Plan, state: SagaState, log: Log) -> None:
    if state.status is not Status.COMPLETED:
        return
    told = Counter(effect.step for effect in _effects(log) if isinstance(effect, NotifyStep))
    for node in plan.nodes:
        for name in names(node):
            assert name in state.steps or name in plan.by_name, f"{name} was passed over"
        if isinstance(node, WaitPlan):
            assert state.steps[node.name].act.outcome is Outcome.DONE
        for unit in units(node):
            _stands(state, unit, told)


def _stands(state: SagaState, unit: Unit, told: Counter[str]) -> None:
    first = members(unit)[0]
    one, standing = state.steps[first.name], first.name
    if isinstance(unit, FallbackPlan) and unit.fallback.name in state.steps:
        standing = unit.fallback.name
        undone = not one.act.may_have_run or not one.needs_undoing
        assert undone or any(state.active_actions()) or state.parked_reason is not None
    stands = state.steps[standing]
    assert stands.act.outcome is Outcome.DONE
    assert stands.act.phase is Phase.SETTLED
    assert stands.compensate.phase is Phase.IDLE
    assert stands.generation == 1
    assert told[standing] == 1, f"{standing} is told {told[standing]} times"


def signals_are_taken_once(log: Log) -> None:
    changes = [change for entry in log for change in entry]
    taken = Counter(change.step for change in changes if isinstance(change, c.Signalled | c.Elapsed))
    kept = Counter(change.name for change in changes if isinstance(change, c.SignalKept))
    assert all(count == 1 for count in taken.values()), "a pause ends once"
    assert all(count == 1 for count in kept.values()), "the first signal of a name is kept"


def events_are_told_apart(log: Log) -> None:
    found = [(effect.seq, effect.index) for effect in _effects(log) if isinstance(effect, PublishEvent)]
    assert len(found) == len(set(found))


def _effects(log: Log) -> list[object]:
    return [effect for seq, entry in enumerate(log, 1) for effect in effects_of(seq, entry)]


def _undone_after_its_last_effect(name: str, log: Log) -> bool:
    changes = [change for entry in log for change in entry if getattr(change, "step", None) == name]
    effects = (c.Replied, c.LateAct, c.Overdue, c.Dropped, c.Verified)
    last = max(
        index
        for index, change in enumerate(changes)
        if isinstance(change, effects)
        and getattr(change, "action", Action.ACT) is Action.ACT
        and getattr(change, "outcome", Outcome.UNKNOWN) is not Outcome.FAILED
    )
    sent: dict[int, int] = {}
    for index, change in enumerate(changes):
        if isinstance(change, c.Dispatched) and change.action is Action.COMPENSATE:
            sent.setdefault(change.attempt, index)
    return any(
        isinstance(change, c.Replied)
        and change.action is Action.COMPENSATE
        and change.outcome is Outcome.DONE
        and sent[change.attempt] > last
        for change in changes
    )
