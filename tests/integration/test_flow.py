"""Groups, pauses, signals, verification, pivot and deadline through orchestrator, workers and reaper on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import types
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from watership import (
    OperationRefused,
    OutcomeUnknown,
    Parallel,
    RetryPolicy,
    Saga,
    SagaCancelled,
    SagaContext,
    SagaMap,
    SagaMediator,
    SagaStepHandler,
    SignalRefused,
    Sleep,
    Verified,
    Wait,
    bootstrap,
)
from watership.bus.protocol import Delivery
from watership.bus.topology import Queue
from watership.client import wire_for
from watership.machine.state import Status
from watership.messages import AdminVerb, Signal, StepEmitted, read
from watership_orchestrator.reaper import Reaper
from watership_worker import Worker

from tests.support import flow_steps
from tests.support.flow_steps import CALLS, HOOKS, A, Approval, Asked, B, C, Capture, Gate, Order, Ship, answers, raises
from tests.support.running import Running

pytestmark = [pytest.mark.usefixtures("fresh_flow_steps"), pytest.mark.servers, pytest.mark.timeout(90)]
WITHIN_S = 30.0
APPROVAL = Wait("approval", into="approval", timeout_s=3_600, reject_if=("approved", False))


class FlowSaga(Saga[Order]):
    steps = [Parallel(A, B), APPROVAL, C]


class Pivoted(Saga[Order]):
    steps = [A, Capture, Ship]
    pivot = Capture


@pytest.fixture
def step_queues() -> set[str]:
    return {"A", "B", "C", "Capture", "Ship", "Asked"}


def saga_of(steps: list[Any], **settings: Any) -> type[Saga[Any]]:
    return types.new_class("Grown", (Saga[Order],), exec_body=lambda body: body.update(steps=steps, **settings))


def bound(saga: type[Saga[Any]]) -> SagaMap:
    mapper = SagaMap()
    mapper.bind(Order, saga)
    return mapper


@contextlib.asynccontextmanager
async def serving(system: Running, saga: type[Saga[Any]]) -> AsyncIterator[SagaMediator]:
    """An orchestrator, a worker of all steps, and a mediator."""
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=bound(saga)))
    async with mediator_of(system, saga) as mediator:
        yield mediator


def mediator_of(system: Running, saga: type[Saga[Any]]) -> SagaMediator:
    settings = system.settings
    return bootstrap(sagas_mapper=bound(saga), broker_url=settings.broker(), namespace=settings.namespace)


@contextlib.asynccontextmanager
async def reaping(system: Running) -> AsyncIterator[Reaper]:
    """A reaper that looks all the time."""
    reaper = await system.reaper()

    async def look() -> None:
        while True:
            await reaper.run_once()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(look())
    try:
        yield reaper
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not is_so():
            await asyncio.sleep(0.02)


async def until_waiting(system: Running, saga_id: uuid.UUID, name: str = "approval") -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            row = await system.row(saga_id)
            if row is not None and name in json.loads(row["state"])["steps"]:
                return
            await asyncio.sleep(0.02)


async def test_a_group_on_two_workers_and_a_signal(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=bound(FlowSaga), only=[A, C]))
    await system.worker(Worker(sagas_mapper=bound(FlowSaga), only=[B]))
    a, b = Gate("act A"), Gate("act B")
    async with mediator_of(system, FlowSaga) as mediator:
        saga_id, order, seen = uuid.uuid4(), Order(), []

        async def watch() -> None:
            async for result in mediator.stream(order, saga_id):
                seen.append((result.step_type.__name__, result.response.by))  # noqa: PERF401 - looked at meanwhile

        watching = asyncio.create_task(watch())
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(a.entered.wait(), b.entered.wait())
        b.go.set()
        await until(lambda: len(seen) == 1)
        a.go.set()
        await until_waiting(system, saga_id)
        await mediator.signal(saga_id, "approval", Approval("Ann"), signal_id="s-1")
        await mediator.signal(saga_id, "approval", Approval("Ann"), signal_id="s-1")
        await asyncio.wait_for(watching, WITHIN_S)
        assert seen == [("B", "B"), ("A", "A"), ("C", "C")]
        assert order == Order(a="a", b="b", approval=Approval("Ann"))
        with pytest.raises(SignalRefused, match="came too late"):
            await mediator.signal(saga_id, "approval", Approval("Bob"))


async def test_a_foreign_signal_and_signals_that_do_not_fit(system: Running) -> None:
    async with serving(system, FlowSaga) as mediator:
        saga_id = await mediator.start(Order())
        await until_waiting(system, saga_id)
        with pytest.raises(SignalRefused, match=r"does not fit: approval.*name"):
            await mediator.signal(saga_id, "approval", {"approved": True})
        with pytest.raises(SignalRefused, match="waits for no signal 'pickup'; its signals: approval"):
            await mediator.signal(saga_id, "pickup")
        foreign = Signal(saga_id=saga_id, name="approval", signal_id="foreign-1", data={"name": "Ann"})
        await system.send("control", foreign)
        result = await mediator.result(saga_id, timeout_s=WITHIN_S)
        assert result.completed
        assert result.context.approval == Approval("Ann", approved=True)
    reasons = [reason for (reason,) in await system.sql("SELECT reason FROM watership_ledger ORDER BY 1")]
    assert len(reasons) == 2, "what was refused is kept"


async def test_a_signal_says_no(system: Running) -> None:
    async with serving(system, FlowSaga) as mediator:
        saga_id = await mediator.start(Order())
        await mediator.signal(saga_id, "approval", Approval("Ann", approved=False))
        result = await mediator.result(saga_id, timeout_s=WITHIN_S)
    assert result.compensated
    assert isinstance(result.error, SagaCancelled)
    assert sorted(CALLS) == ["act A", "act B", "compensate A", "compensate B"]


async def test_a_signal_that_comes_before_its_saga_is_kept(system: Running) -> None:
    saga_id = uuid.uuid4()
    async with serving(system, FlowSaga) as mediator, reaping(system):
        await mediator.signal(saga_id, "approval", Approval("Ann"), signal_id="s-1")
        await mediator.signal(saga_id, "approval", Approval("Bob"), signal_id="s-1")
        result = await mediator.run(Order(), saga_id, timeout_s=WITHIN_S)
        assert result.completed
        assert result.context.approval == Approval("Ann")
        await mediator.signal(saga_id, "approval", Approval("Bob"), signal_id="s-1")


async def test_a_sleep_and_a_wait_that_nobody_ends(system: Running) -> None:
    saga = saga_of([A, Sleep(0.1), Wait("approval", timeout_s=0.1), C])
    async with serving(system, saga) as mediator, reaping(system):
        result = await mediator.run(Order(), timeout_s=WITHIN_S)
    assert result.compensated
    assert "no signal approval came within 0.1 s" in str(result.error)
    assert CALLS == ["act A", "compensate A"]


async def test_events_of_steps_reach_whoever_listens(system: Running) -> None:
    events = f"{system.settings.namespace}.events"
    heard: list[Delivery] = []
    async with serving(system, saga_of([A])) as mediator:
        queue = Queue(f"{system.settings.namespace}.step.C", events, "saga.Grown.a_acted", None)
        await system.bus.declare([], [queue])
        await system.bus.consume(queue.name, prefetch=10, on_delivery=heard.append)
        saga_id = await mediator.start(Order("o-7"))
        assert (await mediator.result(saga_id, timeout_s=WITHIN_S)).completed
        await until(lambda: bool(heard))
    event = read(heard[0].type, heard[0].body)
    assert isinstance(event, StepEmitted)
    assert (event.saga_id, event.step, event.event, event.data) == (saga_id, "A", "a_acted", {"order": "o-7"})
    assert heard[0].message_id == f"{saga_id}:{event.seq}:0:step-emitted"
    log = await system.sql("SELECT changes FROM watership_log WHERE seq = :seq", seq=event.seq)
    assert "a_acted" in log[0][0], "published after its transition was committed"


@pytest.mark.parametrize(
    ("found", "status", "calls"),
    [
        (Verified.DONE, Status.COMPLETED, ["act Asked", "verify Asked", "act C"]),
        (Verified.NOT_DONE, Status.COMPENSATED, ["act Asked", "verify Asked"]),
        (Verified.STILL_UNKNOWN, Status.COMPENSATED, ["act Asked", "verify Asked", "compensate Asked"]),
    ],
)
async def test_an_unknown_act_is_asked_about_by_a_command(
    system: Running, found: Verified, status: Status, calls: list[str]
) -> None:
    once = type("Asked", (Asked,), {"verify_retry": RetryPolicy(max_attempts=1)})
    HOOKS["act Asked"] = flow_steps.unknown
    HOOKS["verify Asked"] = answers(found)
    async with serving(system, saga_of([once, C])) as mediator:
        result = await mediator.run(Order(), timeout_s=WITHIN_S)
    assert result.status is status
    assert calls == CALLS


async def test_an_unknown_pivot_is_parked_and_goes_on_when_a_person_says_so(system: Running) -> None:
    HOOKS["act Capture"] = raises(OutcomeUnknown("the link broke"))
    async with serving(system, Pivoted) as mediator:
        result = await mediator.run(Order(), timeout_s=WITHIN_S)
        assert result.parked_reason is not None
        assert "the outcome of the pivot Capture is unknown" in result.parked_reason
        assert "the link broke" in result.parked_reason
        with pytest.raises(OperationRefused, match="has sent its pivot Capture"):
            await mediator.cancel(result.saga_id, "unwanted")
        del HOOKS["act Capture"]
        wire = wire_for(system.settings.broker(), system.settings.namespace)
        await wire.ask(AdminVerb.RETRY, saga_id=result.saga_id, actor="ada", reason="the link is back")
        await system.until(result.saga_id, status="COMPLETED", parked_reason=None)
    assert CALLS == ["act A", "act Capture", "act Capture", "act Ship"]


async def test_what_follows_the_pivot_is_tried_until_it_is_done(system: Running) -> None:
    quick = type("Ship", (Ship,), {"retry": RetryPolicy(max_attempts=None, delay_s=0.02, jitter=0)})
    HOOKS["act Ship"] = lambda _: raises(ValueError("closed"))(_) if CALLS.count("act Ship") < 6 else None
    async with serving(system, saga_of([A, Capture, quick], pivot=Capture)) as mediator, reaping(system):
        assert (await mediator.run(Order(), timeout_s=WITHIN_S)).completed
    assert CALLS.count("act Ship") == 6


async def test_a_saga_is_cancelled_while_a_handler_runs_and_while_it_waits(system: Running) -> None:
    gate = Gate("act B")
    async with serving(system, FlowSaga) as mediator:
        saga_id, other = await mediator.start(Order()), uuid.uuid4()
        async with asyncio.timeout(WITHIN_S):
            await gate.entered.wait()
        await mediator.cancel(saga_id, "unwanted", actor="ann")
        await system.until(saga_id, status="COMPENSATING")
        gate.go.set()
        result = await mediator.result(saga_id, timeout_s=WITHIN_S)
        assert result.compensated
        assert "compensated by ann: unwanted" in str(result.error)
        await mediator.start(Order(), other)
        await until_waiting(system, other)
        await mediator.cancel(other, "unwanted")
        assert (await mediator.result(other, timeout_s=WITHIN_S)).compensated


async def test_the_reaper_sees_a_deadline_pass(system: Running) -> None:
    async with serving(system, saga_of([A, APPROVAL, C], deadline_s=0.2)) as mediator, reaping(system):
        result = await mediator.run(Order(), timeout_s=WITHIN_S)
    assert result.compensated
    assert isinstance(result.error, SagaCancelled)
    assert "deadline of 0.2 s" in str(result.error)


@dataclasses.dataclass
class Stricter(SagaContext):
    order_id: int = 0


async def test_a_context_that_no_longer_fits_parks_until_a_worker_comes_whose_class_takes_it(system: Running) -> None:
    class NextRelease(SagaStepHandler[Stricter, None]):
        __module__, __qualname__ = A.__module__, A.__qualname__  # the same handler, as a later release has it
        name = "A"

        async def act(self, context: Stricter) -> None:
            CALLS.append("act of the next release")

    await system.orchestrator()
    worker = await system.worker(Worker(handlers=[NextRelease]))
    async with mediator_of(system, saga_of([A])) as mediator:
        saga_id = await mediator.start(Order("no number"))
        result = await mediator.result(saga_id, timeout_s=WITHIN_S)
        assert result.parked_reason is not None
        assert "the saga's context no longer fits Stricter, the context of step A" in result.parked_reason
        assert "order_id" in result.parked_reason
        assert f"watership retry {saga_id}" in result.parked_reason
        for subscription in worker._subscriptions:
            await subscription.cancel()
        await system.worker(Worker(handlers=[A]))
        wire = wire_for(system.settings.broker(), system.settings.namespace)
        await wire.ask(AdminVerb.RETRY, saga_id=saga_id, actor="ada", reason="deployed")
        await system.until(saga_id, status="COMPLETED", parked_reason=None)
    assert CALLS == ["act A"], "nothing ran where it did not fit"
