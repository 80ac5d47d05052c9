"""What a process that leaves in good order owes to those who come after it: in memory, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from watership import MemorySagaStorage, Saga
from watership.clock import SystemClock
from watership.container import PlainContainer
from watership.machine.events import CompensateRequested
from watership.machine.state import Phase, SagaState, Status
from watership.saga import drivers as drivers_module
from watership.saga.compile import compile_saga
from watership.saga.drivers import Drivers
from watership.saga.job import Job
from watership.saga.storage.protocol import LEASE_MS, HeldElsewhere, Lease

from tests.support.flow_steps import CALLS, HOOKS, A, B, Gate, Order, raises

pytestmark = pytest.mark.usefixtures("fresh_flow_steps")

WITHIN_S = 20.0


class Ticking:
    """A store's clock that the test moves."""

    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class Crowded(MemorySagaStorage):
    """Says when somebody found a saga held by another one."""

    def __init__(self, clock: Ticking) -> None:
        super().__init__(now_ms=clock)
        self.found_held = asyncio.Event()

    async def acquire(self, saga_id: uuid.UUID, *, lease_ms: int) -> Lease | HeldElsewhere | None:
        found = await super().acquire(saga_id, lease_ms=lease_ms)
        if isinstance(found, HeldElsewhere):
            self.found_held.set()
        return found


class Alone(Saga[Order]):
    steps = [A]


class Both(Saga[Order]):
    steps = [A, type("B", (B,), {"rerun": False})]


ALONE = Job(compile_saga(Alone), PlainContainer())
BOTH = Job(compile_saga(Both), PlainContainer())


@pytest.fixture
def clock() -> Ticking:
    return Ticking()


@pytest.fixture
def storage(clock: Ticking) -> Crowded:
    return Crowded(clock)


def process(storage: MemorySagaStorage) -> Drivers:
    """What another process would have: drivers of its own on the same store."""
    return Drivers(storage, SystemClock())


async def state_of(storage: MemorySagaStorage, saga_id: uuid.UUID) -> SagaState:
    record = await storage.load(saga_id)
    assert record is not None
    return record.state


async def recovered(storage: MemorySagaStorage, job: Job) -> Status:
    """Another process takes up what is due, and brings it to its end."""
    drivers = process(storage)
    drivers.recover_in_background(job, every_s=0)
    (watch,) = await drivers.recover_once()
    return (await watch.end()).status


async def closed(drivers: Drivers, go: asyncio.Event) -> None:
    """Closes them; the step that ``go`` holds ends when they are stopping already."""
    closing = asyncio.create_task(drivers.close())
    await asyncio.sleep(0)
    go.set()
    await closing


# --- what acted here is on record before this process is gone


async def test_what_acted_late_is_undone_though_its_process_is_being_closed(storage: Crowded, clock: Ticking) -> None:
    """It stood still for longer than its lease; another one undid the saga; it is closed while its act ends."""
    saga_id, gate, stopped = uuid.uuid4(), Gate("act A"), process(storage)
    async with asyncio.timeout(WITHIN_S):
        await stopped.start(ALONE, {"order_id": "1"}, saga_id)
        await gate.entered.wait()
        clock.now_ms += LEASE_MS + 1
        HOOKS["act A"] = raises(ValueError("declined"))
        await (await process(storage).join(ALONE, saga_id)).watch.end()
        assert CALLS == ["act A", "act A", "compensate A"]
        await closed(stopped, gate.go)
        assert (await state_of(storage, saga_id)).status is Status.COMPENSATING, "law 6: merged, to be undone again"
        assert await recovered(storage, ALONE) is Status.COMPENSATED
    assert CALLS[3:] == ["compensate A"]


