"""The saga's own ways to go wrong, one for each: a step that fails, one that is unknown, a compensation that fails once.

A branch says what the handlers do; the faults of the machinery come on top. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import StrEnum

from watership.errors import StepError
from watership.machine.nodes import FallbackPlan, SleepPlan, StepPlan, WaitPlan, units
from watership.machine.plan import Plan
from watership.machine.state import Action
from watership.saga.compile import Definition


class Conduct(StrEnum):
    """How an action goes, whatever its handler would do."""

    FAILS = "fails"
    UNKNOWN_ACTED = "unknown, acted"
    UNKNOWN_IDLE = "unknown, did not act"


@dataclasses.dataclass(frozen=True, slots=True)
class Manner:
    """A conduct, and how many attempts have it; None: all. ``error``: what a failure raises."""

    conduct: Conduct
    attempts: int | None = None
    error: type[Exception] = StepError


@dataclasses.dataclass(frozen=True, slots=True)
class Branch:
    """``name`` is how it is written in ``only``, and told.

    ``may_park``: ending parked is right here. So it is where the pivot is made to fail: delivered twice, its outcome is
    unknown, and a pivot is never undone blindly.
    """

    name: str
    manners: Mapping[tuple[str, Action], Manner]
    silent: frozenset[str] = frozenset()  # signals that never come
    may_park: bool = False

    def manner(self, step: str, action: Action, attempt: int) -> Manner | None:
        """How this attempt goes; None: as its handler has it."""
        manner = self.manners.get((step, action))
        return manner if manner is not None and (manner.attempts is None or attempt <= manner.attempts) else None

    def mode(self, step: str) -> str:
        """What is special about a step here: two branches that are alike in it treat its handlers alike."""
        return ", ".join(
            f"{action} {manner.conduct}" for (name, action), manner in self.manners.items() if name == step
        )


PLAIN = Branch("", {})


def branches(definition: Definition) -> Iterator[Branch]:
    """Every branch of a saga, in the order of its steps."""
    pivot = definition.plan.pivot
    for branch in _branches(definition):
        yield dataclasses.replace(branch, may_park=pivot is not None and (pivot, Action.ACT) in branch.manners)


def _branches(definition: Definition) -> Iterator[Branch]:
    plan = definition.plan
    for node in plan.nodes:
        if isinstance(node, WaitPlan):
            yield Branch(f"no signal {node.name}", {}, frozenset({node.name}))
        for unit in units(node):
            if not isinstance(unit, FallbackPlan):
                yield from _of_step(plan, unit, {})
                continue
            yield from _of_step(plan, unit.primary, {})
            errors = definition.fallbacks[unit.primary.name].failure_exceptions or (StepError,)
            gives_way = _always(unit.primary, Conduct.FAILS, errors[0])
            given: dict[tuple[str, Action], Manner] = {(unit.primary.name, Action.ACT): gives_way}
            yield Branch(f"{unit.primary.name} gives way to {unit.fallback.name}", given)
            yield from _of_step(plan, unit.fallback, given)


def _of_step(plan: Plan, step: StepPlan, given: Mapping[tuple[str, Action], Manner]) -> Iterator[Branch]:
    name = step.name
    acts = (name, Action.ACT)
    yield Branch(f"{name} fails", {**given, acts: _always(step, Conduct.FAILS)})
    unknown = _always(step, Conduct.UNKNOWN_ACTED)
    yield Branch(f"{name} unknown but acted", {**given, acts: unknown})
    idle = _always(step, Conduct.UNKNOWN_IDLE)
    yield Branch(f"{name} unknown and did not act", {**given, acts: idle})
    if not step.compensable:
        return
    later = _turns_around_after(plan, step)
    turns = {(later.name, Action.ACT): _always(later, Conduct.FAILS)} if later is not None else {acts: unknown}
    undo = Manner(Conduct.FAILS, attempts=1)
    yield Branch(f"undoing {name} fails once", {**given, **turns, (name, Action.COMPENSATE): undo})


def _always(step: StepPlan, conduct: Conduct, error: type[Exception] = StepError) -> Manner:
    """Every attempt, but where attempts have no end: there it would never end."""
    return Manner(conduct, attempts=1 if step.retry.attempts_max is None else None, error=error)


def _turns_around_after(plan: Plan, step: StepPlan) -> StepPlan | None:
    """The next step whose failure has this one undone."""
    passed = False
    for node in plan.nodes:
        if isinstance(node, SleepPlan | WaitPlan):
            continue
        for unit in units(node):
            own = (unit.primary, unit.fallback) if isinstance(unit, FallbackPlan) else (unit,)
            if passed and not isinstance(unit, FallbackPlan) and unit.retry.attempts_max is not None:
                return unit
            passed = passed or step in own
    return None
