"""How a batch is decided when the database does not take it as it is."""

from __future__ import annotations

import uuid
from collections.abc import Collection

import sqlalchemy.exc

from watership.messages import RegisterWorker, StartSaga
from watership.testing.memory_database import MemoryDatabase
from watership.testing.memory_plans import MemoryBacking
from watership.testing.memory_store import MemoryBatch, MemoryStore
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.deciding import Decider
from watership_orchestrator.records import StoredSaga

from tests.support.judging import PLAN


class Cancelled(Exception):
    """As the driver says it: canceling statement due to statement timeout."""

    sqlstate = "57014"


class SlowBatch(MemoryBatch):
    """No statement on more than two sagas comes to its end in time."""

    async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
        if len(ids) > 2:
            raise sqlalchemy.exc.DBAPIError("SELECT", None, Cancelled())
        return await super().lock(ids)


class SlowStore(MemoryStore):
    def batch(self) -> MemoryBatch:
        return SlowBatch(self._database, self._namespace, self._line, self.machine_version)


async def test_a_batch_that_takes_the_database_too_long_is_halved() -> None:
    database = MemoryDatabase(lambda: 1_000_000)
    backing = MemoryBacking(database, "test")
    await backing.plans.register(RegisterWorker(worker="w", plans=(PLAN.to_data(),)))
    store = SlowStore(database, "test")
    ids = [uuid.UUID(int=number) for number in range(1, 8)]
    starts = [Arrival(saga_id, StartSaga(saga="OrderSaga", saga_id=saga_id, context={"n": 1})) for saga_id in ids]
    decided = await Decider(store, backing.plans).decide(starts)
    assert [judgement.saga_id for judgement in decided.judgements] == ids
    assert database.sagas.keys() == set(ids)
