"""What a run changed in its context is found, however it changed it, and whatever the context is made of."""

from __future__ import annotations

import dataclasses
import enum
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pydantic
import pytest

from watership import RetryPolicy, Saga, SagaMap, bootstrap
from watership.container import PlainContainer
from watership.execution import Command, Execution, Hands, execute
from watership.machine.apply import fold
from watership.machine.state import Action, Outcome
from watership.saga.models import SagaContext, shape_of
from watership.saga.step import SagaStepHandler, SagaStepResult, StepEvent
from watership.saga.storage.memory import MemorySagaStorage

SAGA_ID = uuid.UUID(int=7)


@dataclasses.dataclass
class Flat(SagaContext):
    order: str = "o-1"
    total: int = 1
    note: str | None = None


@dataclasses.dataclass(slots=True)
class Slotted:
    order: str = "o-1"
    total: int = 1


@dataclasses.dataclass
class Deep(SagaContext):
    order: str = "o-1"
    lines: list[str] = dataclasses.field(default_factory=lambda: ["a"])


class Colour(enum.StrEnum):
    RED = "red"


class Model(pydantic.BaseModel):
    order: str = "o-1"
    total: int = 1


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    order: str = "o-1"


class Counting(pydantic.BaseModel):
    order: str = "o-1"
    _looks: int = 0

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def looks(self) -> int:
        return self._looks


async def ran(cls: type[Any], change: Any, **more: Any) -> Execution:
    class Change(SagaStepHandler[Any, Any]):
        async def act(self, context: Any) -> None:
            change(context)

        async def compensate(self, context: Any) -> None:
            """Nothing."""

    data = {**shape_of(cls).dump(cls()), **more}
    command = Command(SAGA_ID, "OrderSaga", "Change", Action.ACT, 1, "key", data, 5_000)
    return await execute(command, Hands(Change, cls, PlainContainer()))


@pytest.mark.parametrize("cls", [Flat, Slotted, Deep, Model, Open, Counting])
async def test_nothing_changed_is_no_patch(cls: type[Any]) -> None:
    done = await ran(cls, lambda _: None)
    assert (done.outcome, done.patch) == (Outcome.DONE, None)


@pytest.mark.parametrize("cls", [Flat, Slotted, Deep, Model, Open, Counting])
async def test_a_field_that_is_set_is_the_patch(cls: type[Any]) -> None:
    done = await ran(cls, lambda context: setattr(context, "order", "o-2"))
    assert (done.outcome, done.patch) == (Outcome.DONE, {"order": "o-2"})


async def test_what_is_changed_in_place_is_found() -> None:
    done = await ran(Deep, lambda context: context.lines.append("b"))
    assert done.patch == {"lines": ["a", "b"]}
    done = await ran(Open, lambda context: setattr(context, "more", 5))
    assert done.patch == {"more": 5}
    done = await ran(Counting, lambda context: setattr(context, "_looks", 1))
    assert done.patch == {"looks": 1}


async def test_a_field_set_to_the_same_again_is_no_change() -> None:
    done = await ran(Flat, lambda context: setattr(context, "order", "o" + str(-1)))
    assert (done.outcome, done.patch) == (Outcome.DONE, None)


async def test_what_may_not_be_there_is_found() -> None:
    stray = await ran(Flat, lambda context: setattr(context, "ordre", "o-2"))
    assert stray.outcome is Outcome.UNKNOWN
    assert stray.failure is not None
    assert "ordre was set on the context" in stray.failure.message
    misfit = await ran(Flat, lambda context: setattr(context, "total", "many"))
    assert misfit.outcome is Outcome.UNKNOWN


async def test_the_fields_of_others_are_not_a_change() -> None:
    done = await ran(Flat, lambda context: setattr(context, "note", "seen"), of_others=7)
    assert done.patch == {"note": "seen"}


def test_what_could_be_changed_in_place_is_never_still() -> None:
    assert shape_of(Flat).still(Flat()) == {"order": "o-1", "total": 1, "note": None}
    assert shape_of(Model).still(Model()) == {"order": "o-1", "total": 1}
    assert shape_of(Deep).still(Deep()) is None
    assert shape_of(Slotted).still(Slotted()) is None
    assert shape_of(Open).still(Open()) is None
    assert shape_of(Counting).still(Counting()) is None
    assert shape_of(Flat).still(Flat(order=Colour.RED)) is None  # of its very own type alone
    kept = Flat()
    kept.extra = 1  # type: ignore[attr-defined]
    assert shape_of(Flat).still(kept) is None


def test_a_context_as_it_was_is_another_one() -> None:
    for cls in (Flat, Model):
        kind: type[Any] = cls
        context: Any = kind()
        still = shape_of(kind).still(context)
        assert still is not None
        context.order = "o-2"
        was = shape_of(kind).as_it_was(context, still)
        assert (was.order, context.order) == ("o-1", "o-2")


