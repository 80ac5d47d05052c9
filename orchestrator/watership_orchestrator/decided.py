"""What became of a batch: what was judged and committed, what must come again, what is refused."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Iterable, Mapping

from watership.messages import AdminRequest
from watership_orchestrator.arrivals import Arrival, Plans, Rejection
from watership_orchestrator.judged import Judgement

log = logging.getLogger("watership.orchestrator")

Poison = Mapping[uuid.UUID, tuple[list[Arrival], Exception]]  # what cannot be judged, and why


@dataclasses.dataclass(slots=True)
class BatchResult:
    """What became of a batch. ``again``: to be judged in a later batch, since their sagas were locked elsewhere.

    ``redeliver``: committed, but not published in time: the broker must bring them again. ``newer``: of sagas that a
    newer orchestrator has written, and that are left to one (law 8): nothing was looked at.
    """

    again: list[Arrival] = dataclasses.field(default_factory=list)
    redeliver: list[Arrival] = dataclasses.field(default_factory=list)
    newer: list[Arrival] = dataclasses.field(default_factory=list)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    refusals: dict[int, str] = dataclasses.field(default_factory=dict)
    states: dict[uuid.UUID, Judgement] = dataclasses.field(default_factory=dict)

    def take_in(self, other: BatchResult) -> None:
        """What became of another part of the same batch."""
        self.again.extend(other.again)
        self.redeliver.extend(other.redeliver)
        self.newer.extend(other.newer)
        self.rejections.extend(other.rejections)
        self.refusals.update(other.refusals)
        self.states.update(other.states)


@dataclasses.dataclass(slots=True)
class Decided:
    """A batch that is committed. ``began_s``: by the monotonic clock."""

    judgements: list[Judgement]
    plans: Plans
    result: BatchResult
    began_s: float

    def take_in(self, other: Decided) -> None:
        """Another part of the same batch. Plans are kept by their hash for good, so either's will do."""
        self.began_s = min(self.began_s, other.began_s)
        self.judgements.extend(other.judgements)
        self.result.take_in(other.result)


def decided(
    judgements: list[Judgement], plans: Plans, began_s: float, result: BatchResult, poison: Poison | None = None
) -> Decided:
    """A committed batch, with what its judgements say of its arrivals in ``result``."""
    for saga_id, (arrivals, fault) in (poison or {}).items():
        log.error("saga %s: what arrived for it cannot be judged", saga_id, exc_info=fault)
        for arrival in arrivals:  # its messages are given back
            reason = f"saga {saga_id}: {type(fault).__name__}: {fault}"
            if isinstance(arrival.message, AdminRequest):
                result.refusals[id(arrival)] = reason
            elif arrival.message is not None and arrival.row is None:
                result.rejections.append(Rejection(arrival, "poisonous", reason))
    for judgement in judgements:
        result.rejections.extend(one for one in judgement.rejections if one.arrival.row is None)
        result.refusals.update(judgement.refusals)
        result.states[judgement.saga_id] = judgement
        if judgement.moved and judgement.state is not None and judgement.state.parked_reason is not None:
            log.warning("saga %s is parked: %s", judgement.saga_id, judgement.state.parked_reason)
    return Decided(judgements, plans, result, began_s)


def by_saga(arrivals: Iterable[Arrival]) -> dict[uuid.UUID, list[Arrival]]:
    """The arrivals of each saga, in their order."""
    grouped: dict[uuid.UUID, list[Arrival]] = {}
    for arrival in arrivals:
        grouped.setdefault(arrival.saga_id, []).append(arrival)
    return grouped
