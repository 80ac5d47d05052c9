"""Sagas in this process, in memory: one drive for a saga, whoever watches."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from watership import (
    MemorySagaStorage,
    RetryPolicy,
    Saga,
    SagaCancelled,
    SagaCompensated,
    SagaConflict,
    SagaContext,
    SagaMap,
    SagaMediator,
    SagaNotFound,
    SagaParked,
    SagaStepHandler,
    StepError,
    bootstrap,
    recover_saga,
)
from watership.clock import SystemClock
from watership.container import PlainContainer
from watership.machine import events as e
from watership.machine.react import react
from watership.machine.state import SagaState, Status
from watership.saga.compile import compile_saga
from watership.saga.drivers import Drivers
from watership.saga.job import Job
from watership.saga.storage.protocol import LEASE_MS, LogEntry
from watership.testing.virtual_loop import new_loop

CALLS: list[str] = []
HOOKS: dict[str, Callable[[], Any]] = {}


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str
    charge_id: str | None = None


class Declined(StepError):
    code = "driver_declined"


class Recorded(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None:
        await self._call("act")

    async def compensate(self, context: Order) -> None:
        await self._call("compensate")

    async def _call(self, action: str) -> None:
        call = f"{action} {type(self).__name__}"
        CALLS.append(call)
        if call in HOOKS:
            waiting = HOOKS[call]()
            if waiting is not None:
                await waiting


class A(Recorded):
    pass


class B(Recorded):
    pass


class C(Recorded):
    compensation_retry = RetryPolicy(max_attempts=3, delay_s=0, jitter=0)


class OrderSaga(Saga[Order]):
    steps = [A, B, C]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    CALLS.clear()
    HOOKS.clear()
    yield
    CALLS.clear()
    HOOKS.clear()


@pytest.fixture
def storage() -> MemorySagaStorage:
    return MemorySagaStorage()


@pytest.fixture
async def mediator(storage: MemorySagaStorage) -> AsyncIterator[SagaMediator]:
    async with bound(storage) as made:
        yield made


def bound(storage: MemorySagaStorage) -> SagaMediator:
    mapper = SagaMap()
    mapper.bind(Order, OrderSaga)
    return bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=0)


def declines() -> None:
    raise Declined("no")


async def names(mediator: SagaMediator, saga_id: uuid.UUID, order: Order | None = None) -> list[str]:
    return [result.step_type.__name__ async for result in mediator.stream(order or Order("o-1"), saga_id=saga_id)]


async def test_two_streams_of_one_id_see_one_saga(mediator: SagaMediator) -> None:
    saga_id = uuid.uuid4()
    seen = await asyncio.gather(*(names(mediator, saga_id) for _ in range(4)))
    assert seen == [["A", "B", "C"]] * 4
    assert CALLS == ["act A", "act B", "act C"]
    assert await names(mediator, saga_id) == ["A", "B", "C"], "told again, not run again"
    assert len(CALLS) == 3


async def test_leaving_early_changes_nothing(mediator: SagaMediator) -> None:
    saga_id = uuid.uuid4()
    stream = mediator.stream(Order("o-1"), saga_id=saga_id)
    assert (await anext(stream)).step_type is A
    await stream.aclose()
    assert (await mediator.result(saga_id, timeout_s=5)).completed
    assert CALLS == ["act A", "act B", "act C"]


async def test_a_watcher_that_is_cancelled_leaves_the_saga_alone(mediator: SagaMediator) -> None:
    saga_id, entered, go = uuid.uuid4(), asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        entered.set()
        await go.wait()

    HOOKS["act B"] = waits
    watcher = asyncio.create_task(names(mediator, saga_id))
    await entered.wait()
    watcher.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher
    go.set()
    assert (await mediator.result(saga_id, timeout_s=5)).completed
    assert CALLS.count("act B") == 1


async def test_a_failure_is_undone_and_raised_as_it_was(mediator: SagaMediator) -> None:
    HOOKS["act C"] = declines
    with pytest.raises(Declined, match="no") as raised:
        await names(mediator, uuid.uuid4())
    assert CALLS == ["act A", "act B", "act C", "compensate B", "compensate A"]
    assert "step C, saga OrderSaga" in raised.value.__notes__[0]


async def test_run_does_not_raise(mediator: SagaMediator) -> None:
    HOOKS["act B"] = declines
    result = await mediator.run(Order("o-1"))
    assert (result.status, result.failed_step, result.compensated) == (Status.COMPENSATED, "B", True)
    assert isinstance(result.error, Declined)


async def test_a_compensation_is_retried_and_then_parks() -> None:
    class Late(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> None:
            raise Declined("no")

    class Short(Saga[Order]):
        steps = [C, Late]

    HOOKS["compensate C"] = declines
    mapper, storage, saga_id = SagaMap(), MemorySagaStorage(), uuid.uuid4()
    mapper.bind(Order, Short)
    async with bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=0) as short:
        with pytest.raises(SagaParked, match="step C is out of retries after 3 attempts") as parked:
            await names(short, saga_id)
    assert CALLS == ["act C"] + ["compensate C"] * 3
    assert isinstance(parked.value.__cause__, Declined)
    with pytest.raises(SagaParked):  # whoever recovers it is the person it waits for: three more attempts
        await recover_saga(Short, saga_id, Order, None, storage)
    assert CALLS == ["act C"] + ["compensate C"] * 6
    HOOKS.clear()
    with pytest.raises(SagaCompensated):
        await recover_saga(Short, saga_id, Order, None, storage)
    assert CALLS == ["act C"] + ["compensate C"] * 7


async def test_the_same_id_with_other_input_is_a_conflict(mediator: SagaMediator) -> None:
    saga_id, go = uuid.uuid4(), asyncio.Event()
    HOOKS["act A"] = go.wait
    await mediator.start(Order("o-1"), saga_id)
    with pytest.raises(SagaConflict, match="other input"):
        await mediator.start(Order("o-2"), saga_id)
    go.set()
    await mediator.result(saga_id)
    with pytest.raises(SagaConflict, match="other input"):
        await mediator.start(Order("o-2"), saga_id)
    assert await mediator.start(Order("o-1"), saga_id) == saga_id
    assert CALLS.count("act A") == 1


async def test_of_two_starts_at_once_with_other_input_one_is_a_conflict(mediator: SagaMediator) -> None:
    saga_id = uuid.uuid4()
    first, second = await asyncio.gather(
        mediator.start(Order("o-1"), saga_id), mediator.start(Order("o-2"), saga_id), return_exceptions=True
    )
    assert first == saga_id
    assert isinstance(second, SagaConflict)


def in_virtual_time(main: Callable[[MemorySagaStorage], Coroutine[Any, Any, None]]) -> None:
    """Time goes on only where nothing else can: what has not happened after a while was not going to."""
    loop = new_loop()
    try:
        loop.run_until_complete(main(MemorySagaStorage(now_ms=lambda: int(loop.time() * 1000))))
    finally:
        loop.close()


def test_a_second_driver_waits_and_gets_the_same_end() -> None:
    async def main(storage: MemorySagaStorage) -> None:
        saga_id, go = uuid.uuid4(), asyncio.Event()
        HOOKS["act B"] = go.wait
        async with bound(storage) as mediator:
            await mediator.start(Order("o-1"), saga_id)
            recoveries = [asyncio.create_task(recover_saga(OrderSaga, saga_id, Order, None, storage)) for _ in range(4)]
            await asyncio.sleep(30)  # less than a step may take
            assert CALLS == ["act A", "act B"]
            assert not any(recovery.done() for recovery in recoveries)
            go.set()
            await asyncio.gather(*recoveries)
        assert CALLS == ["act A", "act B", "act C"]

    in_virtual_time(main)


def test_a_driver_of_another_process_waits_for_the_lease() -> None:
    """Another set of drivers on the same store stands for another process."""

    async def main(storage: MemorySagaStorage) -> None:
        saga_id, go = uuid.uuid4(), asyncio.Event()
        HOOKS["act B"] = go.wait
        async with bound(storage) as mediator:
            await mediator.start(Order("o-1"), saga_id)
            other = Drivers(storage, SystemClock())
            drive = await other.join(Job(compile_saga(OrderSaga), PlainContainer()), saga_id)
            await asyncio.sleep((LEASE_MS - 1) / 1000)  # a store in memory has nobody who renews it
            assert CALLS == ["act A", "act B"]
            assert not drive.watch.over
            go.set()
            end = await drive.watch.end()
            await other.close()
        assert end.status is Status.COMPLETED
        assert drive.watch.steps_seen == 3
        assert CALLS == ["act A", "act B", "act C"]

    in_virtual_time(main)


async def test_nobody_has_this_id(mediator: SagaMediator) -> None:
    with pytest.raises(SagaNotFound):
        await mediator.result(uuid.uuid4())


# --- transactions


def test_a_transaction_takes_a_step_when_it_is_asked_for() -> None:
    async def main(storage: MemorySagaStorage) -> None:
        seen = []
        async with OrderSaga().transaction(context=Order("o-1"), storage=storage) as transaction:
            await asyncio.sleep(60)
            assert CALLS == []
            async for result in transaction:
                seen.append(result.step_type.__name__)
                await asyncio.sleep(60)
                assert [f"act {name}" for name in seen] == CALLS
        assert seen == ["A", "B", "C"]
        assert transaction.completed_steps == [A, B, C]

    in_virtual_time(main)


async def test_an_exception_that_leaves_the_block_undoes_what_acted(storage: MemorySagaStorage) -> None:
    saga_id = uuid.uuid4()
    with pytest.raises(ZeroDivisionError):
        async with OrderSaga().transaction(context=Order("o-1"), storage=storage, saga_id=saga_id) as transaction:
            async for result in transaction:
                if result.step_type is B:
                    raise ZeroDivisionError
    assert CALLS == ["act A", "act B", "compensate B", "compensate A"]
    assert (await storage.load_saga_state(saga_id))[0] == "compensated"


async def test_an_exception_before_the_first_step_runs_nothing() -> None:
    with pytest.raises(ZeroDivisionError):
        async with OrderSaga().transaction(context=Order("o-1")):
            raise ZeroDivisionError
    assert CALLS == []


async def test_leaving_a_transaction_quietly_lets_the_saga_end() -> None:
    async with OrderSaga().transaction(context=Order("o-1")) as transaction:
        async for _ in transaction:
            break
    assert CALLS == ["act A", "act B", "act C"]
    CALLS.clear()
    HOOKS["act C"] = declines
    with pytest.raises(Declined):
        async with OrderSaga().transaction(context=Order("o-1")):
            pass
    assert CALLS[-1] == "compensate A"


async def test_a_step_that_fails_in_a_transaction_raises_from_the_loop() -> None:
    HOOKS["act B"] = declines
    with pytest.raises(Declined):
        async with OrderSaga().transaction(context=Order("o-1")) as transaction:
            async for _ in transaction:
                pass
    assert CALLS == ["act A", "act B", "compensate A"]


async def test_a_transactions_own_compensation_retries() -> None:
    HOOKS["act B"], HOOKS["compensate A"] = declines, declines
    settings: dict[str, Any] = {"compensation_retry_count": 2, "compensation_retry_delay": 0.0}
    with pytest.raises(SagaParked, match="after 2 attempts"):
        async with OrderSaga().transaction(context=Order("o-1"), **settings) as transaction:
            async for _ in transaction:
                pass
    assert CALLS.count("compensate A") == 2


async def test_a_cancelled_saga_never_acts_again_after_a_crash(storage: MemorySagaStorage) -> None:
    """It was turned around while an act was awaited, and its process died: recovery only goes back (law 3)."""
    saga_id, plan = uuid.uuid4(), compile_saga(OrderSaga).plan
    now_ms = await storage.now_ms()
    await storage.save_plan(plan)
    started = react(plan, SagaState(str(saga_id)), e.SagaStarted(plan.saga, {"order_id": "o-1"}, plan.hash), now_ms)
    entry = LogEntry(1, now_ms, "start", started.changes)
    lease = await storage.create(saga_id, started.state, entry, input_hash="x", lease_ms=LEASE_MS)
    assert lease is not None
    turned = react(plan, started.state, e.CompensateRequested("ann", "why"), now_ms)
    await storage.commit(lease, turned.state, [LogEntry(2, now_ms, "admin", turned.changes)], release=True)
    with pytest.raises((RuntimeError, SagaCancelled)):
        await recover_saga(OrderSaga, saga_id, Order, None, storage)
    assert "act A" not in CALLS
