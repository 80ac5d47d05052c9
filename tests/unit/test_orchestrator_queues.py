"""What an orchestrator takes from which queue, on a memory bus: nothing that was sent astray moves a saga, or ends it."""

from __future__ import annotations

import asyncio

import pytest

from watership.machine.state import Action
from watership.messages import (
    AdminRequest,
    AdminVerb,
    RegisterWorker,
    ReplyOutcome,
    Signal,
    StartSaga,
    StepReply,
    WireMessage,
)
from watership_orchestrator.arrivals import Shelf

from tests.support.judging import PLAN
from tests.support.memory_orchestrator import SAGA_ID, Service, service

__all__ = ["service"]  # a fixture

BELONGS = {
    "start": {"start-saga"},
    "replies": {"step-reply"},
    "admin": {"admin-request"},
    "control": {"signal", "register-worker"},
}
MESSAGES: list[WireMessage] = [
    StartSaga(saga="OrderSaga", saga_id=SAGA_ID, context={"n": 1}),
    StepReply(saga_id=SAGA_ID, step="A", action=Action.ACT, attempt=1, run="r", outcome=ReplyOutcome.DONE),
    Signal(saga_id=SAGA_ID, signal_id="s", name="approval", data=None),
    RegisterWorker(worker="w", plans=(), handlers=()),
    *(AdminRequest(verb=verb, saga_id=SAGA_ID, letter_id=1) for verb in AdminVerb),
    *(AdminRequest(verb=verb) for verb in AdminVerb),
]
ASTRAY = [(queue, message) for queue, kinds in BELONGS.items() for message in MESSAGES if message.kind not in kinds]


@pytest.mark.parametrize(
    ("queue", "message"),
    ASTRAY,
    ids=[f"{queue}-{message.kind}-{number}" for number, (queue, message) in enumerate(ASTRAY)],
)
async def test_what_was_sent_astray_is_a_dead_letter_and_moves_nothing(
    service: Service, queue: str, message: WireMessage
) -> None:
    await service.backing.plans.keep([PLAN])
    await service.send("start", MESSAGES[0])
    before = await service.show()
    await service.send(queue, message)
    assert await service.show() == before
    async with asyncio.timeout(10):
        while not [row for row in service.database.waiting if row.shelf is Shelf.DEAD]:
            await asyncio.sleep(0)
