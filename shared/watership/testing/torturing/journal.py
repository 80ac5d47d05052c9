"""What the handlers really did in one run, and what can be suspected of them from that alone. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import StrEnum

from watership.machine.nodes import FallbackPlan, Unit, units
from watership.machine.plan import Plan
from watership.machine.state import Action, SagaState, Status


@dataclasses.dataclass(slots=True, eq=False)
class HandlerRun:
    """One run of a handler. ``began`` and ``ended`` count what happened in the saga; ``ended`` None: it never did.

    ``effective``: it ran to its end. ``answered``: a barrier answered in its place. ``careful``: behind a barrier, or it
    asked for its idempotency key. ``stands_in``: a stand-in, which has no effect that could be had twice.
    """

    step: str
    action: Action
    key: str
    began: int
    ended: int | None = None
    effective: bool = False
    answered: bool = False
    careful: bool = False
    stands_in: bool = False


class Journal:
    """All of them, in order."""

    def __init__(self) -> None:
        self.runs: list[HandlerRun] = []
        self._clock = 0

    def tick(self) -> int:
        """The next number."""
        self._clock += 1
        return self._clock

    def of(self, step: str, action: Action) -> list[HandlerRun]:
        """The runs of one action."""
        return [run for run in self.runs if run.step == step and run.action is action]


class Doubt(StrEnum):
    """What a handler is suspected of."""

    RAN_TWICE = "ran twice"
    NOTHING_TO_UNDO = "nothing to undo"
    LATE_ACT = "late act"


@dataclasses.dataclass(frozen=True, slots=True)
class Suspicion:
    """``sentence`` has no fault in it: the same one may show in many runs."""

    doubt: Doubt
    step: str
    sentence: str


REMEDY = "make it idempotent by current_step().idempotency_key, or put it behind the barrier"


def suspicions(journal: Journal) -> Iterator[Suspicion]:
    """What no check of the user's books was asked about: handlers that nothing kept from having their effect twice."""
    for step, action in dict.fromkeys(
        (run.step, run.action) for run in journal.runs if run.action is not Action.VERIFY
    ):
        runs = [run for run in journal.of(step, action) if run.effective and not run.careful and not run.stands_in]
        keys = [run.key for run in runs]
        if len(set(keys)) < len(keys):
            sentence = f"{step}.{action} ran twice to its end: {REMEDY}"
            yield Suspicion(Doubt.RAN_TWICE, step, sentence)
        if action is Action.ACT:
            yield from _late(journal, step, runs)
        else:
            yield from _empty(journal, step, runs)


def _late(journal: Journal, step: str, acts: list[HandlerRun]) -> Iterator[Suspicion]:
    undone = [run.ended for run in journal.of(step, Action.COMPENSATE) if run.effective and run.ended is not None]
    if undone and any(act.began > min(undone) for act in acts):
        sentence = f"{step}.act ran after its compensation: put it behind the barrier, which keeps out what comes late"
        yield Suspicion(Doubt.LATE_ACT, step, sentence)


def _empty(journal: Journal, step: str, compensations: list[HandlerRun]) -> Iterator[Suspicion]:
    acts = journal.of(step, Action.ACT)
    for run in compensations:
        if not any(act.began < run.began and not act.stands_in for act in acts):
            sentence = (
                f"{step}.compensate ran to its end, though its act never ran: let it look before it undoes, and give "
                f"torture a check= that sees your books; or put both behind the barrier"
            )
            yield Suspicion(Doubt.NOTHING_TO_UNDO, step, sentence)
            return


def unkept(plan: Plan, state: SagaState, journal: Journal) -> Iterator[str]:
    """Where the saga's end says what its handlers did not do: neither fully applied nor fully undone."""
    for node in plan.nodes:
        for unit in units(node):
            if state.status is Status.COMPLETED:
                yield from _unapplied(unit, journal)
            elif state.status is Status.COMPENSATED:
                yield from _not_undone(unit, journal)


def _steps(unit: Unit) -> tuple[str, ...]:
    return (unit.primary.name, unit.fallback.name) if isinstance(unit, FallbackPlan) else (unit.name,)


def _unapplied(unit: Unit, journal: Journal) -> Iterator[str]:
    names = _steps(unit)
    if not any(run.effective or run.answered for name in names for run in journal.of(name, Action.ACT)):
        yield f"the saga is COMPLETED, and {' or '.join(names)} never acted"


def _not_undone(unit: Unit, journal: Journal) -> Iterator[str]:
    members = (unit.primary, unit.fallback) if isinstance(unit, FallbackPlan) else (unit,)
    for step in members:
        acts = [run.ended for run in journal.of(step.name, Action.ACT) if run.effective and run.ended is not None]
        undone = [
            run.ended
            for run in journal.of(step.name, Action.COMPENSATE)
            if (run.effective or run.answered) and run.ended is not None
        ]
        if step.compensable and acts and (not undone or _last_act(journal, step.name, acts) > max(undone)):
            yield f"the saga is COMPENSATED, and an act of {step.name} is not undone"


def _last_act(journal: Journal, step: str, ends: list[int]) -> int:
    """When the last act ended that no barrier would have kept out."""
    careful = all(run.careful for run in journal.of(step, Action.ACT) if run.effective)
    return min(ends) if careful else max(ends)
