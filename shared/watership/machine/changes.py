"""Decided changes: what the log holds. Folding them with `apply` gives the saga's row, state, context and all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

from watership.machine.state import Action, Failure, Outcome
from watership.values import value


@value
class Created:
    """The saga exists. ``look_again_at_ms`` set: PENDING, its plan is looked for again then."""

    kind: ClassVar[str] = "created"
    name: str
    context: dict[str, Any]
    plan_hash: str | None
    look_again_at_ms: int | None = None
    deadline_at_ms: int | None = None


@value
class PlanPinned:
    """A PENDING saga got its plan."""

    kind: ClassVar[str] = "plan_pinned"
    plan_hash: str
    deadline_at_ms: int | None = None


@value
class PlanMissed:
    """A PENDING saga's plan is still unknown."""

    kind: ClassVar[str] = "plan_missed"
    look_again_at_ms: int


@value
class Dispatched:
    """A command was decided. Its reply is awaited until ``due_at_ms``."""

    kind: ClassVar[str] = "dispatched"
    step: str
    action: Action
    attempt: int
    due_at_ms: int


@value
class Resent:
    """The same attempt goes out again. ``doubtful``: an earlier delivery of it may have run, or still run."""

    kind: ClassVar[str] = "resent"
    step: str
    action: Action
    attempt: int
    due_at_ms: int
    doubtful: bool


@value
class Withdrawn:
    """A decided command was never sent."""

    kind: ClassVar[str] = "withdrawn"
    step: str
    action: Action
    attempt: int


@value
class Replied:
    """A run's outcome was applied. ``final``: no further attempt follows by itself.

    ``redelivered``: another run of it may have been begun. ``in_doubt``: it is not unknown yet, but asked about first.
    ``shared``: a member of a parallel group, whose fields others may write too. ``events``: what the step emitted.
    """

    kind: ClassVar[str] = "replied"
    step: str
    action: Action
    attempt: int
    run: str
    outcome: Outcome
    final: bool
    patch: dict[str, Any] | None = None
    response: Any = None
    failure: Failure | None = None
    redelivered: bool | None = None
    in_doubt: bool | None = None
    shared: bool | None = None
    events: list[dict[str, Any]] | None = None


@value
class Verified:
    """What came of an act in doubt: done, failed (it had no effect), or unknown, and it stays unknown.

    A late reply may have told it, with its ``response`` and ``events``. ``shared``: as in `Replied`.
    """

    kind: ClassVar[str] = "verified"
    step: str
    attempt: int
    outcome: Outcome
    patch: dict[str, Any] | None = None
    response: Any = None
    shared: bool | None = None
    events: list[dict[str, Any]] | None = None


@value
class Stopped:
    """An act that can neither be undone nor left is out of attempts: the saga is parked."""

    kind: ClassVar[str] = "stopped"
    step: str


@value
class PivotReached:
    """The pivot is about to be sent: no deadline and no cancel from here."""

    kind: ClassVar[str] = "pivot_reached"
    step: str


@value
class Waiting:
    """A sleep or a wait began, and lasts until ``due_at_ms`` at the longest."""

    kind: ClassVar[str] = "waiting"
    step: str
    due_at_ms: int


@value
class Elapsed:
    """A sleep ended, or a wait had no signal in its time. ``outcome``: done, or failed where the saga turns around."""

    kind: ClassVar[str] = "elapsed"
    step: str
    outcome: Outcome


@value
class SignalKept:
    """A signal came before the saga waits for it."""

    kind: ClassVar[str] = "signal_kept"
    name: str
    data: Any


@value
class Signalled:
    """A wait had its signal: its data is in the context's field ``into``."""

    kind: ClassVar[str] = "signalled"
    step: str
    data: Any
    into: str | None


@value
class Overdue:
    """While the saga is being undone, an act did not reply in its time: unknown, and no further attempt."""

    kind: ClassVar[str] = "overdue"
    step: str
    attempt: int


@value
class Delayed:
    """``attempt`` is to be dispatched at ``due_at_ms``."""

    kind: ClassVar[str] = "delayed"
    step: str
    action: Action
    attempt: int
    due_at_ms: int


@value
class Postponed:
    """No worker serves the step now: the same attempt is to be dispatched again at ``due_at_ms``.

    ``doubtful``: an earlier delivery of it may have run.
    """

    kind: ClassVar[str] = "postponed"
    step: str
    action: Action
    attempt: int
    due_at_ms: int
    doubtful: bool = False


@value
class Dropped:
    """A planned retry of an act will not happen: the saga is being undone."""

    kind: ClassVar[str] = "dropped"
    step: str


