"""Signals that cannot be given now: whoever waits for one is told, and nobody else waits with them. In memory."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import pytest

from watership import ConfigurationError, MemorySagaStorage, Saga, SagaMap, SagaMediator, Wait, bootstrap
from watership.clock import SystemClock
from watership.container import PlainContainer
from watership.machine.state import SagaState
from watership.saga.compile import compile_saga
from watership.saga.drivers import Drivers
from watership.saga.job import Job
from watership.saga.storage.protocol import LEASE_MS, EarlySignal, HeldElsewhere, Lease, LogEntry, StartRow

from tests.support.flow_steps import CALLS, C, Order

pytestmark = pytest.mark.usefixtures("fresh_flow_steps")

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


# --- nobody else waits


async def test_recovery_does_not_wait_for_one_saga(storage: Crowded) -> None:
    """Early signals for a saga of a newer version, and for one that another process holds; then a start is due."""
    newer, held = await left_waiting(storage), await left_waiting(storage)
    storage.newer.add(newer)
    elsewhere = await storage.acquire(held, lease_ms=LEASE_MS)
    assert isinstance(elsewhere, Lease)
    for saga_id in (newer, held):
        await storage.keep_signal(EarlySignal(saga_id, "s-1", "approval", {"name": "Ann"}))
    drivers = Drivers(storage, SystemClock())
    drivers.recover_in_background(JOB, every_s=0)
    async with asyncio.timeout(WITHIN_S):
        await drivers.recover_once()
        storage.starts.append(StartRow(1, uuid.uuid4(), "Waits", '{"order_id": "o-1"}'))
        (taken,) = await drivers.recover_once()
        assert await storage.load(taken.saga_id) is not None
        await storage.release(elsewhere)
        await (await drivers.join(JOB, held)).watch.end()
        assert "act C" in CALLS, "it was given as soon as the saga could be had"
        await drivers.close()
    assert [signal.saga_id for signal in await storage.early_signals()] == [newer], "left for the next look"


async def test_a_start_does_not_wait_to_give_early_signals(storage: Crowded) -> None:
    """The saga is there, and another process holds it: whoever starts it again has it durable all the same."""
    saga_id = await left_waiting(storage)
    assert isinstance(await storage.acquire(saga_id, lease_ms=LEASE_MS), Lease)
    await storage.keep_signal(EarlySignal(saga_id, "s-1", "approval", {"name": "Ann"}))
    async with opened(storage) as mediator, asyncio.timeout(WITHIN_S):
        assert await mediator.start(Order(), saga_id) == saga_id


async def test_a_closed_process_gives_no_signal_any_more(storage: Crowded) -> None:
    saga_id = await left_waiting(storage)
    assert isinstance(await storage.acquire(saga_id, lease_ms=LEASE_MS), Lease)
    await storage.keep_signal(EarlySignal(saga_id, "s-1", "approval", {"name": "Ann"}))
    drivers = Drivers(storage, SystemClock())
    drivers.recover_in_background(JOB, every_s=0)
    async with asyncio.timeout(WITHIN_S):
        await drivers.recover_once()
        await drivers.close()
    assert [signal.saga_id for signal in await storage.early_signals()] == [saga_id], "kept for whoever comes next"
    assert len(asyncio.all_tasks()) == 1, "nothing goes on behind it"
