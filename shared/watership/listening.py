"""What a client knows of a saga that it watches from afar, and whether it missed something. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from watership.machine.changes import change_from_data, failure_from_data
from watership.machine.effects import NotifyStep, effects_of
from watership.machine.nodes import ParallelPlan, members, units
from watership.machine.plan import Plan
from watership.machine.state import Status
from watership.messages import SagaEnded, StartSaga
from watership.saga.watch import SagaEnd, SagaWatch, StepDone


@dataclasses.dataclass(slots=True)
class Listening:
    """One saga that this process watches. ``plan`` None: it is not known here. ``end_only``: steps do not matter.

    ``start``: what it was started with, to be sent again if nobody has heard of it.
    """

    watch: SagaWatch
    plan: Plan | None
    heard_at_s: float
    end_only: bool = False
    start: StartSaga | None = None

    def is_next(self, step: str) -> bool:
        """Whether this step follows what was seen, so that nothing was missed."""
        place = self.plan.places.get(step) if self.plan is not None else None
        return place is not None and self._saw_before(place)

    def saw_all(self, end: SagaEnded) -> bool:
        """Whether every step that was done before this end was seen."""
        if self.end_only:
            return True
        if self.plan is None:
            return False
        if end.status == Status.COMPLETED:
            return self._saw_before(len(self.plan.nodes))
        place = self.plan.places.get(end.failed_step or "")
        if place is None or isinstance(self.plan.nodes[place], ParallelPlan):
            return False  # how far it came cannot be told
        return self._saw_before(place)

    def _saw_before(self, place: int) -> bool:
        """Whether a step of everything that stands before this place in the plan was seen."""
        assert self.plan is not None
        seen = self.watch.names_seen
        return all(
            any(step.name in seen for step in members(unit)) for node in self.plan.nodes[:place] for unit in units(node)
        )


def end_of(message: SagaEnded) -> SagaEnd:
    """An end as watchers see it."""
    failure = message.error.failure(message.failed_step) if message.error is not None else None
    return SagaEnd(message.saga, Status(message.status), message.context, failure, message.parked_reason)


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
