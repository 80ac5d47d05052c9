"""Ids that nobody gave, wherever a saga is started from: they tell the moment, so that new sagas are neighbours in an index."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator

import pytest

from watership import Saga, SagaContext, SagaMap, SagaMediator, SagaStepHandler, bootstrap
from watership.testing import run


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str


class Pack(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None: ...

    async def compensate(self, context: Order) -> None: ...


class Parcel(Saga[Order]):
    steps = (Pack,)


@pytest.fixture
async def mediator() -> AsyncIterator[SagaMediator]:
    sagas = SagaMap()
    sagas.bind(Order, Parcel)
    async with bootstrap(sagas_mapper=sagas) as made:
        yield made


async def test_an_id_that_nobody_gave_is_ordered(mediator: SagaMediator) -> None:
    made = [
        await mediator.start(Order("1")),
        (await mediator.run(Order("2"))).saga_id,
        *[done.saga_id or uuid.UUID(int=0) async for done in mediator.stream(Order("3"))],
        Parcel().transaction(context=Order("4")).saga_id,
        (await run(Parcel, Order("5"))).saga_id,
    ]
    assert [one.version for one in made] == [7] * 5
    assert made == sorted(made)


async def test_an_id_that_was_given_is_taken_as_it_is(mediator: SagaMediator) -> None:
    for given in (uuid.uuid4(), uuid.uuid5(uuid.NAMESPACE_URL, "order 7"), uuid.UUID(int=0)):
        assert await mediator.start(Order("1"), given) == given
        assert Parcel().transaction(context=Order("1"), saga_id=given).saga_id == given
