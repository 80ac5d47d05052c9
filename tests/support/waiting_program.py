"""A saga that waits for a signal, in a process that is killed meanwhile: ``python -m tests.support.waiting_program MODE ID``.

MODE ``wait`` starts the saga, prints ``waits``, and stays. ``signal`` sends what it waits for, and prints how it ended.
``watch`` only opens a mediator, and prints how it ended. Every step writes a line to ``JOURNAL``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import uuid

from watership import Saga, SagaContext, SagaMap, SagaStepHandler, SqlAlchemySagaStorage, Wait
from watership.saga import bootstrap

from tests.support.crash_program import write


@dataclasses.dataclass
class ApprovalContext(SagaContext):
    """What is waited for goes into it."""

    approval: dict[str, str] | None = None


class Ask(SagaStepHandler[ApprovalContext, None]):
    """Before the wait."""

    async def act(self, context: ApprovalContext) -> None:
        """Is in the journal once."""
        write("act:Ask")

    async def compensate(self, context: ApprovalContext) -> None:
        """Is in the journal if the saga is undone."""
        write("compensate:Ask")


class Ship(SagaStepHandler[ApprovalContext, None]):
    """Behind the wait."""

    async def act(self, context: ApprovalContext) -> None:
        """Tells who allowed it."""
        assert context.approval is not None
        write(f"act:Ship for {context.approval['by']}")


class ApprovalSaga(Saga[ApprovalContext]):
    """Two steps with a wait between them."""

    steps = [
        Ask,
        Wait("approval", into="approval", timeout_s=float(os.environ["WAIT_S"]), on_timeout="compensate"),
        Ship,
    ]


def sagas(mapper: SagaMap) -> None:
    """Binds the saga."""
    mapper.bind(ApprovalContext, ApprovalSaga)


async def main(mode: str, saga_id: uuid.UUID) -> None:
    """See the module."""
    storage = SqlAlchemySagaStorage(os.environ["DATABASE_URL"])
    async with bootstrap.bootstrap(sagas_mapper=sagas, saga_storage=storage, recover_every_s=0.2) as mediator:
        if mode == "wait":
            async for _ in mediator.stream(ApprovalContext(), saga_id):
                print("waits", flush=True)
            return
        if mode == "signal":
            await mediator.signal(saga_id, "approval", {"by": "ann"})
        print((await mediator.result(saga_id, timeout_s=60)).status)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], uuid.UUID(sys.argv[2])))
