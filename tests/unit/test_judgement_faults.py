"""What a batch does to one saga when messages are lost, doubled, late, or may have been judged before."""

from __future__ import annotations

import re
from typing import Any

import pytest

from watership.errors import LimitExceeded, error_lineage
from watership.machine.effects import NotifyEnd, NotifyStep, SendCommand
from watership.machine.nodes import FallbackPlan, RetryPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Status
from watership.messages import AdminVerb, ErrorOnWire
from watership_orchestrator import judgement as j
from watership_orchestrator.judgement import Arrival
from watership_orchestrator.outbox import messages_of
from watership_orchestrator.owed import UNCONFIRMED_YET, returned_reason

from tests.support.judging import (
    PLAN,
    SAGA_ID,
    TOPOLOGY,
    Row,
    admin,
    reply,
    sent,
    start,
    step,
)


def test_an_undo_that_is_done_again_has_a_new_generation_of_its_key() -> None:
    row = Row()
    row.batch(start(), reply("A"), reply("B", "failed"), reply("A", action=Action.COMPENSATE))
    it = row.batch(reply("A", run="another"))
    (command,) = [item.message for item in messages_of(it, PLAN, TOPOLOGY) if item.message.type == "step-command"]
    assert command.message_id == f"{SAGA_ID}:A:compensate:2:2"
    assert f'"idempotency_key":"{SAGA_ID}:A:compensate:2"' in command.body.decode()
    assert '"generation":2' in command.body.decode()


def test_what_is_owed_stays_owed_when_another_message_moves_the_saga() -> None:
    plan = Plan("OrderSaga", (FallbackPlan(step("P"), step("F")),))
    row = Row(plan)
    row.batch(start(), reply("P", "failed"))
    row.owes("unconfirmed: the link broke")
    it = row.batch(reply("P", run="late"))
    assert sent(it) == ["compensate P 1"], "the late primary is undone"
    assert it.owed_reason() == "unconfirmed: the link broke", "and the fallback's act is still to be sent"
    row.owes("unconfirmed: the link broke")
    assert row.batch(reply("F")).owed_reason() is not None, "one reply says nothing of the other command"
    row.owes("unconfirmed: the link broke")
    assert row.batch(reply("P", action=Action.COMPENSATE)).owed_reason() is None, "its reply says that it was sent"


def test_an_act_that_no_queue_took_is_withdrawn_at_the_turn() -> None:
    row = Row()
    row.batch(start(), reply("A"))
    row.owes(returned_reason(SendCommand("B", Action.ACT, 1), "no queue is bound to step.B"))
    assert sent(row.batch(admin(AdminVerb.COMPENSATE))) == ["compensate A 1"]
    waiting = Row()
    waiting.batch(start(), reply("A"))
    waiting.owes("unconfirmed: it may have been delivered")
    assert sent(waiting.batch(admin(AdminVerb.COMPENSATE))) == [], "B may be acting: its outcome comes first"


def test_an_act_that_was_to_be_sent_again_is_not_after_the_turn() -> None:
    """Law 3: its first delivery may be running, so it is awaited; but nothing sends it after CompensationBegan."""
    row = Row()
    row.batch(start())
    it = row.batch(Arrival(SAGA_ID, start(), redelivered=True), admin(AdminVerb.COMPENSATE))
    assert it.state is not None
    assert it.state.status is Status.COMPENSATING
    assert sent(it) == []
    assert it.state.awaits("A", Action.ACT, 1)


@pytest.mark.parametrize("why", ["redelivered", "in_doubt"])
def test_what_may_have_been_judged_before_sends_what_followed_again(why: str) -> None:
    """Law 1: a commit whose answer was lost, or a process that died after it: the log knows, and nothing was sent."""
    row = Row()
    again: dict[str, Any] = {why: True}
    row.batch(Arrival(SAGA_ID, start(), reply_to="me"))
    assert sent(row.batch(Arrival(SAGA_ID, start(), **again))) == ["act A 1"]
    row.batch(reply("A"))
    assert sent(row.batch(Arrival(SAGA_ID, reply("A"), **again))) == ["act B 1"]
    row.batch(reply("B"), reply("C"))
    assert row.batch(Arrival(SAGA_ID, reply("C"), **again)).notices == [
        NotifyStep(6, "C", None, None),
        NotifyEnd(6, Status.COMPLETED),
    ]
    verb = Arrival(SAGA_ID, admin(AdminVerb.COMPENSATE), message_id="m1")
    other = Row()
    other.batch(start(), reply("A", "failed"), history=True)
    parked = Row()
    parked.batch(start())
    parked.batch(reply("A"))
    parked.batch(verb, reply("B", "failed"))
    told = parked.batch(Arrival(SAGA_ID, admin(AdminVerb.COMPENSATE), message_id="m1", **again))
    assert told.refusals == {}, "it was done: the operator is not told that it was refused"


