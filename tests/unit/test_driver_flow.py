"""Groups, pauses, cancel, pivot and deadline in one process, in memory, and in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import types
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from watership import (
    DefinitionError,
    MemorySagaStorage,
    OperationRefused,
    OutcomeUnknown,
    Parallel,
    RetryPolicy,
    Saga,
    SagaCancelled,
    SagaMap,
    SagaMediator,
    SagaNotFound,
    SagaParked,
    SagaStepHandler,
    SignalRefused,
    Sleep,
    StepError,
    StepFailed,
    Verified,
    Wait,
    bootstrap,
    recover_saga,
)
from watership.machine.state import Status
from watership.testing import fails, run, succeeds, unknown

from tests.support import flow_steps
from tests.support.flow_steps import CALLS, HOOKS, A, Approval, Asked, B, C, Capture, Gate, Order, Ship, raises

pytestmark = pytest.mark.usefixtures("fresh_flow_steps")

WITHIN_S = 20.0
DAY_MS = 86_400_000


@pytest.fixture
def storage() -> MemorySagaStorage:
    return MemorySagaStorage()


def opened(storage: MemorySagaStorage, saga: type[Saga[Any]], recover_every_s: float = 0) -> SagaMediator:
    mapper = SagaMap()
    mapper.bind(Order, saga)
    return bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=recover_every_s)


def saga_of(steps: list[Any], context: type[Any] = Order) -> type[Saga[Any]]:
    """A saga of these steps, of one name whatever its context."""
    return types.new_class("Grown", (Saga[context],), exec_body=lambda body: body.update(steps=steps))  # type: ignore[valid-type]


class Plain(Saga[Order]):
    steps = [A, B]


class Pivoted(Saga[Order]):
    steps = [A, Capture, Ship]
    pivot = Capture


@pytest.fixture
async def plain(storage: MemorySagaStorage) -> AsyncIterator[SagaMediator]:
    async with opened(storage, Plain) as made:
        yield made


@pytest.fixture
async def pivoted(storage: MemorySagaStorage) -> AsyncIterator[SagaMediator]:
    async with opened(storage, Pivoted) as made:
        yield made


# --- handing over


async def test_a_saga_of_a_closed_mediator_does_not_wait_for_its_lease_to_run_out(storage: MemorySagaStorage) -> None:
    gate = Gate("act A")
    mediator = opened(storage, Plain)
    saga_id = await mediator.start(Order())
    async with asyncio.timeout(WITHIN_S):
        await gate.entered.wait()
        closing = asyncio.create_task(mediator.close())
        await asyncio.sleep(0)  # it lets A end, and begins no other
        gate.go.set()
        await closing
    assert CALLS == ["act A"]
    assert await storage.due(names=["Plain"], limit=1) == [saga_id], "at once: its lease has five seconds to go"


# --- cancel


async def test_a_cancel_is_on_record_while_a_handler_runs_and_what_it_does_is_undone(
    plain: SagaMediator, storage: MemorySagaStorage
) -> None:
    gate = Gate("act B")
    saga_id = await plain.start(Order())
    async with asyncio.timeout(WITHIN_S):
        await gate.entered.wait()
        await plain.cancel(saga_id, "unwanted")  # returns though the handler is held
    record = await storage.load(saga_id)
    assert record is not None
    assert record.state.status is Status.COMPENSATING
    gate.go.set()
    result = await plain.result(saga_id, timeout_s=WITHIN_S)
    assert result.compensated
    assert isinstance(result.error, SagaCancelled)
    assert CALLS == ["act A", "act B", "compensate B", "compensate A"]


async def test_a_cancel_past_the_pivot_is_refused(pivoted: SagaMediator) -> None:
    gate = Gate("act Capture")
    saga_id = await pivoted.start(Order())
    async with asyncio.timeout(WITHIN_S):
        await gate.entered.wait()
        with pytest.raises(OperationRefused, match="has sent its pivot Capture: from there it only goes forward"):
            await pivoted.cancel(saga_id, "unwanted")
    gate.go.set()
    assert (await pivoted.result(saga_id, timeout_s=WITHIN_S)).completed
    with pytest.raises(OperationRefused, match="is COMPLETED"):
        await pivoted.cancel(saga_id, "unwanted")


async def test_a_cancel_of_no_saga(plain: SagaMediator) -> None:
    with pytest.raises(SagaNotFound):
        await plain.cancel(uuid.uuid4(), "unwanted")


async def test_what_is_asked_of_a_saga_that_has_just_ended_is_answered(plain: SagaMediator) -> None:
    saga_id = uuid.uuid4()
    await plain.run(Order(), saga_id, timeout_s=WITHIN_S)
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(OperationRefused, match="is COMPLETED"):
            await plain.cancel(saga_id, "unwanted")
        with pytest.raises(SignalRefused, match="waits for no signal"):
            await plain.signal(saga_id, "go")


async def test_a_parked_saga_is_retried_as_soon_as_it_is_parked(storage: MemorySagaStorage) -> None:
    HOOKS["act Capture"] = raises(OutcomeUnknown("who knows"))
    saga_id = uuid.uuid4()
    async with opened(storage, Pivoted) as mediator:
        result = await mediator.run(Order(), saga_id, timeout_s=WITHIN_S)
        assert result.parked_reason is not None
        del HOOKS["act Capture"]
        await recover_saga(Pivoted, saga_id, Order, None, storage)
        assert (await mediator.result(saga_id, timeout_s=WITHIN_S)).completed


# --- pivot, deadline


async def test_an_unknown_pivot_parks_and_nothing_is_undone(pivoted: SagaMediator) -> None:
    HOOKS["act Capture"] = raises(OutcomeUnknown("the link broke"))
    with pytest.raises(SagaParked, match=r"the outcome of the pivot Capture is unknown .* the link broke"):
        async for _ in pivoted.stream(Order()):
            pass
    assert CALLS == ["act A", "act Capture"]


async def test_a_failed_pivot_is_undone(pivoted: SagaMediator) -> None:
    HOOKS["act Capture"] = raises(ValueError("declined"))
    result = await pivoted.run(Order(), timeout_s=WITHIN_S)
    assert result.compensated
    assert CALLS == ["act A", "act Capture", "compensate A"]


async def test_a_deadline_passes_while_a_handler_runs(storage: MemorySagaStorage) -> None:
    class Urgent(Saga[Order]):
        steps = [A, B]
        deadline_s = 0.1

    gate = Gate("act B")
    async with opened(storage, Urgent) as mediator:
        saga_id = await mediator.start(Order())
        async with asyncio.timeout(WITHIN_S):
            await gate.entered.wait()
            while (await storage.load(saga_id)).state.status is Status.RUNNING:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        gate.go.set()
        result = await mediator.result(saga_id, timeout_s=WITHIN_S)
    assert result.compensated
    assert isinstance(result.error, SagaCancelled)
    assert "not done within its deadline of 0.1 s" in str(result.error)
    assert CALLS[2:] == ["compensate B", "compensate A"]


# --- groups


async def test_a_transaction_lets_a_whole_group_act_at_once() -> None:
    class Grouped(Saga[Order]):
        steps = [Parallel(A, B), C]

    order, seen = Order(), []
    a, b = Gate("act A"), Gate("act B")
    async with asyncio.timeout(WITHIN_S), Grouped().transaction(order) as transaction:
        results = aiter(transaction)
        first = asyncio.ensure_future(anext(results))
        await a.entered.wait()
        await b.entered.wait()
        b.go.set()
        seen.append((await first).step_type)
        assert order.b == "b"
        a.go.set()
        seen.append((await anext(results)).step_type)
        assert "act C" not in CALLS, "nobody asked for it yet"
        seen.append((await anext(results)).step_type)
    assert seen == [B, A, C]
    assert order.a == "a"


async def test_a_member_may_try_again_while_another_one_acts() -> None:
    once: list[int] = []

    def fails_once(_: object) -> None:
        if not once:
            once.append(1)
            raise ValueError("not yet")

    patient = type("A", (A,), {"retry": RetryPolicy(max_attempts=2, delay_s=0)})
    grouped = saga_of([Parallel(patient, B)], Order)
    HOOKS["act A"] = fails_once
    gate = Gate("act B")
    mapper = SagaMap()
    mapper.bind(Order, grouped)
    async with bootstrap(sagas_mapper=mapper, saga_storage=MemorySagaStorage(), recover_every_s=0) as mediator:
        saga_id = await mediator.start(Order())
        async with asyncio.timeout(WITHIN_S):
            while CALLS.count("act A") < 2:
                await asyncio.sleep(0.01)
        gate.go.set()
        assert (await mediator.result(saga_id, timeout_s=WITHIN_S)).completed


async def test_members_that_write_one_field_fail_the_group() -> None:
    async def writes(context: Any) -> None:
        context.a = "from b"

    class Clashing(Saga[Order]):
        steps = [Parallel(A, B)]

    HOOKS["act B"] = writes
    result = await run(Clashing, Order())
    assert result.status is Status.COMPENSATED
    assert isinstance(result.error, StepFailed)
    assert "act in parallel and wrote a differently" in str(result.error)


# --- a context that no longer fits


@dataclasses.dataclass
class Stricter(Order):
    order_id: int = 0  # type: ignore[assignment]


async def test_a_context_that_no_longer_fits_parks_and_a_mended_class_goes_on(storage: MemorySagaStorage) -> None:
    async with opened(storage, saga_of([A, Wait("go")], Order)) as before:
        saga_id = await before.start(Order("no number"))
        async with asyncio.timeout(WITHIN_S):
            while "act A" not in CALLS:
                await asyncio.sleep(0.01)

    class StrictA(SagaStepHandler[Stricter, None]):
        name = "A"

        async def act(self, context: Stricter) -> None: ...
        async def compensate(self, context: Stricter) -> None: ...

    strict = saga_of([StrictA, Wait("go")], Stricter)
    mapper = SagaMap()
    mapper.bind(Stricter, strict)
    async with bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=0) as after:
        await after.cancel(saga_id, "unwanted")
        found = await storage.load(saga_id)
        async with asyncio.timeout(WITHIN_S):
            while found is None or found.state.parked_reason is None:
                await asyncio.sleep(0.01)
                found = await storage.load(saga_id)
        assert "no longer fits Stricter, the context of step A (not a Stricter: order_id" in found.state.parked_reason
        assert "deploy a worker whose class takes it" in found.state.parked_reason
    mended = saga_of([A, Wait("go")], Order)
    with pytest.raises(RuntimeError, match="its compensation is complete"):
        await recover_saga(mended, saga_id, Order, None, storage)
    assert CALLS == ["act A", "compensate A"]


# --- virtual time


class Patient(Saga[Order]):
    steps = [A, Sleep(3 * 86_400), Wait("approval", into="approval", timeout_s=7 * 86_400), C]


async def test_a_week_passes_at_once() -> None:
    began_s = time.monotonic()
    result = await run(Patient, Order())
    assert result.status is Status.COMPENSATED
    assert isinstance(result.error, SagaCancelled)
    assert "no signal approval came within 604800 s" in str(result.error)
    assert result.elapsed_ms >= 10 * DAY_MS
    assert time.monotonic() - began_s < 60, "virtual time, not real time"


async def test_a_run_has_its_signals() -> None:
    result = await run(Patient, Order(), signals={"approval": {"name": "Ann"}})
    assert result.status is Status.COMPLETED
    assert result.context.approval == Approval("Ann")
    assert 3 * DAY_MS <= result.elapsed_ms < 4 * DAY_MS
    assert (await run(Patient, Order(), signals={"approval": Approval("Bob")})).context.approval == Approval("Bob")


async def test_a_signal_that_came_before_its_saga_comes_before_its_wait_ends() -> None:
    """Though the wait is the first of all, and virtual time passes at once."""
    saga = saga_of([Wait("approval", into="approval", timeout_s=7 * 86_400), C])
    result = await run(saga, Order(), signals={"approval": {"name": "Ann"}})
    assert (result.status, result.elapsed_ms) == (Status.COMPLETED, 0)


async def test_a_signal_that_a_test_gets_wrong_is_named() -> None:
    with pytest.raises(DefinitionError, match="Patient waits for no signal aproval; its signals: approval"):
        await run(Patient, Order(), signals={"aproval": {}})
    with pytest.raises(DefinitionError, match=r"signals\['approval'\] does not fit Patient: approval"):
        await run(Patient, Order(), signals={"approval": 7})


class Busy(StepError):
    code = "driver_flow_busy"
    retry_after_s = 30.0


async def test_an_error_says_when_to_try_again() -> None:
    patient = type("A", (A,), {"retry": RetryPolicy(max_attempts=2, delay_s=1, jitter=0)})
    saga = saga_of([patient], Order)
    result = await run(saga, Order(), steps={"A": fails(Busy, times=1)})
    assert result.status is Status.COMPLETED
    assert 30_000 <= result.elapsed_ms < 31_000


async def test_types_that_are_unknown_or_not_retryable() -> None:
    class Timeout(Exception):
        pass

    steps = {"retry": RetryPolicy(max_attempts=3, delay_s=1, non_retryable=(KeyError,)), "unknown_errors": (Timeout,)}
    saga = saga_of([type("A", (A,), steps)], Order)
    lost = await run(saga, Order(), steps={"A": fails(Timeout)})
    assert (lost.attempts["A"], lost.compensated) == (3, ["A"]), "unknown: tried again, then undone"
    final = await run(saga, Order(), steps={"A": fails(KeyError)})
    assert (final.attempts["A"], final.compensated) == (1, [])
    timed_out = await run(saga, Order(), steps={"A": fails(TimeoutError, times=1)})
    assert timed_out.status is Status.COMPLETED


async def test_what_is_verified_has_acted() -> None:
    class Careful(Saga[Order]):
        steps = [Asked, C]

    HOOKS["act Asked"] = flow_steps.unknown
    HOOKS["verify Asked"] = flow_steps.answers(Verified.STILL_UNKNOWN, ValueError("not the enum"), Verified.DONE)
    result = await run(Careful, Order())
    assert result.acted == ["Asked", "C"]
    assert CALLS.count("verify Asked") == 3
    assert result.elapsed_ms >= 2_000, "asked with pauses between"


async def test_a_pivoted_saga_goes_forward_whatever_it_takes() -> None:
    result = await run(Pivoted, Order(), steps={"Ship": fails(StepError, times=30), "Capture": succeeds()})
    assert result.status is Status.COMPLETED
    assert result.attempts["Ship"] == 31
    parked = await run(Pivoted, Order(), steps={"Capture": unknown()})
    assert parked.parked_reason is not None
    assert parked.compensated == []
