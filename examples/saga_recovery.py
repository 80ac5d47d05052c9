"""A process dies in the middle of a saga. Another one recovers it: what is done is not done again.

This program starts itself twice as a child that runs one order and dies inside a step, as if by `kill -9`. One child
dies while it goes forward, in `act`; the other one while it goes back, in `compensate`. Then the orders are recovered.
A dead process still holds its saga for up to five seconds: so long does the recovery wait.

    python examples/saga_recovery.py
"""

import asyncio
import dataclasses
import os
import subprocess
import sys
import tempfile
import uuid

from watership.response import Response
from watership.saga import bootstrap
from watership.saga.models import SagaContext
from watership.saga.recovery import recover_saga
from watership.saga.saga import Saga, SagaMap
from watership.saga.step import SagaStepHandler, SagaStepResult
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

DIE_IN = "EXAMPLE_DIE_IN"  # only the children have it


@dataclasses.dataclass
class OrderContext(SagaContext):
    order_id: str
    total_cents: int
    reservation_id: str | None = None
    payment_id: str | None = None


def say(what: str) -> None:
    """Print what a step does, or die before it is done, if this is the child that shall."""
    print(f"  [{'child' if DIE_IN in os.environ else 'recovery'}] {what}", flush=True)
    if os.environ.get(DIE_IN) == what:
        os._exit(9)  # nothing is cleaned up, nothing is written


class ReserveInventoryStep(SagaStepHandler[OrderContext, Response]):
    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Response]:
        say("reserve inventory")
        context.reservation_id = f"reservation-{context.order_id}"
        return self._generate_step_result(Response())

    async def compensate(self, context: OrderContext) -> None:
        say("release inventory")


class ProcessPaymentStep(SagaStepHandler[OrderContext, Response]):
    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Response]:
        # It may run again after a crash: watership.current_step().idempotency_key is the same both times, and a
        # payment provider that is given it charges once.
        say("charge the card")
        if context.total_cents > 50_000:
            raise ValueError("card declined")
        context.payment_id = f"payment-{context.order_id}"
        return self._generate_step_result(Response())

    async def compensate(self, context: OrderContext) -> None:
        say("refund the card")


class OrderSaga(Saga[OrderContext]):
    steps = [ReserveInventoryStep, ProcessPaymentStep]


def saga_mapper(mapper: SagaMap) -> None:
    mapper.bind(OrderContext, OrderSaga)


async def run_one_order(database_url: str, saga_id: uuid.UUID, total_cents: int) -> None:
    """What the child does, until it dies."""
    context = OrderContext(order_id=str(saga_id)[:8], total_cents=total_cents)
    async with bootstrap.bootstrap(sagas_mapper=saga_mapper, database_url=database_url) as mediator:
        await mediator.run(context, saga_id=saga_id)


def crash(database_url: str, die_in: str, total_cents: int) -> uuid.UUID:
    """Have a child die in the middle of an order; the order's saga id."""
    saga_id = uuid.uuid4()
    child = [sys.executable, __file__, database_url, str(saga_id), str(total_cents)]
    died = subprocess.run(child, env={**os.environ, DIE_IN: die_in}, check=False)
    print(f"  the child is dead, exit code {died.returncode}")
    return saga_id


async def recover(database_url: str, saga_id: uuid.UUID) -> None:
    storage = SqlAlchemySagaStorage(database_url)
    try:
        await recover_saga(
            saga=OrderSaga(), saga_id=saga_id, context_builder=OrderContext, container=None, storage=storage
        )
        print("Saga recovered successfully!")
    except RuntimeError:  # it was going back when its process died: it only ever goes on back
        print("Compensation completed")
    status, context, _ = await storage.load_saga_state(saga_id)
    print(f"  {status}, payment: {context['payment_id']}")
    await storage.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        database_url = f"sqlite+aiosqlite:///{directory}/orders.db"
        storage = SqlAlchemySagaStorage(database_url)
        await storage.create_tables()
        await storage.close()
        print("an order whose process dies while the card is charged:")
        forward = await asyncio.to_thread(crash, database_url, "charge the card", 10_000)
        await recover(database_url, forward)
        print("an order whose card is declined, and whose process dies while that is undone:")
        backward = await asyncio.to_thread(crash, database_url, "release inventory", 99_900)
        await recover(database_url, backward)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(run_one_order(sys.argv[1], uuid.UUID(sys.argv[2]), int(sys.argv[3])))
    else:
        asyncio.run(main())
