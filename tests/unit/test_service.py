"""How a service's process ends: by a signal, by its own failure, before it has begun; whatever it was, it is drained."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator

import pytest

from watership.errors import ConfigurationError
from watership.machine.state import Action
from watership.messages import ReplyOutcome
from watership.service import serve
from watership_worker import Worker

from tests.support.memory_worker import WITHIN_S, Mind, step

STOPS = [signal.SIGTERM, signal.SIGINT]


class Told:
    """A service that writes down what is asked of it."""

    name = "told"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.starts, self.runs, self.drains = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.may_start, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_start.set()
        self.may_end.set()
        self.error: Exception | None = None

    async def start(self) -> None:
        self.asked.append("start")
        self.starts.set()
        await self.may_start.wait()

    async def run(self) -> None:
        self.asked.append("run")
        self.runs.set()
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()

    async def drain(self) -> None:
        self.asked.append("drain")
        self.drains.set()
        await self.may_end.wait()
        self.asked.append("drained")


@pytest.fixture(autouse=True)
async def own_signals() -> AsyncIterator[None]:
    """A signal that `serve` does not take fails the test, and not the whole run; all are given back after it."""

    def unheard(number: int, _: object) -> None:
        raise AssertionError(f"nobody listens for signal {number}")

    before = {number: signal.signal(number, unheard) for number in STOPS}
    yield
    for number, handler in before.items():
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, handler)


@pytest.fixture
async def told() -> Told:
    return Told()


async def within(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), WITHIN_S)


@pytest.mark.parametrize("number", STOPS)
async def test_a_service_that_is_told_to_stop_is_drained_before_it_ends(told: Told, number: signal.Signals) -> None:
    told.may_end.clear()
    serving = asyncio.create_task(serve(told, drain_s=WITHIN_S))
    await within(told.runs)
    signal.raise_signal(number)
    await within(told.drains)
    assert not serving.done(), "it waits for what is in hand"
    told.may_end.set()
    await asyncio.wait_for(serving, WITHIN_S)
    assert told.asked == ["start", "run", "drain", "drained"]


async def test_a_service_that_is_told_to_stop_while_it_connects_does_not_run(told: Told) -> None:
    told.may_start.clear()
    serving = asyncio.create_task(serve(told, drain_s=WITHIN_S))
    await within(told.starts)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(serving, WITHIN_S)
    assert told.asked == ["start", "drain", "drained"]


async def test_a_service_that_fails_is_drained_and_its_error_ends_the_process(told: Told) -> None:
    told.error = ConfigurationError("mend this")
    with pytest.raises(ConfigurationError, match="mend this"):
        await asyncio.wait_for(serve(told, drain_s=WITHIN_S), WITHIN_S)
    assert told.asked == ["start", "run", "drain", "drained"]


async def test_what_cannot_be_finished_in_time_is_left_to_others(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="watership.service")
    told.may_end.clear()
    serving = asyncio.create_task(serve(told, drain_s=0.01))
    await within(told.runs)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(serving, WITHIN_S)
    assert told.asked == ["start", "run", "drain"]
    (record,) = caplog.records
    assert record.getMessage() == "told: not everything was finished within 0.01 s; the broker delivers it again"


async def test_a_worker_that_is_told_to_stop_replies_to_the_command_in_hand() -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        entered.set()
        await gate.wait()

    mind = Mind()
    await mind.open()
    await mind.send("Charge", action=Action.ACT)
    worker = mind.worker(Worker(handlers=[step("Charge", waits)]))
    serving = asyncio.create_task(serve(worker, drain_s=WITHIN_S))
    await within(entered)
    signal.raise_signal(signal.SIGTERM)
    await mind.until_nobody_takes("Charge")
    gate.set()
    await asyncio.wait_for(serving, WITHIN_S)
    reply, _ = await mind.reply()
    assert (reply.outcome, mind.depth("Charge").ready) == (ReplyOutcome.DONE, 0)
    await mind.close()
