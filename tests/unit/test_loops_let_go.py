"""What a mediator keeps of an event loop goes with that loop, though nobody closed the mediator."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from typing import Any

from watership import Saga, SagaContext, SagaMap, SagaMediator, SagaStepHandler, bootstrap


@dataclasses.dataclass
class Order(SagaContext):
    order: str = "o-1"


class Quick(SagaStepHandler[Order, Any]):
    async def act(self, context: Order) -> None:
        """Nothing."""


class OrderSaga(Saga[Order]):
    steps = [Quick]


def bind(mapper: SagaMap) -> None:
    mapper.bind(Order, OrderSaga)


def test_a_loop_that_has_ended_is_let_go() -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def run(mediator: SagaMediator) -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        assert (await mediator.run(Order())).completed

    mediator = bootstrap(sagas_mapper=bind, recover_every_s=0)
    for _ in range(3):
        asyncio.run(run(mediator))
    del mediator
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3
