"""What is kept of a dead letter, whatever it is, and what the machine is told of it: pure."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watership.bus.protocol import Delivery
from watership.machine.state import Action
from watership.messages import AdminRequest, AdminVerb, ReplyOutcome, StartSaga, StepCommand, StepReply, WireMessage
from watership_orchestrator.arrivals import Arrival, Shelf, Waiting
from watership_orchestrator.dead_letters import arrival_of, letter_of
from watership_orchestrator.records import DeadLetter

SAGA_ID = uuid.UUID(int=7)
START = StartSaga(saga="Order", saga_id=SAGA_ID, context={})
COMMAND = StepCommand(
    saga="Order",
    saga_id=SAGA_ID,
    step="Charge",
    action=Action.ACT,
    attempt=2,
    generation=1,
    idempotency_key="k",
    timeout_ms=1,
    context={},
)
REPLY = StepReply(saga_id=SAGA_ID, step="Charge", action=Action.ACT, attempt=2, run="r", outcome=ReplyOutcome.DONE)


def dead(message: WireMessage, reason: str | None, **more: Any) -> DeadLetter:
    time = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    death = {"reason": reason, "queue": "ns.step.q", "count": 1, "time": time, "routing-keys": ["step.q"]}
    headers = {"x-death": [death]} if reason is not None else {}
    return letter_of(delivery(message.to_body(), message.kind, headers=headers, **more))


def delivery(body: bytes, kind: str | None, headers: Any, **more: Any) -> Delivery:
    given: dict[str, Any] = {"message_id": "m", "correlation_id": None, "reply_to": None, **more}
    return Delivery(queue="ns.dead", body=body, type=kind, redelivered=False, headers=headers, handle=None, **given)


@pytest.mark.parametrize(
    ("message", "reason", "judge"),
    [
        (START, "delivery_limit", True),
        (START, "maxlen", True),
        (START, "rejected", False),
        (START, None, False),
        (REPLY, "delivery_limit", True),
        (REPLY, "rejected", False),
        (COMMAND, "delivery_limit", True),
        (COMMAND, "expired", True),
        (COMMAND, "rejected", False),
        (AdminRequest(verb=AdminVerb.LIST), "delivery_limit", False),
    ],
)
def test_only_what_the_broker_gave_up_on_and_the_machine_can_use_is_judged_by_itself(
    message: WireMessage, reason: str | None, judge: bool
) -> None:
    letter = dead(message, reason)
    assert letter.judge is judge
    assert letter.reason == (reason or "unknown")
    assert letter.queue == ("ns.step.q" if reason else "ns.dead")
    assert letter.judged is None, "what came of it is said when it is judged, or by a person"


def test_a_command_that_expired_speaks_only_for_an_attempt_that_was_answered() -> None:
    found = arrival_of(dead(COMMAND, "expired"))
    assert isinstance(found, Arrival)
    assert found.expired
    assert isinstance(found.message, StepReply)
    assert found.message.outcome is ReplyOutcome.UNKNOWN


def test_a_command_that_used_up_its_deliveries_is_a_run_of_unknown_outcome() -> None:
    found = arrival_of(dead(COMMAND, "delivery_limit"))
    assert isinstance(found, Arrival)
    reply = found.message
    assert isinstance(reply, StepReply)
    assert (reply.step, reply.action, reply.attempt) == ("Charge", Action.ACT, 2)
    assert (reply.outcome, reply.redelivered) == (ReplyOutcome.UNKNOWN, True)
    assert reply.error is not None
    assert reply.error.code == "worker_killed"
    same = arrival_of(dead(COMMAND, "delivery_limit"))
    other = arrival_of(dead(COMMAND, "delivery_limit", message_id="another"))
    assert isinstance(same, Arrival) and isinstance(same.message, StepReply)
    assert isinstance(other, Arrival) and isinstance(other.message, StepReply)
    assert same.message.run == reply.run, "kept twice, it is one death"
    assert other.message.run != reply.run


def refused_reply(body: bytes, queue: str = "ns.replies", reason: str = "rejected") -> DeadLetter:
    return letter_of(delivery(body, "step-reply", {"x-death": [{"reason": reason, "queue": queue, "count": 1}]}))


SPOILED = {
    "too large": {"response": "x" * 1_100_000},
    "not a number": {"response": float("nan")},
    "an integer over 64 bits": {"patch": {"n": 10**40}},
    "an error of many words": {"outcome": "failed", "error": {"code": "c", "message": "x" * 5_000}},
    "no outcome that there is": {"outcome": "well"},
    "too many events": {"events": [{"name": "told"}] * 101},
    "a response that is no JSON for us": {"response": "a\0b"},
}


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED)
def test_a_reply_that_cannot_be_read_says_that_its_run_was_made(spoiled: dict[str, Any]) -> None:
    letter = refused_reply(json.dumps({**json.loads(REPLY.to_body()), **spoiled}).encode())
    assert letter.judge
    found = arrival_of(letter)
    assert isinstance(found, Arrival)
    reply = found.message
    assert isinstance(reply, StepReply)
    assert (reply.saga_id, reply.step, reply.action, reply.attempt) == (SAGA_ID, "Charge", Action.ACT, 2)
    assert (reply.run, reply.outcome, reply.patch, reply.response) == ("r", ReplyOutcome.UNKNOWN, None, None)
    assert reply.error is not None
    assert reply.error.message.startswith("its reply was refused: ")
    assert reply.error.code in ("limit_exceeded", "invalid_payload")


@pytest.mark.parametrize(
    "letter",
    [
        refused_reply(REPLY.to_body()),
        refused_reply(b'{"v": 1, "saga_id": "'),
        refused_reply(b"[1]"),
        refused_reply(b"[" * 100_000),
        refused_reply(json.dumps({**json.loads(REPLY.to_body()), "events": 7, "step": "a\0b"}).encode()),
        refused_reply(json.dumps({**json.loads(REPLY.to_body()), "events": 7, "attempt": 0}).encode()),
        refused_reply(json.dumps({**json.loads(REPLY.to_body()), "events": 7}).encode(), queue="ns.start"),
        letter_of(delivery(b"{}", "step-reply", {"x-watership-unknown-run": REPLY.to_body().decode()})),
    ],
    ids=["it can be read", "cut off", "a list", "nested", "NUL", "no attempt", "not among replies", "a forged header"],
)
def test_nothing_is_made_up_of_a_reply_that_says_less(letter: DeadLetter) -> None:
    assert not letter.judge
    found = arrival_of(letter)
    if letter.body != REPLY.to_body():
        assert "cannot be read" in str(found)


def test_what_is_not_for_the_machine_says_so() -> None:
    assert "sends it again" in str(arrival_of(dead(COMMAND, "rejected")))
    assert "ask again" in str(arrival_of(dead(AdminRequest(verb=AdminVerb.LIST), "rejected")))
    assert "cannot be read" in str(arrival_of(letter_of(delivery(b"{not json", "start-saga", {}))))
    found = arrival_of(dead(START, "rejected", reply_to="me"))
    assert isinstance(found, Arrival)
    assert (found.row, found.reply_to, found.mark) == (Waiting(Shelf.DEAD, 0), "me", None)


headers = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    body=st.binary(max_size=50),
    kind=st.none() | st.text(max_size=20) | st.sampled_from(["start-saga", "step-command"]),
    deaths=headers,
    more=st.dictionaries(st.text(max_size=5), headers, max_size=3),
    correlation_id=st.none() | st.text(max_size=40),
)
def test_whatever_dies_can_be_kept(
    body: bytes, kind: str | None, deaths: Any, more: dict[str, Any], correlation_id: str | None
) -> None:
    letter = letter_of(delivery(body, kind, {**more, "x-death": deaths}, correlation_id=correlation_id))
    assert isinstance(json.loads(letter.headers), dict)
    for text in (letter.queue, letter.reason, letter.kind, letter.message_id or ""):
        assert "\0" not in text
        text.encode()
    assert len(letter.reason) <= 100