def test_a_parked_pending_saga_tells_what_it_owes() -> None:
    row = Row()
    row.batch(start(), known=False)
    for _ in range(j.PLAN_LOOKS_MAX):
        row.now_ms += j.PLAN_LOOK_MS
        row.batch(None, known=False)
    row.owes("unconfirmed: the link broke")
    assert [type(notice).__name__ for notice in row.batch(None, known=False).notices] == ["NotifyParked"]


def test_the_failure_of_a_redelivered_command_is_unknown_even_when_it_comes_late() -> None:
    row = Row()
    row.batch(start(), reply("A"), reply("B", "failed", run="first"))
    row.batch(reply("A", action=Action.COMPENSATE))
    it = row.batch(reply("B", "failed", run="third", redelivered=True))
    assert sent(it) == ["compensate B 1"], "its second delivery may have had the effect"


def test_one_command_that_no_queue_took_says_nothing_of_another() -> None:
    plan = Plan("OrderSaga", (FallbackPlan(step("P"), step("F")),))
    row = Row(plan)
    row.batch(start(), reply("P", "failed"))
    row.batch(reply("P", run="late"))
    row.owes(returned_reason(SendCommand("P", Action.COMPENSATE, 1), "no queue"))
    it = row.batch(admin(AdminVerb.COMPENSATE))
    assert it.state is not None
    assert it.state.awaits("F", Action.ACT, 1), "the stand-in runs: its outcome comes first"


def test_an_end_that_its_own_batch_overtook_is_not_told() -> None:
    plan = Plan("OrderSaga", (step("A", compensation_retry=RetryPlan(attempts_max=1)), step("B")))
    row = Row(plan)
    row.batch(Arrival(SAGA_ID, start(), reply_to="me"))
    row.batch(reply("A"), reply("B", "failed"))
    it = row.batch(reply("A", "failed", action=Action.COMPENSATE), admin(AdminVerb.RETRY))
    kinds = [item.message.type for item in messages_of(it, plan, TOPOLOGY)]
    assert kinds == ["step-command"], "it was parked and let go on at once: nobody is told of an end"


def test_what_its_own_batch_overtook_comes_again_with_any_of_its_messages() -> None:
    """Law 1: the end that followed from a withdrawn act has no message of its own; the batch was never published."""
    row = Row()
    it = row.batch(start(), admin(AdminVerb.COMPENSATE))
    assert it.notices == [NotifyEnd(3, Status.COMPENSATED)]
    assert row.batch(Arrival(SAGA_ID, start(), redelivered=True)).notices == [NotifyEnd(3, Status.COMPENSATED)]


def test_a_reply_that_is_in_the_log_twice_sends_what_followed_from_both() -> None:
    """It came late, for an attempt that was put off; and again, when that attempt had been sent once more."""
    row = Row(Plan("OrderSaga", (step("A"),)))
    row.batch(start(), reply("A", "not_served", run="idle", redelivered=True))
    done = reply("A", run="1", redelivered=True)
    row.batch(done)
    row.now_ms += j.NOT_SERVED_RETRY_MS
    assert sent(row.batch(None)) == ["act A 1"]
    it = row.batch(Arrival(SAGA_ID, done, redelivered=True))
    end = NotifyEnd(5, Status.COMPLETED)
    assert end in it.notices
    assert end in row.batch(Arrival(SAGA_ID, done, redelivered=True)).notices


def test_a_refusal_that_comes_twice_puts_its_attempt_off_once() -> None:
    """Its second copy may come when the attempt was sent anew, and runs: it says nothing of that delivery."""
    row = Row(Plan("OrderSaga", (step("A", rerun=False),)))
    refusal = reply("A", "not_served", run="idle")
    row.batch(start(), refusal)
    row.now_ms += j.NOT_SERVED_RETRY_MS
    assert sent(row.batch(None)) == ["act A 1"]
    it = row.batch(refusal)
    assert not it.moved
    assert row.batch(reply("A")).state is not None
    assert row.log[-1].cause.startswith("reply:A")


