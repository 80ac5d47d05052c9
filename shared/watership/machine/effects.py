"""What must be done once a transition has committed. Imperative, and derived from the decided changes alone.

So what a log entry owed can be found again from the log: a redelivered message sends its entry's effects again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from watership.machine import changes as c
from watership.machine.state import Action, Outcome, Status


@dataclasses.dataclass(frozen=True, slots=True)
class SendCommand:
    """Tell a worker to run one action of one step."""

    step: str
    action: Action
    attempt: int


@dataclasses.dataclass(frozen=True, slots=True)
class NotifyStep:
    """Tell whoever watches that a step is done."""

    seq: int
    step: str
    response: Any
    patch: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, slots=True)
class NotifyEnd:
    """Tell whoever watches that the saga ended."""

    seq: int
    status: Status


@dataclasses.dataclass(frozen=True, slots=True)
class NotifyParked:
    """Tell whoever watches that the saga needs a person."""

    seq: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
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
        match change:
            case c.Dispatched() | c.Resent():
                effects.append(SendCommand(change.step, change.action, change.attempt))
            case c.Replied():
                if change.action is Action.ACT and change.outcome is Outcome.DONE:
                    effects.extend(_step_is_done(seq, change))
            case c.Verified(outcome=Outcome.DONE):
                effects.extend(_step_is_done(seq, change))
            case c.Completed():
                effects.append(NotifyEnd(seq, Status.COMPLETED))
            case c.Compensated():
                effects.append(NotifyEnd(seq, Status.COMPENSATED))
            case c.Parked():
                effects.append(NotifyParked(seq, change.reason))
            case _:
                pass
    return effects


def _step_is_done(seq: int, change: c.Replied | c.Verified) -> Iterator[Effect]:
    yield NotifyStep(seq, change.step, change.response, change.patch)
    for index, event in enumerate(change.events or ()):
        yield PublishEvent(seq, index, change.step, event["name"], event["data"])
