"""What a saga may still ask of workers, seen from where it stands: pure, and rather too much than too little.

Whoever changes the code of a step wants to know which sagas still need the step as it was. Told from the plan and the
state alone; `react` never asks it.
"""

from __future__ import annotations

from collections.abc import Iterator

from watership.machine.nodes import FallbackPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, Phase, SagaState, Status, StepState

_UNTOUCHED = StepState()


def outlook(plan: Plan, state: SagaState | None) -> frozenset[tuple[str, Action]]:
    """The commands, by step and action, that a saga in flight on ``plan`` may still send.

    ``state`` None: nothing is known of it, so it may send them all. Compensations count as long as something could turn
    the saga around; so does one that is done, since a late act would have it done again.
    """
    return frozenset(
        (step.name, action) for step in plan.steps() for action in _actions(plan, step, state or SagaState(""))
    )


def _actions(plan: Plan, step: StepPlan, state: SagaState) -> Iterator[Action]:
    forward = state.status in (Status.PENDING, Status.RUNNING)
    of_step = state.steps.get(step.name, _UNTOUCHED)
    may_act = forward and of_step.act.phase is not Phase.SETTLED and not _stood_in_for(plan, step, state)
    touched = of_step.act.phase is not Phase.IDLE
    if may_act:
        yield Action.ACT
    if step.verify_retry is not None and (may_act or of_step.verify.active):
        yield Action.VERIFY
    # A saga may turn around until it ends, or until its pivot is done. What a stand-in acted for is undone even then,
    # should it have acted after all.
    stays = forward and _is_past_the_pivot(plan, state) and not _is_passed_over(plan, step, state)
    if step.compensable and (may_act or touched) and not stays:
        yield Action.COMPENSATE


def _stood_in_for(plan: Plan, step: StepPlan, state: SagaState) -> bool:
    """A fallback that is not needed: its primary is done, and nobody began to undo it."""
    unit = plan.unit_of[step.name]
    if not isinstance(unit, FallbackPlan) or unit.fallback.name != step.name or step.name in state.steps:
        return False
    primary = state.steps.get(unit.primary.name, _UNTOUCHED)
    stands = primary.compensate.phase is Phase.IDLE and primary.generation == 1
    return stands and primary.act.phase is Phase.SETTLED and primary.act.outcome is Outcome.DONE


def _is_passed_over(plan: Plan, step: StepPlan, state: SagaState) -> bool:
    unit = plan.unit_of[step.name]
    return isinstance(unit, FallbackPlan) and unit.primary.name == step.name and unit.fallback.name in state.steps


def _is_past_the_pivot(plan: Plan, state: SagaState) -> bool:
    if plan.pivot is None:
        return False
    act = state.steps.get(plan.pivot, _UNTOUCHED).act
    return act.phase is Phase.SETTLED and act.outcome is Outcome.DONE
