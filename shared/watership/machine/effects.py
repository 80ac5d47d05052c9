"""What must be done once a transition has committed. Imperative, and derived from the decided changes alone.

So what a log entry owed can be found again from the log: a redelivered message sends its entry's effects again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

from watership.machine import changes as c
from watership.machine.state import ACT, DONE, Action, Status
from watership.values import value


@value
class SendCommand:
    """Tell a worker to run one action of one step."""

    step: str
    action: Action
    attempt: int


@value
class NotifyStep:
    """Tell whoever watches that a step is done."""

    seq: int
    step: str
    response: Any
    patch: dict[str, Any] | None


@value
class NotifyEnd:
    """Tell whoever watches that the saga ended."""

    seq: int
    status: Status


@value
class NotifyParked:
    """Tell whoever watches that the saga needs a person."""

    seq: int
    reason: str


@value
class PublishEvent:
    """Tell the world what a step emitted. ``index``: its place among those of the same log entry."""

    seq: int
    index: int
    step: str
    name: str
    data: Any


Effect = SendCommand | NotifyStep | NotifyEnd | NotifyParked | PublishEvent


def effects_of(seq: int, changes: Iterable[c.Change]) -> list[Effect]:
    """The effects of the log entry ``seq``, in the order of its changes."""
    effects: list[Effect] = []
    for change in changes:
        follows = _EFFECTS.get(type(change))
        if follows is not None:
            effects.extend(follows(seq, change))
    return effects


def _command(_: int, change: c.Dispatched | c.Resent) -> Sequence[Effect]:
    return (SendCommand(change.step, change.action, change.attempt),)


def tells_step(change: c.Change) -> TypeGuard[c.Replied | c.Verified]:
    """Whether a step is done by this change: watchers are told."""
    if isinstance(change, c.Replied):
        return change.action is ACT and change.outcome is DONE
    return isinstance(change, c.Verified) and change.outcome is DONE


def _step_is_done(seq: int, change: c.Replied | c.Verified) -> Sequence[Effect]:
    if not tells_step(change):
        return ()
    told: list[Effect] = [NotifyStep(seq, change.step, change.response, change.patch)]
    for index, event in enumerate(change.events or ()):
        told.append(PublishEvent(seq, index, change.step, event["name"], event["data"]))
    return told


_EFFECTS: dict[type[c.Change], Callable[[int, Any], Sequence[Effect]]] = {
    c.Dispatched: _command,
    c.Resent: _command,
    c.Replied: _step_is_done,
    c.Verified: _step_is_done,
    c.Completed: lambda seq, _: (NotifyEnd(seq, Status.COMPLETED),),
    c.Compensated: lambda seq, _: (NotifyEnd(seq, Status.COMPENSATED),),
    c.Parked: lambda seq, change: (NotifyParked(seq, change.reason),),
}
