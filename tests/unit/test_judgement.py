"""What a batch does to one saga: pure, no broker, no database."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from watership import codec
from watership.machine.effects import NotifyEnd, NotifyStep, SendCommand
from watership.machine.nodes import BreakerPlan, FallbackPlan, RetryPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Phase, Status
from watership.messages import AdminVerb, StepCommand
from watership_orchestrator import judgement as j
from watership_orchestrator.judgement import Arrival, Judgement, NeedsHistory
from watership_orchestrator.outbox import messages_of, rejection_message
from watership_orchestrator.owed import returned_reason

from tests.support.judging import (
    NOW_MS,
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


def test_a_start_and_its_replies_in_one_batch() -> None:
    it = Row().batch(start(), reply("A", patch={"a": 1}), reply("B"))
    assert it.is_new
    assert sent(it) == ["act C 1"], "A and B were overtaken: nobody waits for them"
    assert [notice.step for notice in it.notices if isinstance(notice, NotifyStep)] == ["A", "B"]
    assert [entry.cause for entry in it.entries] == ["start", "reply:A:act:1:A-act-1", "reply:B:act:1:B-act-1"]
    whole = Row().batch(start(), reply("A"), reply("B"), reply("C"))
    assert sent(whole) == []
    assert [notice.status for notice in whole.notices if isinstance(notice, NotifyEnd)] == [Status.COMPLETED]


def test_a_start_again_and_a_conflict() -> None:
    row = Row()
    it = row.batch(start(), start(), start({"n": 2}), start(saga="Other"))
    assert len(it.entries) == 1
    assert [(rejection.code, rejection.reason.split("with ")[1]) for rejection in it.rejections] == [
        ("saga_conflict", "other input"),
        ("saga_conflict", "a saga OrderSaga"),
    ]
    later = row.batch(start(), start({"n": 2}))
    assert not later.moved
    assert [rejection.code for rejection in later.rejections] == ["saga_conflict"]


@pytest.mark.parametrize("context", [{"n": float("nan")}, {"n": 2**70}, {"n": "a\0"}, {"n": "x" * 300_000}])
def test_a_start_that_cannot_be_kept_makes_no_saga(context: dict[str, Any]) -> None:
    it = Row().batch(Arrival(SAGA_ID, start(context), reply_to="me"))
    assert it.state is None
    assert not it.moved
    (rejection,) = it.rejections
    assert rejection.code in ("invalid_payload", "limit_exceeded")
    message = rejection_message(rejection)
    assert message is not None
    assert (message.routing_key, message.type) == ("me", "saga-rejected")
    assert rejection_message(dataclasses.replace(rejection, arrival=Arrival(SAGA_ID, start(context)))) is None


def test_a_context_that_its_schema_refuses() -> None:
    it = Row().batch(start(), trouble="n is not a string")
    assert it.state is None
    assert "does not fit its schema: n is not a string" in it.rejections[0].reason


def test_an_act_that_its_batch_overtook_is_withdrawn_and_not_sent() -> None:
    it = Row().batch(start(), reply("A"), admin(AdminVerb.COMPENSATE))
    assert sent(it) == ["compensate A 1"], "law 3"
    assert it.entries[-1].cause == "overtaken"
    assert it.state is not None
    assert it.state.step("B").act.phase is Phase.IDLE


def test_an_act_that_an_earlier_batch_sent_is_waited_for() -> None:
    row = Row()
    row.batch(start(), reply("A"))
    it = row.batch(admin(AdminVerb.COMPENSATE))
    assert sent(it) == []
    assert it.state is not None
    assert it.state.awaits("B", Action.ACT, 1)
    assert sent(row.batch(reply("B"))) == ["compensate B 1"]


def test_what_followed_from_a_step_that_nobody_served_is_sent_again_with_its_message() -> None:
    """It was committed and never sent: the saga goes back by it, and no longer awaits what it speaks of (law 1)."""
    row = Row()
    row.batch(start())
    row.batch(reply("A"))
    row.batch(admin(AdminVerb.COMPENSATE))
    nobody = reply("B", "not_served")
    assert sent(row.batch(nobody)) == ["compensate A 1"]
    assert sent(row.batch(Arrival(SAGA_ID, nobody))) == [], "a copy of it sends nothing"
    assert sent(row.batch(Arrival(SAGA_ID, nobody, redelivered=True))) == ["compensate A 1"]


def test_a_saga_whose_plan_is_gone_is_not_moved_without_it() -> None:
    """Without its plan, nothing of it would be left to do or to undo: it would seem to be at its end."""
    row = Row()
    row.batch(start())
    for arrival in (reply("A"), Arrival(SAGA_ID, None), admin(AdminVerb.COMPENSATE)):
        with pytest.raises(LookupError, match="its plan .* is not there, or cannot be read"):
            row.batch(arrival, known=False)


def test_a_stale_reply_needs_the_log() -> None:
    row = Row()
    row.batch(start(), reply("A"))
    with pytest.raises(NeedsHistory):
        row.batch(reply("A"), history=False)
    with pytest.raises(NeedsHistory):
        row.batch(Arrival(SAGA_ID, start(), redelivered=True), history=False)
    assert row.batch(reply("B"), history=False).moved, "an awaited one does not"


def test_a_redelivered_duplicate_sends_again_only_what_is_awaited() -> None:
    row = Row()
    row.batch(Arrival(SAGA_ID, start(), reply_to="me"))
    row.batch(reply("A"))
    it = row.batch(Arrival(SAGA_ID, reply("A"), redelivered=True))
    assert sent(it) == ["act B 1"]
    assert [type(notice) for notice in it.notices] == [NotifyStep]
    assert it.state is not None
    assert it.state.step("B").act.doubtful, "it may have been sent before"
    row.batch(reply("B"))
    again = row.batch(Arrival(SAGA_ID, reply("A"), redelivered=True))
    assert sent(again) == []
    assert [type(notice) for notice in again.notices] == [NotifyStep]
    assert not again.ledger
    # A duplicate that the broker brings for the first time was answered for already.
    assert not row.batch(reply("A")).notices


def test_a_redelivered_start_sends_its_first_command_again() -> None:
    row = Row()
    row.batch(start())
    assert sent(row.batch(Arrival(SAGA_ID, start(), redelivered=True))) == ["act A 1"]
    row.batch(reply("A"))
    assert sent(row.batch(Arrival(SAGA_ID, start(), redelivered=True))) == []


def test_late_and_strange_replies_go_to_the_ledger() -> None:
    row = Row()
    assert row.batch(reply("A")).ledger[0][0] == "there is no such saga"
    row.batch(start(), reply("A"), reply("B", "failed"), reply("A", action=Action.COMPENSATE))
    it = row.batch(reply("B", run="another"), reply("Nobody"))
    assert [reason for reason, _ in it.ledger] == [
        "act B attempt 1 was not awaited: merged, and undone",
        "act Nobody attempt 1 was not awaited",
    ]
    assert sent(it) == ["compensate B 1"]
    assert '"run":"another"' in it.ledger[0][1]


def test_nobody_serves_it() -> None:
    row = Row()
    row.batch(start())
    it = row.batch(reply("A", "not_served"))
    assert sent(it) == []
    assert it.state is not None
    assert it.state.due_at_ms == NOW_MS + j.NOT_SERVED_RETRY_MS
    row.now_ms += j.NOT_SERVED_RETRY_MS
    assert sent(row.batch(None)) == ["act A 1"]


def test_a_refusal_of_a_redelivered_command_leaves_doubt() -> None:
    """A worker that has the step may have run it and died; the one that refuses it now knows nothing of that."""
    row = Row()
    row.batch(start())
    it = row.batch(reply("A", "not_served", redelivered=True))
    assert it.state is not None
    assert it.state.step("A").act.doubtful


def test_the_reaper_sends_what_is_owed() -> None:
    row = Row()
    row.batch(start())
    row.owes("not confirmed")
    it = row.batch(None)
    assert (it.looked, sent(it)) == (True, ["act A 1"])
    assert it.state is not None
    assert it.state.step("A").act.doubtful
    returned = Row()
    returned.batch(start())
    returned.owes(returned_reason(SendCommand("A", Action.ACT, 1), "no queue"))
    it = returned.batch(None)
    assert sent(it) == ["act A 1"]
    assert it.state is not None
    assert not it.state.step("A").act.doubtful, "the broker gave it back: nobody got it"
    ended = Row()
    ended.batch(start(), reply("A"), reply("B"), reply("C"))
    ended.owes("not confirmed")
    assert ended.batch(None).notices == [NotifyEnd(4, Status.COMPLETED)]


def test_the_reaper_finds_nothing_to_do() -> None:
    row = Row()
    row.batch(start())
    it = row.batch(None)
    assert (it.looked, it.moved, sent(it)) == (True, False, [])
    assert Row().batch(None).state is None


def test_a_pending_saga_finds_its_plan_or_is_parked() -> None:
    row = Row()
    it = row.batch(start(), known=False)
    assert it.state is not None
    assert (it.state.status, it.state.due_at_ms) == (Status.PENDING, NOW_MS + j.PLAN_LOOK_MS)
    assert not row.batch(None, known=False).moved, "too early"
    row.now_ms += j.PLAN_LOOK_MS
    assert row.batch(None, known=False).moved
    row.now_ms += j.PLAN_LOOK_MS
    it = row.batch(None)
    assert sent(it) == ["act A 1"]
    assert it.state is not None
    assert it.state.plan_hash == PLAN.hash
    lost = Row()
    lost.batch(start(), known=False)
    for _ in range(j.PLAN_LOOKS_MAX):
        lost.now_ms += j.PLAN_LOOK_MS
        it = lost.batch(None, known=False)
    assert it.state is not None
    assert it.state.parked_reason is not None
    refused = Row()
    refused.batch(start(), known=False)
    refused.now_ms += j.PLAN_LOOK_MS
    it = refused.batch(None, trouble="n is not a string")
    assert it.state is not None
    assert "n is not a string" in str(it.state.parked_reason)


def test_an_operators_refusals_are_told_to_each() -> None:
    row = Row()
    first = Arrival(SAGA_ID, admin(AdminVerb.RETRY))
    assert row.batch(first).refusals == {id(first): f"no saga has the id {SAGA_ID}"}
    row.batch(start(), reply("A"))
    stale, fresh = (Arrival(SAGA_ID, admin(AdminVerb.COMPENSATE, seq)) for seq in (1, 2))
    it = row.batch(stale, fresh)
    assert list(it.refusals) == [id(stale)]
    assert "has moved" in it.refusals[id(stale)]
    assert it.state is not None
    assert it.state.status is Status.COMPENSATING


# --- what is sent


def test_a_commands_message() -> None:
    breaker = BreakerPlan(3, 60.0, ("x",))
    plan = Plan("OrderSaga", (FallbackPlan(step("P", timeout_ms=9, queue_within_ms=7), step("F"), (), breaker),))
    row = Row(plan)
    it = row.batch(Arrival(SAGA_ID, start(), reply_to="me", traceparent="00-1-2-3"))
    (outgoing,) = messages_of(it, plan, TOPOLOGY)
    message = outgoing.message
    assert outgoing.required
    assert (message.exchange, message.routing_key) == (TOPOLOGY.exchange, TOPOLOGY.step_key("q-P"))
    assert (message.message_id, message.correlation_id) == (f"{SAGA_ID}:P:act:1:1", str(SAGA_ID))
    assert (message.expiration_ms, message.headers) == (7, {"traceparent": "00-1-2-3"})
    as_a_model = StepCommand.model_validate_json(message.body)
    assert codec.loads(as_a_model.to_body()) == codec.loads(message.body), "put together by hand, and alike"
    body = message.body.decode()
    for part in ('"breaker":{"fail_max":3', '"timeout_ms":9', '"context":{"n":1}', f'"{SAGA_ID}:P:act:1"'):
        assert part in body
    undo = row.batch(reply("P", "unknown"))
    (outgoing,) = messages_of(undo, plan, TOPOLOGY)
    assert outgoing.message.expiration_ms is None, "a compensation is never thrown away"
    assert (
        '"breaker"'
        not in messages_of(row.batch(reply("P", action=Action.COMPENSATE)), plan, TOPOLOGY)[0].message.body.decode()
    )


def test_who_is_told_what() -> None:
    row = Row()
    row.batch(Arrival(SAGA_ID, start(), reply_to="me"))
    it = row.batch(reply("A", response={"r": 1}), Arrival(SAGA_ID, reply("A"), redelivered=True))
    command, progress = messages_of(it, PLAN, TOPOLOGY)
    assert (command.required, progress.required) == (True, False)
    assert (progress.message.routing_key, progress.message.type) == ("me", "saga-progress")
    assert progress.message.message_id == f"{SAGA_ID}:2:saga-progress"
    it = row.batch(reply("B"), reply("C"))
    types = [(one.message.type, one.message.routing_key, one.required) for one in messages_of(it, PLAN, TOPOLOGY)]
    assert types == [
        ("saga-progress", "me", False),
        ("saga-progress", "me", False),
        ("saga-ended", "me", False),
        ("saga-ended", "saga.OrderSaga.completed", True),
    ]
    row = Row()
    row.batch(Arrival(SAGA_ID, start(progress=False), reply_to="me"))
    assert [one.message.type for one in messages_of(row.batch(reply("A")), PLAN, TOPOLOGY)] == ["step-command"]
    ended = messages_of(row.batch(reply("B"), reply("C")), PLAN, TOPOLOGY)
    assert [one.message.routing_key for one in ended] == ["me", "saga.OrderSaga.completed"]
    unwatched = Row().batch(start(), reply("A"), reply("B"), reply("C"))
    assert [one.message.routing_key for one in messages_of(unwatched, PLAN, TOPOLOGY)] == ["saga.OrderSaga.completed"]


def test_a_parked_saga_is_told_as_such() -> None:
    plan = Plan("OrderSaga", (step("A", compensation_retry=RetryPlan()), step("B")))
    row = Row(plan)
    it = row.batch(start(), reply("A"), reply("B", "failed"), reply("A", "failed", action=Action.COMPENSATE))
    (event,) = messages_of(it, plan, TOPOLOGY)
    assert event.message.routing_key == "saga.OrderSaga.parked"
    assert messages_of(Judgement(SAGA_ID, None, "", None, None), plan, TOPOLOGY) == []


def test_commands_to_send_never_has_an_act_on_the_way_back() -> None:
    it = Row().batch(start(), admin(AdminVerb.COMPENSATE))
    it.commands.add(SendCommand("A", Action.ACT, 1))
    assert it.commands_to_send() == []
