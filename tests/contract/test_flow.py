"""Groups, pauses, signals and verification on every store of sagas in one process."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from watership import (
    Parallel,
    Saga,
    SagaMap,
    SagaMediator,
    SignalRefused,
    Sleep,
    Verified,
    Wait,
    bootstrap,
    codec,
)
from watership.machine.effects import PublishEvent, effects_of
from watership.machine.state import Status
from watership.saga.storage.protocol import SagaStorage

from tests.support.flow_steps import CALLS, HOOKS, A, Approval, Asked, B, C, Gate, Order, answers, raises, unknown

pytestmark = pytest.mark.usefixtures("fresh_flow_steps")

WITHIN_S = 20.0
APPROVAL = Wait("approval", into="approval", timeout_s=3_600, reject_if=("approved", False))


class FlowSaga(Saga[Order]):
    steps = [Parallel(A, B), APPROVAL, C]


def opened(storage: SagaStorage, saga: type[Saga[Any]], recover_every_s: float = 0) -> SagaMediator:
    mapper = SagaMap()
    mapper.bind(Order, saga)
    return bootstrap(sagas_mapper=mapper, saga_storage=storage, recover_every_s=recover_every_s)


@pytest.fixture
async def mediator(storage: SagaStorage) -> AsyncIterator[SagaMediator]:
    async with opened(storage, FlowSaga) as made:
        yield made


async def until_waiting(storage: SagaStorage, saga_id: uuid.UUID, name: str = "approval") -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            record = await storage.load(saga_id)
            if record is not None and name in record.state.steps:
                return
            await asyncio.sleep(0.01)


async def test_a_group_acts_together_and_a_signal_lets_the_saga_go_on(
    mediator: SagaMediator, storage: SagaStorage
) -> None:
    a, b = Gate("act A"), Gate("act B")
    saga_id = await mediator.start(Order())
    async with asyncio.timeout(WITHIN_S):
        await asyncio.gather(a.entered.wait(), b.entered.wait())  # both run now: else this would never end
    b.go.set()
    a.go.set()
    await until_waiting(storage, saga_id)
    assert CALLS[2:] == []
    await mediator.signal(saga_id, "approval", Approval("Ann"))
    result = await mediator.result(saga_id, timeout_s=WITHIN_S)
    assert result.completed
    assert result.context == Order(a="a", b="b", approval=Approval("Ann"))
    assert CALLS[2:] == ["act C"]


async def test_a_member_that_fails_has_the_others_undone(mediator: SagaMediator) -> None:
    b = Gate("act B")
    HOOKS["act A"] = raises(ValueError("no"))
    saga_id = await mediator.start(Order())
    async with asyncio.timeout(WITHIN_S):
        await b.entered.wait()
    b.go.set()
    result = await mediator.result(saga_id, timeout_s=WITHIN_S)
    assert result.compensated
    assert result.failed_step == "A"
    assert isinstance(result.error, ValueError)
    assert sorted(CALLS) == ["act A", "act B", "compensate B"]


async def test_a_group_that_writes_more_than_the_context_holds_is_undone(
    mediator: SagaMediator, storage: SagaStorage
) -> None:
    """Each member's changes are within the limit, as it sees the context; together they are not (law 10)."""
    large = "n" * (codec.CONTEXT_BYTES_MAX * 2 // 3)

    HOOKS["act A"] = lambda context: setattr(context, "order_id", large)
    HOOKS["act B"] = lambda context: setattr(context, "approval", Approval(large))
    result = await mediator.run(Order(), timeout_s=WITHIN_S)
    assert result.compensated
    assert "the context's size in bytes" in str(result.error)
    assert sorted(CALLS) == ["act A", "act B", "compensate A", "compensate B"]
    assert len(codec.dumps((await storage.load(result.saga_id)).state.context)) < codec.CONTEXT_BYTES_MAX  # type: ignore[union-attr]


@pytest.mark.parametrize("when", ["before the saga", "before the wait"])
async def test_an_early_signal_is_kept(mediator: SagaMediator, when: str) -> None:
    saga_id, gate = uuid.uuid4(), Gate("act A")
    if when == "before the wait":
        await mediator.start(Order(), saga_id)
        async with asyncio.timeout(WITHIN_S):
            await gate.entered.wait()
    await mediator.signal(saga_id, "approval", {"name": "Ann"}, signal_id="s-1")
    await mediator.signal(saga_id, "approval", {"name": "Bob"}, signal_id="s-1")
    gate.go.set()
    result = await mediator.run(Order(), saga_id, timeout_s=WITHIN_S)
    assert result.completed
    assert result.context.approval == Approval("Ann")
    await mediator.signal(saga_id, "approval", {"name": "Bob"}, signal_id="s-1")  # the same one again changes nothing
    with pytest.raises(SignalRefused, match="came too late"):
        await mediator.signal(saga_id, "approval", {"name": "Bob"}, signal_id="s-2")


async def test_a_signal_may_say_no(mediator: SagaMediator) -> None:
    saga_id = uuid.uuid4()
    await mediator.signal(saga_id, "approval", Approval("Ann", approved=False))
    result = await mediator.run(Order(), saga_id, timeout_s=WITHIN_S)
    assert result.compensated
    assert "approved = False" in str(result.error)
    assert sorted(CALLS) == ["act A", "act B", "compensate A", "compensate B"]


async def test_a_signal_that_does_not_fit_is_refused(mediator: SagaMediator, storage: SagaStorage) -> None:
    saga_id = await mediator.start(Order())
    await until_waiting(storage, saga_id)
    with pytest.raises(SignalRefused, match=r"the signal approval to saga FlowSaga .* does not fit: approval.*name"):
        await mediator.signal(saga_id, "approval", {"approved": True})
    with pytest.raises(SignalRefused, match="waits for no signal 'pickup'; its signals: approval"):
        await mediator.signal(saga_id, "pickup")
    await mediator.signal(saga_id, "approval", {"name": "Ann"})
    assert (await mediator.result(saga_id, timeout_s=WITHIN_S)).completed


@pytest.mark.parametrize("when", ["before the saga", "while it waits"])
async def test_a_signal_that_has_no_room_in_the_context_is_refused(
    mediator: SagaMediator, storage: SagaStorage, when: str
) -> None:
    """Each of the two is within the limits; together they are not (law 10)."""
    saga_id, large = uuid.uuid4(), {"name": "n" * (codec.CONTEXT_BYTES_MAX // 2)}
    if when == "before the saga":
        await mediator.signal(saga_id, "approval", large)
    await mediator.start(Order("o" * (codec.CONTEXT_BYTES_MAX // 2)), saga_id)
    await until_waiting(storage, saga_id)
    if when == "while it waits":
        with pytest.raises(SignalRefused, match=r"does not fit: approval: the context's size .* the limit is 262144"):
            await mediator.signal(saga_id, "approval", large)
    await mediator.signal(saga_id, "approval", {"name": "Ann"})
    result = await mediator.result(saga_id, timeout_s=WITHIN_S)
    assert result.context.approval == Approval("Ann")


async def test_a_wait_without_a_signal_compensates(storage: SagaStorage) -> None:
    class Impatient(Saga[Order]):
        steps = [A, Wait("approval", timeout_s=0.02), C]

    async with opened(storage, Impatient) as mediator:
        result = await mediator.run(Order(), timeout_s=WITHIN_S)
    assert result.compensated
    assert "no signal approval came within 0.02 s" in str(result.error)
    assert CALLS == ["act A", "compensate A"]


async def test_a_waiting_saga_is_cancelled(mediator: SagaMediator, storage: SagaStorage) -> None:
    saga_id = await mediator.start(Order())
    await until_waiting(storage, saga_id)
    await mediator.cancel(saga_id, "the customer went away", actor="ann")
    result = await mediator.result(saga_id, timeout_s=WITHIN_S)
    assert result.compensated
    assert "compensated by ann: the customer went away" in str(result.error)


async def test_a_pause_outlives_the_process_that_began_it(storage: SagaStorage) -> None:
    class Sleepy(Saga[Order]):
        steps = [A, Sleep(0.3), Wait("approval", timeout_s=3_600), C]

    async with opened(storage, Sleepy) as first:
        saga_id = await first.start(Order())
        await until_waiting(storage, saga_id, "sleep-2")
    async with opened(storage, Sleepy, recover_every_s=0.05) as second:
        await until_waiting(storage, saga_id)
        await second.signal(saga_id, "approval")
        assert (await second.result(saga_id, timeout_s=WITHIN_S)).completed
    assert CALLS == ["act A", "act C"]


async def test_a_signal_for_a_saga_that_nobody_drives_is_taken_up(storage: SagaStorage) -> None:
    async with opened(storage, FlowSaga) as first:
        saga_id = await first.start(Order())
        await until_waiting(storage, saga_id)
    async with opened(storage, FlowSaga) as second:
        await second.signal(saga_id, "approval", {"name": "Ann"})
        assert (await second.result(saga_id, timeout_s=WITHIN_S)).completed


async def test_two_mediators_on_one_store_signal_each_others_sagas(storage: SagaStorage) -> None:
    async with opened(storage, FlowSaga) as one, opened(storage, FlowSaga) as other:
        saga_id = await one.start(Order())
        await until_waiting(storage, saga_id)
        await other.signal(saga_id, "approval", {"name": "Ann"})
        assert (await one.result(saga_id, timeout_s=WITHIN_S)).completed


@pytest.mark.parametrize(
    ("found", "calls", "status"),
    [
        (Verified.DONE, ["act Asked", "verify Asked", "act C"], Status.COMPLETED),
        (Verified.NOT_DONE, ["act Asked", "verify Asked"], Status.COMPENSATED),
        (Verified.STILL_UNKNOWN, ["act Asked", "verify Asked", "compensate Asked"], Status.COMPENSATED),
    ],
)
async def test_an_unknown_act_is_asked_about(
    storage: SagaStorage, found: Verified, calls: list[str], status: Status
) -> None:
    from watership import RetryPolicy

    once = type("Asked", (Asked,), {"verify_retry": RetryPolicy(max_attempts=1)})

    class Careful(Saga[Order]):
        steps = [once, C]

    HOOKS["act Asked"] = unknown
    HOOKS["verify Asked"] = answers(found)
    async with opened(storage, Careful) as mediator:
        result = await mediator.run(Order(), timeout_s=WITHIN_S)
    assert result.status is status
    assert calls == CALLS


async def test_events_of_steps_are_in_the_log(mediator: SagaMediator, storage: SagaStorage) -> None:
    saga_id = uuid.uuid4()
    await mediator.signal(saga_id, "approval", {"name": "Ann"})
    await mediator.run(Order("o-7"), saga_id, timeout_s=WITHIN_S)
    history = await storage.history(saga_id)
    effects = [effect for entry in history for effect in effects_of(entry.seq, entry.changes)]
    (event,) = [effect for effect in effects if isinstance(effect, PublishEvent)]
    assert (event.step, event.name, event.data) == ("A", "a_acted", {"order": "o-7"})


async def test_stream_yields_each_member_once_and_shows_the_signal(mediator: SagaMediator) -> None:
    saga_id, order = uuid.uuid4(), Order()
    await mediator.signal(saga_id, "approval", {"name": "Ann"})
    seen = []
    async with asyncio.timeout(WITHIN_S), contextlib.aclosing(mediator.stream(order, saga_id)) as stream:
        async for result in stream:
            seen.append(result.step_type.__name__)
            if result.step_type is C:
                assert order.approval == Approval("Ann")
    assert (sorted(seen[:2]), seen[2:]) == (["A", "B"], ["C"])
    again = [result.step_type.__name__ async for result in mediator.stream(Order(), saga_id)]
    assert again == seen