@value
class NothingToUndo:
    """The step has no compensation: it counts as undone."""

    kind: ClassVar[str] = "nothing_to_undo"
    step: str


@value
class LateAct:
    """An act that nobody awaited any more may have had its effect: merged, and to be undone (again).

    ``aside``: what it wrote is for its own compensation alone, since others have written the same since.
    """

    kind: ClassVar[str] = "late_act"
    step: str
    attempt: int
    run: str
    outcome: Outcome
    patch: dict[str, Any] | None = None
    aside: bool | None = None


@value
class CompensationBegan:
    """From here the saga only goes back."""

    kind: ClassVar[str] = "compensation_began"
    failure: Failure | None


@value
class Completed:
    """Every step acted."""

    kind: ClassVar[str] = "completed"


@value
class Compensated:
    """Everything that may have acted is undone."""

    kind: ClassVar[str] = "compensated"


@value
class Parked:
    """The saga needs a person."""

    kind: ClassVar[str] = "parked"
    reason: str


@value
class Unparked:
    """A person let it go on."""

    kind: ClassVar[str] = "unparked"


@value
class RetryAllowed:
    """A person gave an action that was out of attempts a fresh budget."""

    kind: ClassVar[str] = "retry_allowed"
    step: str
    action: Action


@value
class Operated:
    """Every hand leaves a mark (law 12): who did what, and why."""

    kind: ClassVar[str] = "operated"
    actor: str
    verb: str
    reason: str


Change = (
    Created
    | PlanPinned
    | PlanMissed
    | Dispatched
    | Resent
    | Withdrawn
    | Replied
    | Verified
    | Stopped
    | PivotReached
    | Waiting
    | Elapsed
    | SignalKept
    | Signalled
    | Overdue
    | Delayed
    | Postponed
    | Dropped
    | NothingToUndo
    | LateAct
    | CompensationBegan
    | Completed
    | Compensated
    | Parked
    | Unparked
    | RetryAllowed
    | Operated
)

_CLASSES: dict[str, type[Change]] = {cls.kind: cls for cls in Change.__args__}
_FIELDS = {cls: tuple(field.name for field in dataclasses.fields(cls)) for cls in Change.__args__}
# All of a change's values by one call. The kind twice: of one name alone `attrgetter` gives the value, and no tuple.
_VALUES_OF = {cls: attrgetter("kind", "kind", *names) for cls, names in _FIELDS.items()}
_KEYS = {cls: ("k", "k", *names) for cls, names in _FIELDS.items()}
_READERS: dict[str, Any] = {"action": Action, "outcome": Outcome}


def change_to_data(change: Change) -> dict[str, Any]:
    """Plain JSON data with the kind under ``k``; fields that are None are left out."""
    cls = type(change)
    values = zip(_KEYS[cls], _VALUES_OF[cls](change), strict=True)
    data: dict[str, Any] = {key: item for key, item in values if item is not None}
    failure = data.get("failure")
    if failure is not None:
        data["failure"] = failure_to_data(failure)
    return data


def change_from_data(data: Mapping[str, Any]) -> Change:
    """Reads what `change_to_data` wrote."""
    cls = _CLASSES[data["k"]]
    values: dict[str, Any] = dict.fromkeys(_FIELDS[cls])
    for name, item in data.items():
        if name == "failure":
            values[name] = failure_from_data(item)
        elif name != "k":
            reader = _READERS.get(name)
            values[name] = reader(item) if reader else item
    return cls(**values)


def change_to_list(change: Change) -> tuple[Any, ...]:
    """The kind and all values in the order of the fields, for `codec.dumps`: half the work, and no word of what each is."""
    values: tuple[Any, ...] = _VALUES_OF[type(change)](change)
    return values


def change_from_list(values: Sequence[Any]) -> Change:
    """Reads what `change_to_list` and `codec.dumps` wrote."""
    keys = _KEYS[_CLASSES[values[0]]]
    return change_from_data({key: item for key, item in zip(keys, values, strict=True) if item is not None})


def failure_to_data(failure: Failure) -> dict[str, Any]:
    """Plain JSON data."""
    data: dict[str, Any] = {
        "code": failure.code,
        "type_name": failure.type_name,
        "message": failure.message,
        "lineage": list(failure.lineage),
        "step": failure.step,
    }
    if failure.retry_after_ms is not None:
        data["retry_after_ms"] = failure.retry_after_ms
    return data


def failure_from_data(data: Mapping[str, Any]) -> Failure:
    """Reads what `failure_to_data` wrote."""
    return Failure(
        data["code"],
        data["type_name"],
        data["message"],
        tuple(data["lineage"]),
        data["step"],
        data.get("retry_after_ms"),
    )
