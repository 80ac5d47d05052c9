"""A saga in a process that can end itself in the middle: ``python -m tests.support.crash_program MODE SAGA_ID``.

MODE ``run`` starts the saga; ``recover N`` recovers it, N times at once. Every step writes a line to ``JOURNAL`` when it
begins and when it ends. ``CRASH_AT`` (``act:Charge``) ends the process there at once; ``FAIL`` makes the last step fail.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import uuid

from watership import (
    Response,
    Saga,
    SagaContext,
    SagaMap,
    SagaStepHandler,
    SqlAlchemySagaStorage,
    current_step,
    recover_saga,
)
from watership.saga import bootstrap

CRASH_CODE = 9


@dataclasses.dataclass
class OrderContext(SagaContext):
    """What was done, as the context tells it."""

    trail: list[str] = dataclasses.field(default_factory=list)


def write(line: str) -> None:
    """One line of the journal, in one write: whole whatever happens next."""
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"{line}\n".encode())
    os.close(journal)


class Journaled(SagaStepHandler[OrderContext, Response]):
    """A step that writes when it begins and ends, and ends its process if it is told to."""

    async def act(self, context: OrderContext) -> Response:
        """Adds itself to the trail."""
        await self._work()
        if os.environ.get("FAIL") and type(self) is Ship:
            raise RuntimeError("no carrier")
        context.trail.append(type(self).__name__)
        return Response()

    async def compensate(self, context: OrderContext) -> None:
        """Takes itself off the trail."""
        await self._work()
        if type(self).__name__ in context.trail:
            context.trail.remove(type(self).__name__)

    async def _work(self) -> None:
        run = current_step()
        place = f"{run.action}:{run.step}"
        write(f"begin {place}")
        await asyncio.sleep(0.02)  # long enough for another driver to be seen side by side
        if os.environ.get("CRASH_AT") == place:
            os._exit(CRASH_CODE)
        write(f"end {place}")


class Reserve(Journaled):
    """The first step."""


class Charge(Journaled):
    """The second step."""


class Ship(Journaled):
    """The third step."""


class OrderSaga(Saga[OrderContext]):
    """Three steps."""

    steps = [Reserve, Charge, Ship]


def sagas(mapper: SagaMap) -> None:
    """Binds the saga."""
    mapper.bind(OrderContext, OrderSaga)


async def main(mode: str, saga_id: uuid.UUID, times: int) -> None:
    """Runs or recovers, and prints how it ended."""
    storage = SqlAlchemySagaStorage(os.environ["DATABASE_URL"])
    if mode == "run":
        mediator = bootstrap.bootstrap(sagas_mapper=sagas, saga_storage=storage, recover_every_s=0)
        async with mediator:
            print((await mediator.run(OrderContext(), saga_id)).status)
        return
    recoveries = [
        recover_saga(saga=OrderSaga(), saga_id=saga_id, context_builder=OrderContext, container=None, storage=storage)
        for _ in range(times)
    ]
    for ended in await asyncio.gather(*recoveries, return_exceptions=True):
        print(type(ended).__name__ if ended is not None else "recovered")
    await storage.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], uuid.UUID(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1))
