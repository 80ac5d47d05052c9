"""Drivers that stop, wake up, meet and overtake each other: in memory, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Sequence

import pytest

from watership import (
    MemorySagaStorage,
    RetryPolicy,
    Saga,
    SagaConflict,
    SagaContext,
    SagaMap,
    SagaStepHandler,
    bootstrap,
)
from watership.clock import SystemClock
from watership.container import PlainContainer
from watership.machine import events as e
from watership.machine.state import SagaState, Status
from watership.saga.compile import compile_saga
from watership.saga.drivers import RECOVER_AT_ONCE_MAX, Drivers
from watership.saga.job import Job
from watership.saga.storage.protocol import LEASE_MS, HeldElsewhere, Lease, LogEntry

CALLS: list[str] = []
HOLD: dict[str, asyncio.Event] = {}
FAIL: set[str] = set()


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str = "1"


class Charge(SagaStepHandler[Order, None]):
    compensation_retry = RetryPolicy(max_attempts=1)

    async def act(self, context: Order) -> None:
        CALLS.append("begin act")
        held = HOLD.pop("act", None)
        if held is not None:
            await held.wait()
        if "act" in FAIL and held is None:
            raise RuntimeError("declined")
        CALLS.append("act")

    async def compensate(self, context: Order) -> None:
        if "compensate" in FAIL:
            raise RuntimeError("closed")
        CALLS.append("compensate")
        held = HOLD.pop("compensate", None)
        if held is not None:
            await held.wait()


class Ship(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None:
        if "ship" in FAIL:
            raise RuntimeError("no carrier")


class OrderSaga(Saga[Order]):
    steps = [Charge]


class BothSaga(Saga[Order]):
    steps = [Charge, Ship]


class Ticking:
    """A store's clock that the test moves."""

    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture(autouse=True)
def clean() -> None:
    CALLS.clear()
    HOLD.clear()
    FAIL.clear()


JOB = Job(compile_saga(OrderSaga), PlainContainer())
BOTH = Job(compile_saga(BothSaga), PlainContainer())


def process(storage: MemorySagaStorage) -> Drivers:
    """What another process would have: drivers of its own on the same store."""
    return Drivers(storage, SystemClock())


async def until(reached: str) -> None:
    async with asyncio.timeout(5):
        while reached not in CALLS:
            await asyncio.sleep(0.001)


async def test_the_outcome_of_a_driver_that_was_stopped_is_not_forgotten() -> None:
    """It stood still in an act for longer than its lease; another one undid the saga; then the act had its effect."""
    clock = Ticking()
    storage, saga_id, go = MemorySagaStorage(now_ms=clock), uuid.uuid4(), asyncio.Event()
    HOLD["act"] = go
    stopped, other = process(storage), process(storage)
    drive = await stopped.start(JOB, {"order_id": "1"}, saga_id)
    await until("begin act")
    clock.now_ms += LEASE_MS + 1
    FAIL.add("act")
    await (await other.join(JOB, saga_id)).watch.end()
    assert CALLS == ["begin act", "begin act", "compensate"]
    go.set()
    assert (await asyncio.wait_for(drive.watch.end(), 5)).status is Status.COMPENSATED
    assert CALLS == ["begin act", "begin act", "compensate", "act", "compensate"], "what acted late is undone again"


class Slow(MemorySagaStorage):
    """Tells of a commit only when the test lets it."""

    parked: asyncio.Event | None = None
    go_on: asyncio.Event | None = None

    async def commit(self, lease: Lease, state: SagaState, entries: Sequence[LogEntry], *, release: bool) -> None:
        await super().commit(lease, state, entries, release=release)
        if release and self.parked is not None and self.go_on is not None:
            self.parked.set()
            await self.go_on.wait()
            self.parked = None


async def test_a_request_after_a_parking_commit_needs_a_lease_of_its_own() -> None:
    storage, saga_id = Slow(), uuid.uuid4()
    storage.parked, storage.go_on = asyncio.Event(), asyncio.Event()
    FAIL.update({"ship", "compensate"})
    drive = await process(storage).start(BOTH, {"order_id": "1"}, saga_id)
    await asyncio.wait_for(storage.parked.wait(), 5)
    drive.request(e.RetryRequested("test", "mended"))  # before the driver knows that its lease is given up
    FAIL.clear()
    held = HOLD["compensate"] = asyncio.Event()
    storage.go_on.set()
    await until("compensate")
    assert isinstance(await storage.acquire(saga_id, lease_ms=LEASE_MS), HeldElsewhere), "two would run one step"
    held.set()
    assert (await asyncio.wait_for(drive.watch.end(), 5)).status is Status.COMPENSATED


async def test_an_ended_saga_is_held_by_nobody() -> None:
    storage, saga_id = MemorySagaStorage(), uuid.uuid4()
    await (await process(storage).start(JOB, {"order_id": "1"}, saga_id)).watch.end()
    assert isinstance(await storage.acquire(saga_id, lease_ms=LEASE_MS), Lease)


async def test_other_input_is_a_conflict_though_recovery_brought_the_saga_here() -> None:
    clock = Ticking()
    storage, saga_id, go = MemorySagaStorage(now_ms=clock), uuid.uuid4(), asyncio.Event()
    HOLD["act"] = go
    await process(storage).start(JOB, {"order_id": "1"}, saga_id)
    await until("begin act")
    other = process(storage)
    await other.join(JOB, saga_id)
    with pytest.raises(SagaConflict, match="other input"):
        await other.start(JOB, {"order_id": "2"}, saga_id)
    go.set()


async def test_recovery_is_not_starved_by_what_was_started_here() -> None:
    clock = Ticking()
    storage, left, go = MemorySagaStorage(now_ms=clock), uuid.uuid4(), asyncio.Event()
    HOLD["act"] = asyncio.Event()  # never set: the process that ran it is gone
    await process(storage).start(JOB, {"order_id": "1"}, left)
    await until("begin act")
    busy = process(storage)
    busy.recover_in_background(JOB, every_s=0)
    for _ in range(RECOVER_AT_ONCE_MAX):
        HOLD["act"] = go
        await busy.start(JOB, {"order_id": "1"}, uuid.uuid4())
        await asyncio.sleep(0)
    clock.now_ms += LEASE_MS + 1
    assert left in [watch.saga_id for watch in await busy.recover_once()]
    go.set()
    await busy.close()


async def test_a_mediator_looks_for_what_was_left_as_soon_as_it_is_open() -> None:
    """A program that lives for a moment recovers too: it need not wait for the second look."""
    clock = Ticking()
    storage, left = MemorySagaStorage(now_ms=clock), uuid.uuid4()
    HOLD["act"] = asyncio.Event()  # never set: the process that ran it is gone
    await process(storage).start(JOB, {"order_id": "1"}, left)
    await until("begin act")
    clock.now_ms += LEASE_MS + 1
    mapper = SagaMap()
    mapper.bind(Order, OrderSaga)
    async with bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=3_600):
        await until("act")
