"""What a client heard of one saga, and whether it missed anything. Pure: no broker, no clock. Not public."""

from __future__ import annotations

import dataclasses
from typing import Any

from watership.machine.changes import change_from_data, failure_from_data
from watership.machine.effects import NotifyStep, effects_of
from watership.machine.plan import Plan, members
from watership.machine.state import Status
from watership.messages import SagaEnded
from watership.saga.watch import SagaEnd, SagaWatch, StepDone


@dataclasses.dataclass(slots=True)
class Listening:
    """One saga that this process watches. ``plan`` None: what it heard cannot be checked; ``end_only``: need not be."""

    watch: SagaWatch
    plan: Plan | None
    heard_at_s: float
    end_only: bool = False


def is_next(listening: Listening, step: str) -> bool:
    """Whether this is the step that follows what was seen, so that nothing was missed."""
    if listening.plan is None:
        return False
    nodes, seen = listening.plan.nodes, listening.watch.steps_seen
    return seen < len(nodes) and any(member.name == step for member in members(nodes[seen]))


def all_seen(listening: Listening, message: SagaEnded) -> bool:
    """Whether every step that was done before this end was seen."""
    if listening.plan is None:
        return False
    if message.status == Status.COMPLETED:
        return listening.watch.steps_seen == len(listening.plan.nodes)
    for index, node in enumerate(listening.plan.nodes):
        if any(member.name == message.failed_step for member in members(node)):
            return listening.watch.steps_seen >= index
    return False


def tell(watch: SagaWatch, view: dict[str, Any]) -> None:
    """Tells a watch what `show` answered: the steps that it has not seen, and the end."""
    for entry in view["log"]:
        changes = [change_from_data(data) for data in entry["changes"]]
        for effect in effects_of(entry["seq"], changes):
            if isinstance(effect, NotifyStep):
                watch.step_done(StepDone(effect.seq, effect.step, effect.response, effect.patch or {}, None))
    status = Status(view["status"])
    if status.terminal or view["parked_reason"] is not None:
        failure = failure_from_data(view["failure"]) if view["failure"] is not None else None
        watch.ended(SagaEnd(view["name"], status, view["context"], failure, view["parked_reason"]))
