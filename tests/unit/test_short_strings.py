"""AMQP's short strings hold 255 bytes: whatever is made of the longest names fits into them, or is made to fit."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import pytest

from watership import DefinitionError, SagaContext, SagaStepHandler
from watership.bus.protocol import Message
from watership.bus.rabbit.contents import publishing
from watership.bus.topology import Topology
from watership.chance import SYSTEM_CHANCE, new_token
from watership.machine.effects import SendCommand
from watership.machine.nodes import ATTEMPTS_MAX, NAME_BYTES_MAX, StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action
from watership.messages import EventOnWire, ReplyOutcome, StepReply
from watership.settings import Settings
from watership_orchestrator.outbox import _command, messages_of
from watership_worker import Worker

from tests.support.judging import SAGA_ID, Row, reply, start

NAME = "Ш" * 74 + "A"  # 149 bytes
TOPOLOGY = Topology(Settings(namespace="n" * 100).namespace)


def as_sent(message: Message) -> bytes:
    """As it goes over the wire, uncut: an id that had to be shortened would be no id that anybody could expect."""
    assert ":" in message.message_id
    return publishing(message, 1, 131_000)


def test_all_that_is_made_of_the_longest_names_fits() -> None:
    assert len(NAME.encode()) == NAME_BYTES_MAX
    plan = Plan(NAME, (StepPlan(NAME, NAME),))
    row = Row(plan)
    events = (EventOnWire(name="e" * 100),)
    batches = [row.batch(start(saga=NAME)), row.batch(reply(NAME, run="r", events=events))]
    sent = [item.message for batch in batches for item in messages_of(batch, plan, TOPOLOGY)]
    assert [message.type for message in sent] == ["step-command", "step-emitted", "saga-ended"]
    for message in sent:
        as_sent(message)
    assert len(TOPOLOGY.step_queue(NAME).name.encode()) == 255
    assert len(sent[1].routing_key.encode()) == 255


def test_nor_does_any_number_of_attempts_make_an_id_too_long() -> None:
    plan = Plan(NAME, (StepPlan(NAME, NAME),))
    batch = Row(plan).batch(start(saga=NAME))
    assert batch.state is not None
    batch.state.steps[NAME].generation = 2**31 - 1
    command = _command(batch, batch.state, plan, SendCommand(NAME, Action.COMPENSATE, ATTEMPTS_MAX), TOPOLOGY)
    as_sent(command)
    body = StepReply(
        saga_id=SAGA_ID,
        step=NAME,
        action=Action.COMPENSATE,
        attempt=2**31 - 1,
        run=new_token(SYSTEM_CHANCE),
        outcome=ReplyOutcome.DONE,
    )
    as_sent(body.addressed(TOPOLOGY.exchange, "replies", message_id=body.message_id))


def test_an_id_that_is_too_long_is_shortened_and_stays_an_id() -> None:
    """A command need not come of a plan: anybody may put one into a step's queue, and its reply must be sent."""
    body = StepReply(
        saga_id=uuid.UUID(int=1), step="Ш" * 200, action=Action.ACT, attempt=1, run="r", outcome=ReplyOutcome.DONE
    )
    other = body.model_copy(update={"run": "s"})
    made = [one.addressed("x", "replies", message_id=one.message_id) for one in (body, body, other)]
    assert made[0].message_id == made[1].message_id != made[2].message_id
    for message in made:
        publishing(message, 1, 131_000)
    assert body.addressed("x", "replies", message_id="x" * 255).message_id == "x" * 255


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "S" * 150}, "a handler's name S+… is 150 bytes long"),
        ({"queue": "q" * 150}, "handler Remote: the name of its queue q+… is 150 bytes long"),
        ({"name": "a\0b"}, "a handler's name holds a NUL"),
    ],
)
def test_a_handler_that_no_saga_lists_here_has_the_same_limits(more: dict[str, Any], words: str) -> None:
    class Remote(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> None: ...

    with pytest.raises(DefinitionError, match=words):
        Worker(handlers=[type("Remote", (Remote,), more)])