def test_what_a_refusal_led_to_is_sent_again_with_it() -> None:
    """An act that must not run twice is undone when a worker refuses it that was not the first to get it."""
    row = Row(Plan("OrderSaga", (step("A", rerun=False),)))
    refusal = reply("A", "not_served", run="idle", redelivered=True)
    assert sent(row.batch(start(), refusal)) == ["compensate A 1"]
    assert sent(row.batch(Arrival(SAGA_ID, refusal, redelivered=True))) == ["compensate A 1"]


@pytest.mark.parametrize("owed", [UNCONFIRMED_YET, "unconfirmed: the broker did not confirm it"])
def test_an_end_that_is_owed_stays_owed_when_a_late_act_moves_the_saga(owed: str) -> None:
    plan = Plan("OrderSaga", (step("A", compensation_retry=RetryPlan(attempts_max=1)), step("B")))
    row = Row(plan)
    row.batch(start(), reply("A"), reply("B", "failed"))
    row.batch(reply("A", "failed", action=Action.COMPENSATE))
    row.owes(owed)
    it = row.batch(reply("B", run="late"))
    assert it.state is not None
    assert it.state.parked_reason is not None
    assert it.owed_reason() == owed, "nobody was told that it is parked"
    row.owes(owed)
    assert [type(notice).__name__ for notice in row.batch(None).notices] == ["NotifyParked"]


def test_a_patch_over_the_limit_is_unknown_and_not_kept() -> None:
    row = Row()
    it = row.batch(start(), reply("A", patch={"big": "x" * 300_000}))
    assert it.state is not None
    assert it.state.context == {"n": 1}
    assert sent(it) == ["compensate A 1"]
    assert it.state.failure is not None
    assert it.state.failure.code == "limit_exceeded"


@pytest.mark.parametrize("told_by", ["orchestrator", "worker"])
def test_an_act_whose_changes_have_no_room_is_not_tried_without_end(told_by: str) -> None:
    """Behind the pivot there is no other end to it: each attempt acts, and its changes have no more room than before."""
    forever = RetryPlan(attempts_max=None, delay_ms=1_000)
    behind = [step(name, compensable=False, retry=forever) for name in ("X", "Y")]
    row = Row(Plan("OrderSaga", (step("P"), *behind), pivot="P"))
    row.batch(start(), reply("P"), reply("X", patch={"x": "x" * 200_000}))
    if told_by == "orchestrator":
        it = row.batch(reply("Y", patch={"y": "y" * 200_000}))
    else:
        limit = LimitExceeded("the context", value=400_000, limit=262_144)
        error = ErrorOnWire(code="LimitExceeded", message=str(limit), lineage=error_lineage(LimitExceeded))
        it = row.batch(reply("Y", "unknown").model_copy(update={"error": error}))
    assert sent(it) == []
    assert it.state is not None
    assert re.search(
        r"the act Y is unknown after 1 attempts .*the context.* is 400\d\d\d, the limit is 262144",
        str(it.state.parked_reason),
    )
    assert "`watership retry" in str(it.state.parked_reason)
    row.now_ms += 3_600_000
    assert sent(row.batch(None)) == []
    assert sent(row.batch(admin(AdminVerb.RETRY))) == ["act Y 2"], "by a newer worker, that leaves less behind"
    assert str(row.batch(reply("Y", attempt=2)).state.status) == "COMPLETED"  # type: ignore[union-attr]


def test_a_compensation_whose_changes_have_no_room_is_not_tried_without_end() -> None:
    forever = RetryPlan(attempts_max=None, delay_ms=1_000)
    row = Row(Plan("OrderSaga", (step("A", compensation_retry=forever), step("B"))))
    row.batch(start(), reply("A"), reply("B", "failed"))
    it = row.batch(reply("A", action=Action.COMPENSATE, patch={"big": "x" * 300_000}))
    assert it.state is not None
    assert "the compensation of step A" in str(it.state.parked_reason)
    assert "the limit is 262144" in str(it.state.parked_reason)


def test_a_command_that_no_queue_ever_takes_parks_its_saga() -> None:
    row = Row()
    row.batch(start())
    for _ in range(j.NOT_SERVED_MAX):
        row.owes(returned_reason(SendCommand("A", Action.ACT, 1), "no queue"))
        it = row.batch(None)
    assert it.state is not None
    assert "no worker serves step A: no queue takes its commands" in str(it.state.parked_reason)
    assert sent(row.batch(admin(AdminVerb.RETRY))) == ["act A 1"]