async def test_what_cannot_be_recorded_in_time_is_kept_in_the_ledger(
    storage: Crowded, clock: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga_id, gate, stopped = uuid.uuid4(), Gate("act A"), process(storage)
    monkeypatch.setattr(drivers_module, "DRAIN_S", 0.0)
    async with asyncio.timeout(WITHIN_S):
        await stopped.start(ALONE, {"order_id": "1"}, saga_id)
        await gate.entered.wait()
        clock.now_ms += LEASE_MS + 1
        assert isinstance(await storage.acquire(saga_id, lease_ms=LEASE_MS), Lease)  # another one, in a long step
        gate.go.set()
        await storage.found_held.wait()
        await stopped.close()
        (line,) = await storage.ledger(saga_id=saga_id, limit=9)
    assert line.reason == "act A attempt 1 ended done here, and its process ended before that could be recorded"
    assert '"a":"a"' in line.message, "what it wrote: who undoes it by hand needs that"


# --- what never began here is known as such


async def test_what_never_began_in_a_closed_process_is_not_lost(storage: Crowded) -> None:
    """A must not run twice; it is decided on, and its process is closed before it begins."""
    saga_id, gate, first = uuid.uuid4(), Gate("act A"), process(storage)
    async with asyncio.timeout(WITHIN_S):
        await first.start(BOTH, {"order_id": "1"}, saga_id)
        await gate.entered.wait()
        await closed(first, gate.go)
        assert (await state_of(storage, saga_id)).step("B").act.phase is Phase.DELAYED
        assert await recovered(storage, BOTH) is Status.COMPLETED
    assert CALLS == ["act A", "act B"]
    assert (await state_of(storage, saga_id)).step("B").act.attempt == 1


async def test_what_never_began_is_not_undone_after_a_cancel(storage: Crowded) -> None:
    saga_id, gate, first = uuid.uuid4(), Gate("act A"), process(storage)
    async with asyncio.timeout(WITHIN_S):
        await first.start(BOTH, {"order_id": "1"}, saga_id)
        await gate.entered.wait()
        await closed(first, gate.go)
        second = process(storage)
        event = CompensateRequested("ann", "unwanted")
        assert await second.ask(BOTH, saga_id, event, "request") is None
        await (await second.join(BOTH, saga_id)).watch.end()
    assert CALLS == ["act A", "compensate A"]


async def test_a_compensation_that_never_began_here_is_run_elsewhere(storage: Crowded) -> None:
    saga_id, entered, go = uuid.uuid4(), asyncio.Event(), asyncio.Event()

    async def declines() -> None:
        entered.set()
        await go.wait()
        raise ValueError("declined")

    HOOKS["act B"] = lambda _: declines()
    first = process(storage)
    async with asyncio.timeout(WITHIN_S):
        await first.start(BOTH, {"order_id": "1"}, saga_id)
        await entered.wait()
        await closed(first, go)
        assert CALLS == ["act A", "act B"]
        undoing = (await state_of(storage, saga_id)).step("A").compensate
        assert (undoing.phase, undoing.doubtful) == (Phase.DELAYED, False)
        assert await recovered(storage, BOTH) is Status.COMPENSATED
    assert CALLS == ["act A", "act B", "compensate A"]


async def test_what_began_after_all_in_a_process_that_died_is_lost(storage: Crowded, clock: Ticking) -> None:
    """The first process was closed before B began; the second one began it, and stood still: only it could know."""
    saga_id, a, first = uuid.uuid4(), Gate("act A"), process(storage)
    async with asyncio.timeout(WITHIN_S):
        await first.start(BOTH, {"order_id": "1"}, saga_id)
        await a.entered.wait()
        await closed(first, a.go)
        b = Gate("act B")
        await process(storage).join(BOTH, saga_id)
        await b.entered.wait()
        clock.now_ms += LEASE_MS + 1
        assert await recovered(storage, BOTH) is Status.COMPENSATED
    failure = (await state_of(storage, saga_id)).failure
    assert failure is not None
    assert failure.code == "run_lost"
    assert CALLS == ["act A", "act B", "compensate B", "compensate A"]
