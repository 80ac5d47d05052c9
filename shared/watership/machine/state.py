"""Where a saga stands: what folding its log gives. Changed by `apply` alone."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Any, SupportsIndex

MACHINE_VERSION = 2


class Word(StrEnum):
    """A word of the machine's. It is hashed as the string that it is: an enum of Python's does that five times as slowly."""

    __hash__ = str.__hash__


class Status(Word):
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
        return self in TERMINAL


TERMINAL = frozenset({Status.COMPLETED, Status.COMPENSATED, Status.FAILED})


class Outcome(Word):
    """What one run of an action came to. Of several runs, the highest stands: done > unknown > failed."""

    DONE = "done"
    UNKNOWN = "unknown"  # it may have had an effect
    FAILED = "failed"  # it had no effect


_RANK = {None: 0, Outcome.FAILED: 1, Outcome.UNKNOWN: 2, Outcome.DONE: 3}


def highest(one: Outcome | None, other: Outcome | None) -> Outcome | None:
    """The outcome that stands when an action ran more than once."""
    return one if _RANK[one] >= _RANK[other] else other


class Action(Word):
    """What a worker can be told to do with a step. VERIFY asks what came of an act: done, failed (it had no effect)."""

    ACT = "act"
    COMPENSATE = "compensate"
    VERIFY = "verify"


class Phase(Word):
    """Where one action of one step stands."""

    IDLE = "idle"  # never dispatched
    AWAITED = "awaited"  # dispatched; a reply is awaited until `due_at_ms`
    DELAYED = "delayed"  # to be dispatched at `due_at_ms`
    WAITING = "waiting"  # a sleep or a wait: no command is sent, `due_at_ms` is its moment
    IN_DOUBT = "in_doubt"  # an act that ended unknown, and is being verified
    STOPPED = "stopped"  # out of attempts; a person or a compensation goes on from here
    SETTLED = "settled"  # over: `outcome` stands


# The machine's words, by names of their own: to find a member in its enum takes about as long as to call a function.
ACT, COMPENSATE, VERIFY = Action.ACT, Action.COMPENSATE, Action.VERIFY
DONE, UNKNOWN, FAILED = Outcome.DONE, Outcome.UNKNOWN, Outcome.FAILED
IDLE, AWAITED, DELAYED, WAITING = Phase.IDLE, Phase.AWAITED, Phase.DELAYED, Phase.WAITING
IN_DOUBT, STOPPED, SETTLED = Phase.IN_DOUBT, Phase.STOPPED, Phase.SETTLED
RUNNING = Status.RUNNING

_ACTIVE = frozenset({AWAITED, DELAYED, WAITING})


def idempotency_key(saga_id: object, step: str, action: Action, generation: int) -> str:
    """The same for every attempt and redelivery; a new generation only when an undo must be done again."""
    return f"{saga_id}:{step}:{action}:{generation}"


@dataclasses.dataclass(slots=True)
class ActionState:
    """One action of one step. ``outcome`` is the highest of all runs of this generation."""

    phase: Phase = IDLE
    attempt: int = 0
    spent: int = 0  # attempts that an operator's retry has forgiven
    refusals: int = 0  # times that workers answered "not served" to this attempt
    doubtful: bool = False  # this attempt may have been delivered more than once
    outcome: Outcome | None = None
    due_at_ms: int | None = None
    run: str | None = None  # the run whose reply was applied last: tells a duplicate from another run

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """However a state is copied or pickled, `UNTOUCHED` stays what it is: who would touch it puts another in its place."""
        return "UNTOUCHED" if self is UNTOUCHED else object.__reduce_ex__(self, protocol)

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
        return self.outcome is DONE or self.outcome is UNKNOWN or self.phase is IN_DOUBT

    @property
    def active(self) -> bool:
        """It is dispatched or will be, or waits: something is still to come."""
        return self.phase in _ACTIVE

    def answered(self, attempt: int) -> bool:
        """Whether this attempt is over: a reply to it, or the end of its time, is on record."""
        return attempt < self.attempt or (attempt == self.attempt and not self.active)

    @property
    def may_go_again(self) -> bool:
        """It was out of attempts, and a person gave it a fresh budget."""
        return self.phase is STOPPED and self.spent == self.attempt


# What was never dispatched. Shared by all steps, so never changed: `StepState.touch` puts one of its own in its place.
UNTOUCHED = ActionState()


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """An error as data. ``lineage``: its code, then its wider ones, most specific first.

    ``retry_after_ms``: the error asked that no further attempt begins before.
    """

    code: str
    type_name: str
    message: str
    lineage: tuple[str, ...] = ()
    step: str | None = None
    retry_after_ms: int | None = None


@dataclasses.dataclass(slots=True)
class StepState:
    """One step: its act, its compensation, and the generation of the compensation's key. A sleep or a wait has an act.

    ``own``: what its act wrote, where somebody else may have written the same fields: its compensation sees that.
    ``doubt``: why its act is being verified.
    """

    act: ActionState = dataclasses.field(default_factory=ActionState)
    compensate: ActionState = dataclasses.field(default_factory=ActionState)
    generation: int = 1
    undo_again: bool = False  # a late act came in while its compensation was under way
    verify: ActionState = dataclasses.field(default_factory=ActionState)
    own: dict[str, Any] | None = None
    doubt: Failure | None = None

    def copy(self) -> StepState:
        """An independent copy."""
        compensate, verify = self.compensate, self.verify
        return StepState(
            self.act.copy(),
            compensate if compensate is UNTOUCHED else compensate.copy(),
            self.generation,
            self.undo_again,
            verify if verify is UNTOUCHED else verify.copy(),
            self.own,
            self.doubt,
        )

    def of(self, action: Action) -> ActionState:
        """The state of one of its actions, to be looked at."""
        if action is ACT:
            return self.act
        return self.compensate if action is COMPENSATE else self.verify

    def touch(self, action: Action) -> ActionState:
        """The state of one of its actions, to be changed."""
        if action is ACT:
            return self.act
        found = self.of(action)
        if found is UNTOUCHED:
            found = ActionState()
            if action is COMPENSATE:
                self.compensate = found
            else:
                self.verify = found
        return found

    @property
    def needs_undoing(self) -> bool:
        """It may have acted, and that is not undone."""
        return self.act.may_have_run and self.compensate.phase is not SETTLED


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
    signals: dict[str, Any] = dataclasses.field(default_factory=dict)  # those that came before their wait, by name
    pivoted: bool = False  # its pivot was sent: no deadline and no cancel from here
    deadline_at_ms: int | None = None  # of the whole saga; None: it has none, or none any more
    emits: bool = False  # a step has emitted events
    # Those of `steps` that are this state's alone: the others are copied when they are touched.
    _own: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def copy(self) -> SagaState:
        """An independent copy; the context's values are shared, since patches replace them whole."""
        copied = self.successor()
        copied.context, copied.signals = dict(self.context), dict(self.signals)
        copied.steps = {name: step.copy() for name, step in self.steps.items()}
        return copied

    def successor(self) -> SagaState:
        """A state for `apply` to lead on from this one. They share what is untouched; whichever is changed, copies first."""
        self._own = set()
        return SagaState(
            self.saga_id,
            self.name,
            self.status,
            self.plan_hash,
            self.seq,
            self.context,
            dict(self.steps),
            self.failure,
            self.parked_reason,
            self.paused,
            self.plan_due_at_ms,
            self.plan_looks,
            self.signals,
            self.pivoted,
            self.deadline_at_ms,
            self.emits,
        )

    def key_of(self, step: str, action: Action) -> str:
        """The idempotency key of an action as it stands: an act has one generation, a compensation may have more.

        Who verifies asks by the act's key.
        """
        generation = self.steps[step].generation if action is COMPENSATE else 1
        return idempotency_key(self.saga_id, step, action if action is COMPENSATE else ACT, generation)

    def context_for(self, step: str, action: Action) -> dict[str, Any]:
        """What a command is sent: the context; a compensation sees what its own act wrote, whoever wrote since."""
        own = self.steps[step].own if action is COMPENSATE else None
        return {**self.context, **own} if own else self.context

    def step(self, name: str) -> StepState:
        """The state of a step, to be changed: made on first touch, and copied where another state has it, too."""
        if name in self._own:
            return self.steps[name]
        found = self.steps.get(name)
        found = StepState(ActionState(), UNTOUCHED, 1, False, UNTOUCHED) if found is None else found.copy()
        self.steps[name] = found
        self._own.add(name)
        return found

    def peek(self, name: str) -> StepState | None:
        """The state of a step if it was ever touched, to be looked at: a later `step` may put another in its place."""
        return self.steps.get(name)

    def active_actions(self) -> list[tuple[str, Action, ActionState]]:
        """What is dispatched or will be, and what waits."""
        found = []
        for name, step in self.steps.items():
            if step.act.phase in _ACTIVE:
                found.append((name, ACT, step.act))
            if step.compensate is not UNTOUCHED and step.compensate.phase in _ACTIVE:
                found.append((name, COMPENSATE, step.compensate))
            if step.verify is not UNTOUCHED and step.verify.phase in _ACTIVE:
                found.append((name, VERIFY, step.verify))
        return found

    @property
    def rests(self) -> bool:
        """Nothing follows without a person, or a late reply."""
        return self.parked_reason is not None or not self.active_actions()

    @property
    def sleeps(self) -> bool:
        """It waits for a moment or a signal, and for no reply."""
        return all(action.phase is not AWAITED for _, _, action in self.active_actions())

    @property
    def due_at_ms(self) -> int | None:
        """The moment at which time itself becomes an event; None: nothing to wait for."""
        if self.parked_reason is not None or self.paused:
            return None
        dues = [action.due_at_ms for _, _, action in self.active_actions() if action.due_at_ms is not None]
        if self.status is Status.PENDING and self.plan_due_at_ms is not None:
            dues.append(self.plan_due_at_ms)
        if self.status is RUNNING and self.deadline_at_ms is not None:
            dues.append(self.deadline_at_ms)
        return min(dues, default=None)

    def awaits(self, step: str, action: Action, attempt: int) -> bool:
        """Whether the reply to this dispatch would be applied (law 6)."""
        return self.awaited(step, action, attempt) is not None

    def awaited(self, step: str, action: Action, attempt: int) -> ActionState | None:
        """The state of this dispatch, to be looked at, if its reply would be applied (law 6)."""
        found = self.steps.get(step)
        if found is None:
            return None
        state = found.act if action is ACT else found.of(action)
        return state if state.phase is AWAITED and state.attempt == attempt else None