def test_the_same_data_gives_contexts_that_share_nothing() -> None:
    for cls in (Flat, Slotted, Deep, Model, Open, Counting):
        kind: type[Any] = cls
        data = shape_of(kind).dump(kind())
        first, _ = shape_of(kind).load_still(data)
        first.order = "o-2"
        second, still = shape_of(kind).load_still(data)
        assert second == shape_of(kind).load(data)
        assert second is not first
        assert still == shape_of(kind).still(second)
        assert shape_of(kind).load_still({**data, "order": "o-3"})[0].order == "o-3"


def test_a_context_that_is_made_in_its_own_way_is_made_so_each_time() -> None:
    made = []

    @dataclasses.dataclass
    class Own(SagaContext):
        order: str = "o-1"

        def __post_init__(self) -> None:
            made.append(self.order)

    data = {"order": "o-7"}
    for _ in range(2):
        shape_of(Own).load_still(data)
    assert made == ["o-7", "o-7"]


@dataclasses.dataclass
class Priced(SagaContext):
    price: Decimal = Decimal(10)
    at: datetime = datetime(2026, 1, 1, 23, 30, tzinfo=UTC)
    anything: Any = 1


class PricedModel(pydantic.BaseModel):
    price: Decimal = Decimal(10)


@pytest.mark.parametrize(
    ("cls", "field", "value", "written"),
    [
        (Priced, "price", Decimal("10.00"), "10.00"),
        (PricedModel, "price", Decimal("10.00"), "10.00"),
        (Priced, "at", datetime(2026, 1, 2, 1, 30, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:30:00+02:00"),
        (Priced, "anything", Decimal("1.00"), "1.00"),
    ],
)
async def test_a_value_that_is_equal_and_is_written_otherwise_is_a_change(
    cls: type[Any], field: str, value: Any, written: str
) -> None:
    run = await ran(cls, lambda context: setattr(context, field, value))
    assert (run.outcome, run.patch) == (Outcome.DONE, {field: written})


@dataclasses.dataclass
class CopiesItself(Flat):
    def __copy__(self) -> CopiesItself:
        return self


async def test_a_context_may_have_a_way_of_its_own_to_be_copied() -> None:
    assert (await ran(CopiesItself, lambda context: setattr(context, "total", 2))).patch == {"total": 2}


@dataclasses.dataclass
class Loose(SagaContext):
    meta: dict[str, Any] = dataclasses.field(default_factory=lambda: {"lines": []})


async def test_what_a_failed_run_changed_in_place_is_not_in_the_saga(saga_storage: MemorySagaStorage) -> None:
    seen: list[list[str]] = []

    class Flaky(SagaStepHandler[Loose, Any]):
        retry = RetryPolicy(max_attempts=2, delay_s=0.001)

        async def act(self, context: Loose) -> None:
            seen.append(list(context.meta["lines"]))
            context.meta["lines"].append("paid")
            if len(seen) == 1:
                raise ValueError("no")

    class LooseSaga(Saga[Loose]):
        steps = [Flaky]

    def bind(mapper: SagaMap) -> None:
        mapper.bind(Loose, LooseSaga)

    async with bootstrap(sagas_mapper=bind, saga_storage=saga_storage) as mediator:
        assert (await mediator.run(Loose(), SAGA_ID)).context.meta == {"lines": ["paid"]}
    assert seen == [[], []]
    record = await saga_storage.load(SAGA_ID)
    assert record is not None
    folded = fold(str(SAGA_ID), (entry.changes for entry in await saga_storage.history(SAGA_ID)))
    assert record.state.context == folded.context == {"meta": {"lines": ["paid"]}}


@pytest.fixture
def saga_storage() -> MemorySagaStorage:
    return MemorySagaStorage()


async def test_the_data_of_an_event_is_as_it_was_when_the_step_returned() -> None:
    said = {"lines": ["a"]}

    class Tells(SagaStepHandler[Flat, Any]):
        async def act(self, context: Flat) -> SagaStepResult[Flat, Any]:
            return self._generate_step_result(None, events=[StepEvent("told", said)])

    data = shape_of(Flat).dump(Flat())
    command = Command(SAGA_ID, "S", "Tells", Action.ACT, 1, "k", data, 5_000)
    run = await execute(command, Hands(Tells, Flat, PlainContainer()))
    said["lines"].append("b")
    assert [event["data"] for event in run.events] == [{"lines": ["a"]}]


async def test_what_a_builder_is_given_is_not_the_sagas_own_data() -> None:
    class Appends(SagaStepHandler[Loose, Any]):
        async def act(self, context: Loose) -> None:
            context.meta["lines"].append("paid")
            raise ValueError("no")

    data: dict[str, Any] = {"meta": {"lines": []}}
    command = Command(SAGA_ID, "S", "Appends", Action.ACT, 1, "k", data, 5_000)
    hands = Hands(Appends, Loose, PlainContainer(), build_context=lambda given: Loose(**given))
    assert (await execute(command, hands)).outcome is Outcome.FAILED
    assert data == {"meta": {"lines": []}}
