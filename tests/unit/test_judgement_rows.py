"""What is judged without a message that would bring it again, and what pruned sagas left: pure."""

from __future__ import annotations

from typing import Any

import pytest

from watership import codec
from watership.machine.apply import fold
from watership.machine.nodes import RetryPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Status
from watership.messages import AdminVerb, SagaKnown, read
from watership.saga.storage.protocol import Tombstone
from watership_orchestrator.arrivals import Arrival, Mark, Shelf, Waiting
from watership_orchestrator.judgement import Judgement, judge
from watership_orchestrator.outbox import messages_of

from tests.support.judging import NOW_MS, PLAN, SAGA_ID, TOPOLOGY, Row, admin, plans, reply, start, step

WRITTEN = Waiting(Shelf.START, 1)
DEAD = Waiting(Shelf.DEAD, 2)
GRAVE = Tombstone(SAGA_ID, "OrderSaga", codec.input_hash("OrderSaga", {"n": 1}), "COMPLETED")


def written(context: dict[str, Any] | None = None, **more: Any) -> Arrival:
    return Arrival(SAGA_ID, start(context), row=WRITTEN, **more)


def test_what_no_message_brings_again_is_owed_from_the_commit_on() -> None:
    by_row = Row().batch(written())
    assert by_row.owed_reason() is not None
    assert by_row.told[id_of(by_row)].startswith("applied: entry 1 ")
    assert Row().batch(start()).owed_reason() is None
    row = Row()
    row.batch(start())
    dead = row.batch(Arrival(SAGA_ID, reply("A"), row=DEAD))
    assert dead.owed_reason() is not None


def test_what_follows_from_a_late_reply_is_owed_for_its_copy_may_be_acknowledged() -> None:
    """One orchestrator holds a delivery of a dead channel; another has judged its copy, when it made no difference."""
    row = Row()
    row.batch(start())
    row.batch(reply("A"))
    assert row.batch(reply("A", run="other")).owed_reason() is None, "it ran twice: no difference"
    row.batch(reply("B", outcome="failed"))
    undone = row.batch(reply("A", action=Action.COMPENSATE))
    assert undone.state is not None
    assert undone.state.status is Status.COMPENSATED
    assert undone.owed_reason() is None
    late = row.batch(reply("A", run="other"))
    assert [command.step for command in late.commands_to_send()] == ["A"]
    assert late.owed_reason() is not None
    assert late.settles, "once it is sent"


def test_what_follows_from_an_operator_is_owed() -> None:
    row = Row(Plan("OrderSaga", (step("A", compensation_retry=RetryPlan(attempts_max=1)), step("B"))))
    row.batch(start())
    row.batch(reply("A"))
    row.batch(reply("B", outcome="failed"))
    row.batch(reply("A", action=Action.COMPENSATE, outcome="failed"))
    asked = row.batch(admin(AdminVerb.RETRY))
    assert [command.step for command in asked.commands_to_send()] == ["A"]
    assert asked.owed_reason() is not None
    assert asked.settles


def test_what_was_owed_before_a_row_came_is_not_settled_by_it() -> None:
    """Another command of the saga may still be unsent: only a look sends them all."""
    row = Row()
    row.batch(start())
    assert row.batch(Arrival(SAGA_ID, reply("A"), row=DEAD)).settles
    row.owes("unconfirmed: x")
    it = row.batch(Arrival(SAGA_ID, reply("B"), row=DEAD))
    assert it.moved
    assert not it.settles
    row.owes("unconfirmed: x")
    assert row.batch(Arrival(SAGA_ID, None)).settles


def id_of(it: Judgement) -> int:
    (found,) = it.told
    return found


@pytest.mark.parametrize(
    ("arrival", "trouble", "reason"),
    [
        (written(), "n: is not a string", "does not fit its schema: n: is not a string"),
        (written({"n": float("nan")}), None, "which JSON does not have"),
        (written(unreadable="its plan is nonsense"), None, "its plan is nonsense"),
    ],
)
def test_a_start_whose_caller_has_committed_is_parked_and_never_refused(
    arrival: Arrival, trouble: str | None, reason: str
) -> None:
    it = judge(SAGA_ID, None, [arrival], plans(PLAN, trouble=trouble), NOW_MS)
    assert it.state is not None
    assert it.state.status is Status.PENDING
    assert reason in (it.state.parked_reason or "")
    assert (it.rejections, it.commands_to_send()) == ([], [])
    assert fold(str(SAGA_ID), [entry.changes for entry in it.entries]) == it.state


def test_a_context_that_was_lost_never_runs_though_somebody_retries() -> None:
    row = Row()
    row.batch(written({"n": float("nan")}))
    it = row.batch(admin(AdminVerb.RETRY))
    assert it.state is not None
    assert it.state.parked_reason is None
    row.now_ms += 60_000
    looked = row.batch(Arrival(SAGA_ID, None))
    assert looked.state is not None
    assert (looked.state.status, looked.commands_to_send()) == (Status.PENDING, [])


def test_a_start_that_conflicts_is_a_line_in_the_ledger_where_nobody_can_be_told() -> None:
    row = Row()
    row.batch(start())
    it = row.batch(written({"n": 2}))
    assert not it.moved
    assert [reason for reason, _ in it.ledger] == [
        f"the id {SAGA_ID} is taken: a saga was started under it with other input"
    ]
    assert it.told[id_of(it)].startswith("in the ledger: ")
    same = row.batch(written())
    assert (same.ledger, same.told[id_of(same)]) == ([], "it changes nothing: the saga has it already")


def test_what_an_operator_had_judged_again_leaves_a_mark_where_it_moved_something() -> None:
    mark = Mark("ada", "requeue", "the row is mended", "dead:2")
    row = Row()
    row.batch(start())
    it = row.batch(Arrival(SAGA_ID, reply("A"), row=DEAD, mark=mark))
    assert [(entry.cause, [change.kind for change in entry.changes]) for entry in it.entries] == [
        ("dead:2", ["replied", "dispatched"]),
        ("dead:2", ["operated"]),
    ]
    again = row.batch(Arrival(SAGA_ID, reply("A", "failed", run="x"), row=DEAD, mark=mark))
    assert not again.moved
    fresh = Row().batch(Arrival(SAGA_ID, start(), row=DEAD, mark=mark))
    assert [entry.cause for entry in fresh.entries] == ["dead:2", "dead:2"]


def test_a_pruned_saga_is_known_by_its_tombstone() -> None:
    arrivals = [
        Arrival(SAGA_ID, start(), reply_to="me"),
        Arrival(SAGA_ID, start({"n": 2})),
        Arrival(SAGA_ID, reply("A")),
        Arrival(SAGA_ID, admin(AdminVerb.RETRY)),
    ]
    it = judge(SAGA_ID, None, arrivals, plans(PLAN), NOW_MS, tombstone=GRAVE)
    assert (it.state, it.is_new, it.entries) == (None, False, [])
    assert [rejection.code for rejection in it.rejections] == ["saga_conflict"]
    assert [reason for reason, _ in it.ledger] == ["its saga was pruned"]
    assert "was pruned" in it.refusals[id(arrivals[3])]
    (known,) = messages_of(it, None, TOPOLOGY)
    assert known.message.routing_key == "me"
    assert isinstance(read(known.message.type, known.message.body), SagaKnown)
