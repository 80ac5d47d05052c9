"""A worker's service on a memory bus: what it runs and what it must not, how it comes and how it goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from watership import Fallback, Saga, SagaMap, StepError
from watership.adapters.circuit_breaker import AioBreakerAdapter
from watership.bus.memory import QueueDepth
from watership.errors import ConfigurationError
from watership.machine.state import Action
from watership.messages import ReplyOutcome
from watership.saga.compile import Step
from watership_worker import Worker, consumer
from watership_worker.consumer import Consumer

from tests.support.memory_worker import WITHIN_S, Mind, Order, step


class Declined(StepError):
    code = "consumer_declined"


class Calls:
    """What the handlers of a test did. ``gate``: what they wait for."""

    def __init__(self) -> None:
        self.count = self.now = self.peak = 0
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self) -> None:
        self.count += 1
        self.now += 1
        self.peak = max(self.peak, self.now)
        self.entered.set()
        for _ in range(20):  # turns of the loop, in which any other that may run begins as well
            await asyncio.sleep(0)
        await self.gate.wait()
        self.now -= 1

    async def fail(self) -> None:
        self.count += 1
        raise Declined("no")


@pytest.fixture
async def calls() -> Calls:
    return Calls()


@pytest.fixture
async def mind() -> AsyncIterator[Mind]:
    made = Mind()
    await made.open()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[None]:
    await consumer.start()
    try:
        yield
    finally:
        await consumer.drain()


# --- what it runs


@pytest.mark.parametrize(
    ("rerun", "delivered_before", "action", "runs"),
    [
        (False, True, Action.ACT, 0),
        (False, False, Action.ACT, 1),
        (False, True, Action.COMPENSATE, 1),
        (True, True, Action.ACT, 1),
    ],
)
async def test_an_act_that_must_not_run_twice_is_unknown_when_it_was_delivered_before(
    mind: Mind, calls: Calls, rerun: bool, delivered_before: bool, action: Action, runs: int
) -> None:
    await mind.send("Charge", action=action)
    if delivered_before:
        await mind.hand_to_one_that_dies("Charge")
    async with running(mind.worker(Worker(handlers=[step("Charge", calls, rerun=rerun)]))):
        reply, _ = await mind.reply()
    assert (calls.count, reply.redelivered) == (runs, delivered_before)
    if runs:
        assert (reply.outcome, reply.error) == (ReplyOutcome.DONE, None)
    else:
        assert reply.error is not None
        assert (reply.outcome, reply.error.code) == (ReplyOutcome.UNKNOWN, "run_lost")


class Container:
    """Makes what it is told to."""

    def __init__(self, made: Callable[[], object]) -> None:
        self.made = made

    async def resolve(self, kind: type[object]) -> object:
        return self.made()


def cannot() -> object:
    raise KeyError("session")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (cannot, "the container cannot make Charge, the handler of step Charge: KeyError: 'session'"),
        (lambda: 5, "the container gave a int for Charge, the handler of step Charge"),
    ],
)
async def test_a_handler_that_cannot_be_made_undoes_nobodys_business(
    mind: Mind, calls: Calls, made: Callable[[], object], words: str
) -> None:
    """Nothing ran: the command is handed back, for this worker or another one, later."""
    worker = Worker(di_container=Container(made), handlers=[step("Charge", calls)])
    await mind.send("Charge")
    async with running(mind.worker(worker)):
        reply, _ = await mind.reply()
    assert reply.outcome is ReplyOutcome.NOT_SERVED
    assert reply.error is not None
    assert reply.error.message == words


def breaker_in_the_saga(charge: Step) -> Worker:
    class OrderSaga(Saga[Order]):
        steps = [Fallback(charge, step("PayLater", Calls()), circuit_breaker=AioBreakerAdapter(fail_max=2))]

    mapper = SagaMap()
    mapper.bind(Order, OrderSaga)
    return Worker(sagas_mapper=mapper)


def breaker_in_the_command(charge: Step) -> Worker:
    return Worker(handlers=[charge])


# The saga's own breaker goes before the settings that travel.
@pytest.mark.parametrize(("made", "fail_max_sent"), [(breaker_in_the_saga, 50), (breaker_in_the_command, 2)])
async def test_a_breaker_that_opened_keeps_acts_from_running_and_lets_compensations_through(
    mind: Mind, calls: Calls, made: Callable[[Step], Worker], fail_max_sent: int
) -> None:
    breaker = {"fail_max": fail_max_sent, "timeout_duration_s": 60.0}
    seen = []
    async with running(mind.worker(made(step("Charge", calls.fail)))):
        for action in (Action.ACT, Action.ACT, Action.ACT, Action.COMPENSATE):
            await mind.send("Charge", action=action, breaker=breaker)
            reply, _ = await mind.reply()
            assert reply.outcome is ReplyOutcome.FAILED
            assert reply.error is not None
            seen.append((reply.error.code, calls.count))
    no = "consumer_declined"
    assert seen == [(no, 1), (no, 2), ("circuit_open", 2), (no, 3)]


async def test_no_more_than_its_concurrency_run_at_once_whatever_the_number_of_queues(mind: Mind, calls: Calls) -> None:
    worker = Worker(handlers=[step("Charge", calls), step("Ship", calls)])
    async with running(mind.worker(worker, concurrency=2)):
        await mind.send("Charge", "Charge", "Ship", "Ship")
        for _ in range(4):
            await mind.reply()
    assert (calls.count, calls.peak) == (4, 2)


async def test_what_came_with_others_and_waits_too_long_is_run_by_a_worker_that_has_time(
    mind: Mind, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "IN_HAND_WITHIN_S", 0.05)
    calls.gate.clear()
    other = Calls()
    await mind.send("Charge", "Charge", together=True)
    async with running(mind.worker(Worker(handlers=[step("Charge", calls)]), concurrency=1)):
        await calls.entered.wait()
        async with running(mind.worker(Worker(handlers=[step("Charge", other)]), concurrency=1)):
            reply, _ = await mind.reply()  # of the second one: the first waits
            assert (calls.count, other.count, reply.redelivered) == (1, 1, False)
        calls.gate.set()
        reply, _ = await mind.reply()
    assert (calls.count, reply.redelivered) == (1, False)
    assert mind.depth("Charge") == QueueDepth(0, 0, 0)


@pytest.mark.parametrize("headers", [{"traceparent": "00-abc-def-01"}, {}])
async def test_a_reply_belongs_to_its_commands_trace(mind: Mind, calls: Calls, headers: dict[str, str]) -> None:
    async with running(mind.worker(Worker(handlers=[step("Charge", calls)]))):
        await mind.send("Charge", headers={**headers, "other": "stays behind"})
        _, delivery = await mind.reply()
    assert delivery.headers == headers


# --- how it comes and goes


async def test_a_worker_that_is_refused_runs_nothing(mind: Mind, calls: Calls) -> None:
    mind.refused = ("Charge belongs to others", "so does Ship")
    await mind.send("Charge")
    consumer = mind.worker(Worker(handlers=[step("Charge", calls)]))
    with pytest.raises(ConfigurationError, match="^Charge belongs to others; so does Ship$"):
        await consumer.start()
    await consumer.drain()
    assert (calls.count, mind.depth("Charge")) == (0, QueueDepth(1, 0, 0))


async def test_a_worker_that_is_refused_later_ends_with_the_reason(mind: Mind, calls: Calls) -> None:
    consumer = mind.worker(Worker(handlers=[step("Charge", calls)]), announce_every_s=0.001)
    async with running(consumer):
        mind.refused = ("Charge belongs to others",)
        with pytest.raises(ConfigurationError, match="^Charge belongs to others$"):
            await asyncio.wait_for(consumer.run(), WITHIN_S)


async def test_a_worker_that_leaves_finishes_what_it_has_and_only_then_says_so(mind: Mind, calls: Calls) -> None:
    calls.gate.clear()
    consumer = mind.worker(Worker(handlers=[step("Charge", calls)]))
    await consumer.start()
    await mind.send("Charge")
    await asyncio.wait_for(calls.entered.wait(), WITHIN_S)
    draining = asyncio.create_task(consumer.drain())
    await mind.until_nobody_takes("Charge")
    await mind.send("Charge")  # for others: it takes no more
    assert [each.leaving for each in mind.announced] == [False], "the names of its steps are still its own"
    calls.gate.set()
    await asyncio.wait_for(draining, WITHIN_S)
    reply, _ = await mind.reply()
    assert reply.outcome is ReplyOutcome.DONE
    assert [(each.worker, each.leaving) for each in mind.announced] == [(consumer.name, False), (consumer.name, True)]
    assert (calls.count, mind.depth("Charge")) == (1, QueueDepth(1, 0, 0))
