"""What has happened: what `react` is asked about. Past tense, and nothing of how it became known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from watership.machine.state import Action, Failure, Outcome
from watership.values import value


@value
class SagaStarted:
    """Somebody asked for a saga.

    ``look_again_at_ms``: its plan is not known yet (nobody has registered ``plan_hash``, or any saga of this name), and
    is looked for again then. None: the plan is known.
    """

    name: str
    context: dict[str, Any]
    plan_hash: str | None
    look_again_at_ms: int | None = None


@value
class PlanFound:
    """The plan that a PENDING saga waited for was registered."""

    plan_hash: str


@value
class PlanMissing:
    """A PENDING saga's plan was looked for again and is still unknown."""

    look_again_at_ms: int
    looks_max: int


@value
class ContextRefused:
    """The saga's input does not fit the schema of its plan: found when a PENDING saga's plan came."""

    reason: str


@value
class StepReplied:
    """A worker reported one run of one action.

    ``run`` names that run: the same for a duplicate of the reply, another for another run of the same command.
    ``redelivered``: the command was delivered before, so an earlier run may have had an effect.
    ``certain``: a barrier vouches that the outcome holds for every run of this action, so that no doubt is left by another.
    ``known``: the log has this very run already. ``events``: what the step emitted, each with a name and data.
    """

    step: str
    action: Action
    attempt: int
    run: str
    outcome: Outcome
    patch: dict[str, Any] | None = None
    response: Any = None
    failure: Failure | None = None
    redelivered: bool = False
    known: bool = False
    certain: bool = False
    events: tuple[Mapping[str, Any], ...] = ()


@value
class StepNotServed:
    """A worker got a command for a step that it does not have, or cannot run: it ran nothing.

    ``redelivered``: the command was delivered before, so an earlier run may have had an effect.
    ``reason``: why no other worker of this version could run it either; None: it has no such step.
    """

    step: str
    action: Action
    attempt: int
    retry_at_ms: int
    refusals_max: int
    redelivered: bool = False
    reason: str | None = None


@value
class SignalReceived:
    """Somebody answered what the saga waits for, or will wait for. ``trouble``: its data does not fit, and why."""

    name: str
    data: Any
    trouble: str | None = None


@value
class TimePassed:
    """The clock reached what the saga waits for, or somebody looked early."""


@value
class DispatchRepeated:
    """A command must be sent again. ``unsent``: it is certain that nobody ever got it.

    ``refusals_max``: how often a command that no queue takes is sent before the saga is parked.
    """

    step: str
    action: Action
    attempt: int
    unsent: bool
    refusals_max: int = 60


@value
class RunInterrupted:
    """The process that was told to run this is gone, and nobody will report: it may have had its effect."""

    step: str
    action: Action
    attempt: int


@value
class DispatchWithdrawn:
    """A command was decided, and overtaken before it was sent: it will never be."""

    step: str
    action: Action
    attempt: int


@value
class DispatchPutOff:
    """The process that was to run this leaves, and it is certain that it did not begin: another one runs it."""

    step: str
    action: Action
    attempt: int


@value
class RetryRequested:
    """An operator wants the saga to go on now. ``seq`` is the log entry that they had seen; None: any."""

    actor: str
    reason: str
    seq: int | None = None


@value
class CompensateRequested:
    """An operator wants the saga undone. ``seq`` is the log entry that they had seen; None: any."""

    actor: str
    reason: str
    seq: int | None = None


Event = (
    SagaStarted
    | PlanFound
    | PlanMissing
    | ContextRefused
    | StepReplied
    | StepNotServed
    | SignalReceived
    | TimePassed
    | DispatchRepeated
    | RunInterrupted
    | DispatchWithdrawn
    | DispatchPutOff
    | RetryRequested
    | CompensateRequested
)
