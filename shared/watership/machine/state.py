"""Where a saga stands: what folding its log gives. Changed by `apply` alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

MACHINE_VERSION = 1


class Status(StrEnum):
    """The status of a saga. ``parked_reason`` and ``paused`` are marks beside it."""

    PENDING = "PENDING"  # accepted; its plan is not known yet
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    COMPENSATING = "COMPENSATING"
    COMPENSATED = "COMPENSATED"
    FAILED = "FAILED"  # reserved for an operator's abandon: nothing sets it in 0.1

    @property
    def terminal(self) -> bool:
        """Nothing follows by itself, but for a late act that must be undone."""
        return self in _TERMINAL


_TERMINAL = frozenset({Status.COMPLETED, Status.COMPENSATED, Status.FAILED})


class Outcome(StrEnum):
    """What one run of an action came to. Of several runs, the highest stands: done > unknown > failed."""

    DONE = "done"
    UNKNOWN = "unknown"  # it may have had an effect
    FAILED = "failed"  # it had no effect


_RANK = {None: 0, Outcome.FAILED: 1, Outcome.UNKNOWN: 2, Outcome.DONE: 3}


def highest(one: Outcome | None, other: Outcome | None) -> Outcome | None:
    """The outcome that stands when an action ran more than once."""
    return one if _RANK[one] >= _RANK[other] else other


class Action(StrEnum):
    """The two things that a worker can be told to do with a step."""

    ACT = "act"
    COMPENSATE = "compensate"


class Phase(StrEnum):
    """Where one action of one step stands."""

    IDLE = "idle"  # never dispatched
    AWAITED = "awaited"  # dispatched; a reply is awaited until `due_at_ms`
    DELAYED = "delayed"  # to be dispatched at `due_at_ms`
    STOPPED = "stopped"  # out of attempts; a person or a compensation goes on from here
    SETTLED = "settled"  # over: `outcome` stands


def idempotency_key(saga_id: object, step: str, action: Action, generation: int) -> str:
    """The same for every attempt and redelivery; a new generation only when an undo must be done again."""
    return f"{saga_id}:{step}:{action}:{generation}"


@dataclasses.dataclass(slots=True)
class ActionState:
    """One action of one step. ``outcome`` is the highest of all runs of this generation."""

    phase: Phase = Phase.IDLE
    attempt: int = 0
    spent: int = 0  # attempts that an operator's retry has forgiven
    refusals: int = 0  # times that workers answered "not served" to this attempt
    doubtful: bool = False  # this attempt may have been delivered more than once
    outcome: Outcome | None = None
    due_at_ms: int | None = None
    run: str | None = None  # the run whose reply was applied last: tells a duplicate from another run

    def copy(self) -> ActionState:
        """An independent copy."""
        return ActionState(
            self.phase,
            self.attempt,
            self.spent,
            self.refusals,
            self.doubtful,
            self.outcome,
            self.due_at_ms,
            self.run,
        )

    @property
    def may_have_run(self) -> bool:
        """Some run of it was done or unknown."""
        return self.outcome is Outcome.DONE or self.outcome is Outcome.UNKNOWN

    @property
    def active(self) -> bool:
        """It is dispatched or will be: something is still to come."""
        return self.phase is Phase.AWAITED or self.phase is Phase.DELAYED


@dataclasses.dataclass(slots=True)
class StepState:
    """One step: its act, its compensation, and the generation of the compensation's key."""

    act: ActionState = dataclasses.field(default_factory=ActionState)
    compensate: ActionState = dataclasses.field(default_factory=ActionState)
    generation: int = 1
    undo_again: bool = False  # a late act came in while its compensation was under way

    def copy(self) -> StepState:
        """An independent copy."""
        return StepState(self.act.copy(), self.compensate.copy(), self.generation, self.undo_again)

    def of(self, action: Action) -> ActionState:
        """The state of one of its two actions."""
        return self.act if action is Action.ACT else self.compensate

    @property
    def needs_undoing(self) -> bool:
        """It may have acted, and that is not undone."""
        return self.act.may_have_run and self.compensate.phase is not Phase.SETTLED


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """An error as data. ``lineage``: its code, then its wider ones, most specific first."""

    code: str
    type_name: str
    message: str
    lineage: tuple[str, ...] = ()
    step: str | None = None


@dataclasses.dataclass(slots=True)
class SagaState:
    """One saga. ``seq`` is the number of its newest log entry; ``steps`` has only steps that were touched."""

    saga_id: str
    name: str = ""
    status: Status = Status.PENDING
    plan_hash: str | None = None
    seq: int = 0
    context: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: dict[str, StepState] = dataclasses.field(default_factory=dict)
    failure: Failure | None = None
    parked_reason: str | None = None
    paused: bool = False
    plan_due_at_ms: int | None = None  # PENDING: when to look for the plan again
    plan_looks: int = 0

    def copy(self) -> SagaState:
        """An independent copy; the context's values are shared, since patches replace them whole."""
        return SagaState(
            self.saga_id,
            self.name,
            self.status,
            self.plan_hash,
            self.seq,
            dict(self.context),
            {name: step.copy() for name, step in self.steps.items()},
            self.failure,
            self.parked_reason,
            self.paused,
            self.plan_due_at_ms,
            self.plan_looks,
        )

    def key_of(self, step: str, action: Action) -> str:
        """The idempotency key of an action as it stands: an act has one generation, a compensation may have more."""
        generation = self.steps[step].generation if action is Action.COMPENSATE else 1
        return idempotency_key(self.saga_id, step, action, generation)

    def step(self, name: str) -> StepState:
        """The state of a step, made on first touch."""
        found = self.steps.get(name)
        if found is None:
            found = self.steps[name] = StepState()
        return found

    def peek(self, name: str) -> StepState | None:
        """The state of a step if it was ever touched."""
        return self.steps.get(name)

    def active_actions(self) -> Iterator[tuple[str, Action, ActionState]]:
        """What is dispatched or will be."""
        for name, step in self.steps.items():
            if step.act.active:
                yield name, Action.ACT, step.act
            if step.compensate.active:
                yield name, Action.COMPENSATE, step.compensate

    @property
    def due_at_ms(self) -> int | None:
        """The moment at which time itself becomes an event; None: nothing to wait for."""
        if self.parked_reason is not None or self.paused:
            return None
        dues = [action.due_at_ms for _, _, action in self.active_actions() if action.due_at_ms is not None]
        if self.status is Status.PENDING and self.plan_due_at_ms is not None:
            dues.append(self.plan_due_at_ms)
        return min(dues, default=None)

    def awaits(self, step: str, action: Action, attempt: int) -> bool:
        """Whether the reply to this dispatch would be applied (law 6)."""
        found = self.steps.get(step)
        if found is None:
            return False
        state = found.of(action)
        return state.phase is Phase.AWAITED and state.attempt == attempt
