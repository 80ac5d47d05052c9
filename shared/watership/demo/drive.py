"""The program of the demo: it runs the orders that nobody has begun, and takes up those that a dead process left.

It is started twice, and the first is killed. There is no line in it for that: the second run is the same program.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from watership import SagaMediator, SagaStepHandler, SqlAlchemySagaStorage, bootstrap
from watership.demo.orders import Order, read_orders, sagas_mapper
from watership.demo.shop import Shop

AT_ONCE_MAX = 40
RECOVER_EVERY_S = 0.5
LOOK_EVERY_S = 0.25


class Handlers:
    """The smallest DI container there can be: every step gets the shop. A real program passes its own."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def resolve(self, handler: Any) -> SagaStepHandler[Any, Any]:
        """A step, ready to run."""
        step: SagaStepHandler[Any, Any] = handler(self._shop)
        return step


async def drive(orders: dict[uuid.UUID, Order], database_url: str, shop_path: Path) -> None:
    """Runs until every order's saga is over."""
    storage = SqlAlchemySagaStorage(database_url)
    begun = {saga.saga_id for saga in await storage.list_sagas(limit=len(orders))}
    waiting = iter([item for item in orders.items() if item[0] not in begun])
    at_once = min(AT_ONCE_MAX, len(orders) // 5)
    async with (
        Shop.open(shop_path) as shop,
        bootstrap(Handlers(shop), sagas_mapper, database_url=database_url, recover_every_s=RECOVER_EVERY_S) as mediator,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(at_once):
            tasks.create_task(_run_some(mediator, waiting))
        await _all_have_ended(storage, len(orders))  # recovery is at work in the background
    await storage.close()


async def _run_some(mediator: SagaMediator, waiting: Iterator[tuple[uuid.UUID, Order]]) -> None:
    for saga_id, order in waiting:
        await mediator.run(order, saga_id)


async def _all_have_ended(storage: SqlAlchemySagaStorage, orders: int) -> None:
    while True:
        sagas = await storage.list_sagas(limit=orders)
        if len(sagas) == orders and all(saga.status.terminal or saga.parked_reason for saga in sagas):
            return
        await asyncio.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    limit, url, shop = sys.argv[1:]
    asyncio.run(drive(read_orders(int(limit)), url, Path(shop)))
