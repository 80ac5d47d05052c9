"""A step that runs alone runs in the saga's own task: neither it nor whoever asks something meanwhile can tell."""

from __future__ import annotations

import asyncio
import uuid
from contextvars import ContextVar

import pytest

from watership import MemorySagaStorage, OperationRefused, Saga, SagaMap, SagaMediator, bootstrap
from watership.machine.state import Status

from tests.support.flow_steps import CALLS, HOOKS, A, B, Order

pytestmark = pytest.mark.usefixtures("fresh_flow_steps")

TENANT = ContextVar("TENANT", default="nobody")


class Plain(Saga[Order]):
    steps = [A, B]


@pytest.fixture
def storage() -> MemorySagaStorage:
    return MemorySagaStorage()


def opened(storage: MemorySagaStorage) -> SagaMediator:
    mapper = SagaMap()
    mapper.bind(Order, Plain)
    return bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=0)


class Gate:
    """A step that has begun, and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, _: Order) -> None:
        self.begun.set()
        await self.open.wait()
        async with asyncio.timeout(5.0):  # of the task that it is in
            await asyncio.sleep(0)


async def test_a_step_sees_no_variable_of_the_step_before(storage: MemorySagaStorage) -> None:
    seen = []

    async def look(_: Order) -> None:
        seen.append(TENANT.get())
        TENANT.set("of this step alone")

    HOOKS.update({"act A": look, "act B": look})
    token = TENANT.set("of the caller")
    async with opened(storage) as mediator:
        assert (await mediator.run(Order("1"))).completed
    TENANT.reset(token)
    assert seen == ["of the caller", "of the caller"]


async def test_what_is_asked_while_it_runs_is_answered_at_once_and_again(storage: MemorySagaStorage) -> None:
    first, undo = Gate(), Gate()
    HOOKS.update({"act A": first, "compensate A": undo})
    async with opened(storage) as mediator:
        saga_id = await mediator.start(Order("1"))
        await first.begun.wait()
        async with asyncio.timeout(5.0):
            await mediator.cancel(saga_id, "no longer wanted")  # a deputy answers
        first.open.set()
        await undo.begun.wait()  # which runs the next one itself, and has a deputy of its own
        async with asyncio.timeout(5.0):
            with pytest.raises(OperationRefused, match="COMPENSATING"):
                await mediator.cancel(saga_id, "asked twice")
        undo.open.set()
        result = await mediator.result(saga_id, timeout_s=5.0)
    assert result.status is Status.COMPENSATED
    assert CALLS == ["act A", "compensate A"]


async def test_a_step_may_ask_its_own_saga_something_and_wait_for_the_answer(storage: MemorySagaStorage) -> None:
    saga_id = uuid.uuid4()

    async def cancel(_: Order) -> None:  # nobody is called to answer before it first waits: it waits for that
        async with asyncio.timeout(5.0):
            await mediator.cancel(saga_id, "no longer wanted")

    HOOKS["act A"] = cancel
    async with opened(storage) as mediator:
        result = await mediator.run(Order("1"), saga_id, timeout_s=5.0)
    assert result.status is Status.COMPENSATED
    assert CALLS == ["act A", "compensate A"]


async def test_a_saga_that_is_let_go_while_it_runs_has_the_outcome_on_record(storage: MemorySagaStorage) -> None:
    gate = Gate()
    HOOKS["act A"] = gate
    mediator = opened(storage)
    saga_id = await mediator.start(Order("1"))
    await gate.begun.wait()
    closing = asyncio.get_running_loop().create_task(mediator.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    gate.open.set()
    await closing
    lines = [(line.step_name, line.status.value) for line in await storage.get_step_history(saga_id)]
    assert lines[:2] == [("A", "started"), ("A", "completed")]
    assert CALLS == ["act A"]


async def test_whoever_ends_the_saga_s_task_ends_the_step_and_the_deputy(
    storage: MemorySagaStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    HOOKS["act A"] = gate
    monkeypatch.setattr("watership.saga.drivers.DRAIN_S", 0.01)
    mediator = opened(storage)
    saga_id = await mediator.start(Order("1"))
    await gate.begun.wait()
    before = asyncio.all_tasks()
    await mediator.close()  # calls a deputy, and waits in vain
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() - before if task.get_name().startswith("beside")]
    record = await storage.load(saga_id)
    assert record is not None
    assert record.state.status is Status.RUNNING  # recovery goes on with it
    assert CALLS == ["act A"]
