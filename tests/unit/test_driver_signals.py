"""Signals that cannot be given now: whoever waits for one is told, and nobody else waits with them. In memory."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence

import pytest

from watership import ConfigurationError, MemorySagaStorage, Saga, SagaMap, SagaMediator, Wait, bootstrap
from watership.container import PlainContainer
from watership.machine.state import SagaState
from watership.saga.compile import compile_saga
from watership.saga.job import Job
from watership.saga.storage.protocol import HeldElsewhere, Lease, LogEntry, StartRow

from tests.support import flow_steps
from tests.support.flow_steps import C, Order

WITHIN_S = 20.0


class Waits(Saga[Order]):
    steps = [Wait("approval", into="approval", timeout_s=3_600), C]


JOB = Job(compile_saga(Waits), PlainContainer())


class Crowded(MemorySagaStorage):
    """One with sagas that a newer version wrote, with a start from a transaction, and with a disk that may be full."""

    def __init__(self) -> None:
        super().__init__()
        self.newer: set[uuid.UUID] = set()
        self.starts: list[StartRow] = []
        self.full = False
        self.acquired = 0

    async def acquire(self, saga_id: uuid.UUID, *, lease_ms: int) -> Lease | HeldElsewhere | None:
        self.acquired += 1
        if saga_id in self.newer:
            raise ConfigurationError(f"saga {saga_id} was written by a newer Watership")
        return await super().acquire(saga_id, lease_ms=lease_ms)

    async def commit(self, lease: Lease, state: SagaState, entries: Sequence[LogEntry], *, release: bool) -> None:
        if self.full:
            raise OSError("the disk is full")
        await super().commit(lease, state, entries, release=release)

    async def take_starts(self, *, names: Sequence[str], limit: int, hold_ms: int) -> list[StartRow]:
        taken, self.starts = self.starts, []
        return taken


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    flow_steps.fresh()
    yield
    flow_steps.fresh()


@pytest.fixture
def storage() -> Crowded:
    return Crowded()


def opened(storage: MemorySagaStorage) -> SagaMediator:
    mapper = SagaMap()
    mapper.bind(Order, Waits)
    return bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=0)


async def left_waiting(storage: MemorySagaStorage) -> uuid.UUID:
    """A saga that waits for its signal, and that nobody drives."""
    async with opened(storage) as mediator:
        return await mediator.start(Order())


# --- whoever asks is told


async def test_whoever_signals_a_saga_of_a_newer_version_is_told(storage: Crowded) -> None:
    saga_id = await left_waiting(storage)
    storage.newer.add(saga_id)
    async with opened(storage) as mediator, asyncio.timeout(WITHIN_S):
        with pytest.raises(ConfigurationError, match="written by a newer Watership"):
            await mediator.signal(saga_id, "approval", {"name": "Ann"})
        assert storage.acquired == 1, "one drive was enough to know"


async def test_whoever_cancels_while_the_store_is_away_is_told(storage: Crowded) -> None:
    saga_id = await left_waiting(storage)
    storage.full = True
    async with opened(storage) as mediator, asyncio.timeout(WITHIN_S):
        with pytest.raises(OSError, match="the disk is full"):
            await mediator.cancel(saga_id, "unwanted")
        storage.full = False
        await mediator.cancel(saga_id, "unwanted")
        assert (await mediator.result(saga_id)).compensated
