"""One saga in several versions: its steps are dropped, renamed and put in another order while sagas are in flight."""

from __future__ import annotations

import dataclasses

from watership import Response, RetryPolicy, Saga, SagaContext, SagaMap, SagaStepHandler, StepError, Wait
from watership_worker import Worker


@dataclasses.dataclass
class Parcel(SagaContext):
    """``trail``: what was done to it, in order. ``fail_at``: the step whose act fails."""

    order: str
    fail_at: str | None = None
    go: bool = False
    trail: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Addressed(Parcel):
    """A context that no parcel in flight has: it needs an address."""

    address: str = dataclasses.field(kw_only=True)


class Refused(StepError):
    """The step that the context names fails."""

    code = "parcel_refused"


class Traced(SagaStepHandler[Parcel, Response]):
    """A step that leaves its name."""

    async def act(self, context: Parcel) -> None:
        """Fails if the context says so."""
        if context.fail_at == type(self).__name__:
            raise Refused(f"refused at {context.fail_at}")
        context.trail.append(type(self).__name__)

    async def compensate(self, context: Parcel) -> None:
        """Leaves its name again."""
        context.trail.append(f"undo {type(self).__name__}")


class Reserve(Traced):
    """In every version."""


class Weigh(Traced):
    """Dropped by the second version."""


class Pack(Traced):
    """In every version, and first in the second."""


class Ship(Traced):
    """Another name in the second version: Send."""


class Send(Traced):
    """What Ship is called in the second version."""


class ShipToAddress(SagaStepHandler[Addressed, Response]):
    """Ship, as a version has it that wants an address."""

    name = "Ship"

    async def act(self, context: Addressed) -> None:
        """Never gets a parcel of the first version."""
        context.trail.append(context.address)

    async def compensate(self, context: Addressed) -> None:
        """Nor here."""


class FirstSaga(Saga[Parcel]):
    """The first version: it stands still until somebody says go."""

    name = "ParcelSaga"
    steps = [Reserve, Weigh, Wait("go", into="go", timeout_s=3_600), Pack, Ship]


class SecondSaga(Saga[Parcel]):
    """The second: one step dropped, one renamed, one moved. It keeps the code of those that it had."""

    name = "ParcelSaga"
    steps = [Pack, Reserve, Send]
    former_steps = [Weigh, Ship]


class HastySaga(Saga[Parcel]):
    """The second without the code of the steps that it had."""

    name = "ParcelSaga"
    steps = [Pack, Reserve, Send]


class AddressedSaga(Saga[Addressed]):
    """A version whose contexts need an address."""

    name = "ParcelSaga"
    steps = [Reserve, Weigh, Wait("go", into="go", timeout_s=3_600), Pack, ShipToAddress]
    compensation_retry = RetryPolicy(max_attempts=1)


def first(mapper: SagaMap) -> None:
    """The first version."""
    mapper.bind(Parcel, FirstSaga)


def second(mapper: SagaMap) -> None:
    """The second version."""
    mapper.bind(Parcel, SecondSaga)


def hasty(mapper: SagaMap) -> None:
    """The one that forgot its past."""
    mapper.bind(Parcel, HastySaga)


def addressed(mapper: SagaMap) -> None:
    """The one that needs addresses."""
    mapper.bind(Addressed, AddressedSaga)


def nothing(mapper: SagaMap) -> None:
    """Binds no saga."""


first_worker = Worker(sagas_mapper=first)
second_worker = Worker(sagas_mapper=second)
hasty_worker = Worker(sagas_mapper=hasty)
NUMBER = 7
