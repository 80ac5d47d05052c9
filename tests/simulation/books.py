"""What must be so when all is quiet again: what the participants have in their books, and what the broker still holds."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from watership.machine.nodes import FallbackPlan, Unit, units
from watership.machine.state import Action, Outcome, SagaState, Status
from watership.messages import StepReply

from tests.simulation import flow_laws
from tests.simulation.laws import Laws
from tests.simulation.town import Effect, Kind, Town

Offence = tuple[str, str]


def offences(laws: Laws, town: Town) -> Iterator[Offence]:
    """Each broken promise by name, and in words."""
    for (saga_id, step, attempt), runs in town.begun.items():
        if runs > 1 and not town.manners[step].rerun:
            yield "promise_not_run_twice", f"saga {saga_id.int}: {step} was begun {runs} times (attempt {attempt})"
    for saga_id, state in laws.states.items():
        plan = laws.plans.get(state.plan_hash or "")
        if plan is None:
            continue
        for law, words in flow_laws.end_offences(plan, state, laws.entries[saga_id]):
            yield law, f"saga {saga_id.int}: {words}"
        for node in plan.nodes:
            for unit in units(node):
                yield from _unit(laws, town, saga_id, state, unit)


def _unit(laws: Laws, town: Town, saga_id: uuid.UUID, state: SagaState, unit: Unit) -> Iterator[Offence]:
    members = (unit.primary, unit.fallback) if isinstance(unit, FallbackPlan) else (unit,)
    stands = members[-1].name if len(members) == 2 and members[1].name in state.steps else members[0].name
    for step in members:
        effects = town.effects_of(saga_id, step.name)
        kind = town.manners[step.name].kind
        if state.status is Status.COMPLETED and step.name == stands:
            yield from _stands(saga_id, state, step.name, effects, kind)
        elif step.compensable:
            yield from _undone(laws, saga_id, step.name, effects, kind)


def _stands(saga_id: uuid.UUID, state: SagaState, step: str, effects: list[Effect], kind: Kind) -> Iterator[Offence]:
    acts = sum(one.action is Action.ACT for one in effects)
    undos = len(effects) - acts
    if not acts or undos or (kind != "plain" and acts != 1):
        yield (
            "promise_fully_applied",
            f"saga {saga_id.int} is COMPLETED; {step} acted {acts} and was undone {undos} times",
        )
    if state.context.get(f"f{step[1:]}") is None:
        yield "promise_fully_applied", f"saga {saga_id.int} is COMPLETED, and what {step} wrote is not in its context"
    if state.steps[step].act.outcome is not Outcome.DONE:
        yield "promise_fully_applied", f"saga {saga_id.int} is COMPLETED, and {step} is not done"


def _undone(laws: Laws, saga_id: uuid.UUID, step: str, effects: list[Effect], kind: Kind) -> Iterator[Offence]:
    """With a barrier, what acted is undone. Without, what acted and was told, or was awaited then, is undone after it."""
    undone = [one.number for one in effects if one.action is Action.COMPENSATE]
    for act in effects:
        if act.action is Action.COMPENSATE or any(number > act.number for number in undone):
            continue
        if kind == "barrier" or act.awaited or _was_told(laws, act):
            yield (
                "promise_fully_undone",
                f"saga {saga_id.int}: {step} acted (attempt {act.attempt}, in {act.process}), and is not undone",
            )


def _was_told(laws: Laws, act: Effect) -> bool:
    return any(effects > act.number and _tells(reply, act) for effects, reply in laws.routed_replies)


def _tells(reply: StepReply, act: Effect) -> bool:
    same = (reply.saga_id, reply.step, reply.action) == (act.saga_id, act.step, Action.ACT)
    same = same and reply.attempt == act.attempt
    return same and (reply.outcome in ("done", "unknown") or (reply.outcome == "failed" and reply.redelivered))
