"""What the machine decides, scenario by scenario. Every story's log is folded again: law 8."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.apply import STATUS_MOVES, apply, fold
from watership.machine.directions import GRACE_MS
from watership.machine.effects import NotifyEnd, NotifyParked, NotifyStep
from watership.machine.nodes import FallbackPlan, RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import Action, Outcome, Phase, SagaState, Status
from watership.testing import Scenario
from watership.testing import given as given_saga

COMPENSATION = RetryPlan(attempts_max=3, delay_ms=1_000)
TWICE = RetryPlan(attempts_max=2)


def step(name: str, **settings: Any) -> StepPlan:
    return StepPlan(name, queue=name, **settings)


def plan_of(*nodes: StepPlan | FallbackPlan) -> Plan:
    return Plan("OrderSaga", nodes)


ABC = plan_of(step("A"), step("B"), step("C"))
DEADLINE_S = (60_000 + 300_000 + GRACE_MS) / 1000


@pytest.fixture
def stories() -> Iterator[list[Scenario]]:
    told: list[Scenario] = []
    yield told
    for story in told:
        assert fold(story.state.saga_id, story.log) == story.state, "law 8"
        assert story.state.status.terminal or story.state.parked_reason or story.state.due_at_ms is not None, "law 2"


@pytest.fixture
def given(stories: list[Scenario]) -> Any:
    def begin(*nodes: StepPlan | FallbackPlan) -> Scenario:
        story = given_saga(plan_of(*nodes))
        stories.append(story)
        return story

    return begin


def test_forward(given: Any) -> None:
    story = given(*ABC.nodes).started({"n": 1}).expect_act("A").when_done("A", patch={"a": 1}, response={"r": 1})
    assert story.last.effects[0] == NotifyStep(2, "A", {"r": 1}, {"a": 1})
    story.expect_act("B").when_done("B").expect_act("C").when_done("C").expect_status("COMPLETED")
    assert story.last.effects[-1] == NotifyEnd(4, Status.COMPLETED)
    assert story.state.due_at_ms is None
    story.expect_context(n=1, a=1)


def test_a_failure_is_undone_in_reverse_order_and_not_itself(given: Any) -> None:
    story = given(*ABC.nodes).started().when_done("A").when_done("B").when_failed("C")
    story.expect_compensate("B").expect_no_command().when_done("B").expect_compensate("A").when_done("A")
    story.expect_status("COMPENSATED")
    assert story.state.failure.step == "C"
    assert story.last.effects[-1] == NotifyEnd(6, Status.COMPENSATED)
    kinds = [change.kind for entry in story.log for change in entry]
    assert kinds.index("compensation_began") < kinds.index("dispatched", kinds.index("compensation_began"))


def test_a_step_with_nothing_to_undo_gets_no_command(given: Any) -> None:
    story = given(step("A"), step("B", compensable=False), step("C")).started()
    story.when_done("A").when_done("B").when_failed("C").expect_compensate("A").expect_no_command()
    given(step("A", compensable=False), step("B")).started().when_done("A").when_failed("B").expect_status(
        "COMPENSATED"
    )


def test_retries_wait_longer_each_time_up_to_a_limit(given: Any) -> None:
    retry = RetryPlan(attempts_max=5, delay_ms=1_000, backoff=3, delay_max_ms=5_000)
    story = given(step("A", retry=retry)).started()
    for attempt, wait_s in ((2, 1), (3, 3), (4, 5), (5, 5)):
        story.when_failed("A").expect_no_command().after(wait_s - 0.001).expect_no_command()
        story.after(0.001).expect_act("A", attempt=attempt)
    story.when_failed("A").expect_status("COMPENSATED")


def test_retries_without_delay_follow_at_once(given: Any) -> None:
    given(step("A", retry=TWICE)).started().when_failed("A").expect_act("A", attempt=2).when_done("A").expect_status(
        "COMPLETED"
    )


def test_jitter_spreads_sagas_and_is_no_chance() -> None:
    retry = RetryPlan(attempts_max=2, delay_ms=1_000, jitter=0.5)
    waits = {retry.delay_before_ms(2, salt=str(n)) for n in range(50)}
    assert len(waits) > 25
    assert all(1_000 <= wait <= 1_500 for wait in waits)
    assert retry.delay_before_ms(2, salt="x") == retry.delay_before_ms(2, salt="x")
    assert retry.delay_before_ms(1, salt="x") == 0
    steep = RetryPlan(attempts_max=10_000, delay_ms=1, backoff=1e9, delay_max_ms=7)
    assert steep.delay_before_ms(9_999, salt="x") == 7


def test_a_compensation_out_of_retries_parks_with_the_reason(given: Any) -> None:
    story = given(step("A", compensation_retry=COMPENSATION), step("B")).started().when_done("A").when_failed("B")
    story.when_failed("A", ValueError("no door")).after(1).expect_compensate("A", attempt=2)
    story.when_failed("A").after(2).expect_compensate("A", attempt=3).when_failed("A", ValueError("no door"))
    story.expect_parked("step A", "3 attempts", "ValueError: no door", f"watership retry {story.state.saga_id}")
    assert isinstance(story.last.effects[-1], NotifyParked)
    assert story.state.due_at_ms is None
    story.after(10**6).expect_no_command().expect_parked("step A")
    # A person lets it go on: a whole new budget.
    story.when_retried().expect_compensate("A", attempt=4).when_failed("A").after(1).expect_compensate("A", attempt=5)
    story.when_failed("A").after(2).when_failed("A").expect_parked("step A").when_retried().when_done("A")
    story.expect_status("COMPENSATED")


def test_retry_hurries_what_waits_and_refuses_the_rest(given: Any) -> None:
    story = given(step("A", retry=RetryPlan(attempts_max=2, delay_ms=10_000))).started()
    story.when_retried().expect_refused("nothing to retry", "it awaits the act of A").expect_no_command()
    story.when_failed("A").expect_no_command().when_retried().expect_act("A", attempt=2).when_done("A")
    story.when_retried().expect_refused("it is COMPLETED")
    assert [change for entry in story.log for change in entry if isinstance(change, c.Operated)] == [
        c.Operated("operator", "retry", "mended")
    ]


def test_an_operator_who_saw_an_older_entry_is_refused(given: Any) -> None:
    story = given(*ABC.nodes).started()
    seen = story.state.seq
    story.when_done("A")
    story.when_cancelled(seq=seen).expect_refused("has moved", f"entry {seen}", f"at {seen + 1}").expect_no_command()
    story.when_retried(seq=seen).expect_refused("has moved")
    story.when_cancelled(seq=seen + 1).expect_no_command()
    story.when_cancelled().expect_refused("COMPENSATING", "only a saga that goes forward")


def test_a_cancelled_saga_waits_for_the_act_under_way(given: Any) -> None:
    story = given(*ABC.nodes).started().when_done("A").when_cancelled("wrong address").expect_no_command()
    story.when_done("B").expect_compensate("B").when_done("B").expect_compensate("A").when_done("A")
    story.expect_status("COMPENSATED")
    assert story.state.failure.code == "saga_cancelled"
    story = given(*ABC.nodes).started().when_cancelled().when_failed("A").expect_status("COMPENSATED")


def test_an_act_that_is_overdue_at_the_turn_is_unknown(given: Any) -> None:
    story = given(*ABC.nodes).started().when_done("A").when_cancelled()
    story.after(DEADLINE_S - 1).expect_no_command().after(1).expect_compensate("B")
    assert story.state.step("B").act.outcome is Outcome.UNKNOWN
    story.when_done("B").expect_compensate("A")


def test_a_lost_command_or_reply_is_sent_again(given: Any) -> None:
    story = given(*ABC.nodes).started().after(DEADLINE_S).expect_act("A", attempt=1)
    assert story.state.step("A").act.doubtful
    story.when_done("A").expect_act("B")


@pytest.mark.parametrize("how", ["redelivered", "sent again"])
def test_a_failure_of_what_may_have_run_before_is_unknown(given: Any, how: str) -> None:
    story = given(*ABC.nodes).started()
    if how == "sent again":
        story.after(DEADLINE_S)
    story.when_failed("A", redelivered=how == "redelivered").expect_compensate("A")
    story.when_done("A").expect_status("COMPENSATED")


def test_a_command_that_nobody_ever_got_leaves_no_doubt(given: Any) -> None:
    story = given(*ABC.nodes).started().when(e.DispatchRepeated("A", Action.ACT, 1, unsent=True)).expect_act("A")
    story.when_failed("A").expect_status("COMPENSATED")


def test_an_unknown_act_is_retried_then_undone_with_itself(given: Any) -> None:
    story = given(step("A"), step("B", retry=TWICE)).started().when_done("A").when_unknown("B", patch={"b": 1})
    story.expect_act("B", attempt=2).when_failed("B").expect_compensate("B").when_done("B").expect_compensate("A")
    story.expect_context(b=1).when_done("A").expect_status("COMPENSATED")


def test_an_unknown_compensation_is_tried_again(given: Any) -> None:
    story = given(step("A", compensation_retry=TWICE), step("B")).started().when_done("A").when_failed("B")
    story.when_unknown("A").expect_compensate("A", attempt=2).when_unknown("A").expect_parked("it ended unknown")


# --- fallbacks

FALLBACK = FallbackPlan(step("P"), step("F"))


def test_a_fallback_takes_over_from_a_failed_primary(given: Any) -> None:
    story = given(FALLBACK, step("Z")).started().expect_act("P").when_failed("P").expect_act("F").expect_no_command()
    story.when_done("F").expect_act("Z").when_failed("Z").expect_compensate("F").when_done("F")
    story.expect_status("COMPENSATED")


def test_an_unknown_primary_is_compensated_before_its_fallback_acts(given: Any) -> None:
    story = given(FALLBACK).started().when_unknown("P").expect_compensate("P").expect_no_command()
    story.when_done("P").expect_act("F").when_done("F").expect_status("COMPLETED")
    bare = given(FallbackPlan(step("P", compensable=False), step("F"))).started()
    bare.when_unknown("P").expect_act("F").expect_no_command()


def test_a_primary_that_is_done_needs_no_fallback(given: Any) -> None:
    given(FALLBACK, step("Z")).started().when_done("P").expect_act("Z")


def test_a_fallback_answers_only_its_failures(given: Any) -> None:
    node = FallbackPlan(step("P"), step("F"), failure_codes=("ConnectionError",))
    given(node).started().when_failed("P", ConnectionResetError()).expect_act("F")
    given(node).started().when_failed("P", ValueError()).expect_no_command().expect_status("COMPENSATED")
    given(node).started().when_unknown("P").expect_compensate("P").when_done("P").expect_status("COMPENSATED")


def test_a_fallback_that_fails_too_turns_the_saga_around(given: Any) -> None:
    story = given(step("A"), FALLBACK).started().when_done("A").when_unknown("P").when_done("P").when_failed("F")
    story.expect_compensate("A").expect_no_command()


def test_a_cancelled_saga_undoes_a_primary_whose_compensation_was_parked(given: Any) -> None:
    stuck = FallbackPlan(step("P", compensation_retry=RetryPlan()), step("F"))
    story = given(step("A"), stuck).started().when_done("A").when_unknown("P").when_failed("P").expect_parked("step P")
    story.when_cancelled().expect_compensate("P", attempt=2).when_done("P").expect_compensate("A").when_done("A")
    story.expect_status("COMPENSATED")


# --- nobody serves it

NOT_SERVED = {"refusals_max": 3}


def test_a_step_that_nobody_serves_is_postponed_then_parked(given: Any) -> None:
    story = given(*ABC.nodes).started()
    for _ in range(2):
        story.when_not_served("A", **NOT_SERVED).expect_no_command().after(5).expect_act("A", attempt=1)
    story.when_not_served("A", **NOT_SERVED).expect_parked("no worker serves step A", "refused it 3 times")
    story.when_retried().expect_act("A", attempt=1).when_not_served("A", **NOT_SERVED)
    assert story.state.parked_reason is None, "a person's retry is a fresh budget"
    story.after(5).when_failed("A").expect_status("COMPENSATED")


def test_what_nobody_served_ran_nowhere(given: Any) -> None:
    story = given(*ABC.nodes).started().when_done("A").when_cancelled().when_not_served("B")
    story.expect_compensate("A").when_done("A").expect_status("COMPENSATED")
    story = given(*ABC.nodes).started().when_not_served("A", refusals_max=1).expect_parked("step A")
    story.when_cancelled().expect_no_command().expect_status("COMPENSATED")


@pytest.mark.parametrize("how", ["sent again", "redelivered"])
def test_doubt_outlives_a_refusal(given: Any, how: str) -> None:
    """One worker may have run it and died; that the next one does not have the step says nothing about the first."""
    story = given(*ABC.nodes).started()
    if how == "sent again":
        story.after(DEADLINE_S)
    story.when_not_served("A", redelivered=how == "redelivered").after(5).expect_act("A", attempt=1)
    story.when_failed("A").expect_compensate("A")
    dropped = given(*ABC.nodes).started()
    if how == "sent again":
        dropped.after(DEADLINE_S)
    dropped.when_not_served("A", redelivered=how == "redelivered").when_cancelled().expect_compensate("A")


# --- plans that are not known yet


def test_a_pending_saga_runs_when_its_plan_comes(given: Any) -> None:
    story = given(*ABC.nodes).started(plan_known=False).expect_status("PENDING").expect_no_command()
    story.when(e.PlanFound(ABC.hash)).expect_act("A").expect_status("RUNNING")
    assert story.state.plan_hash == ABC.hash
    story.when(e.PlanFound("another")).expect_no_command()
    assert story.state.plan_hash == ABC.hash


def test_a_plan_that_never_comes_parks_the_saga(given: Any) -> None:
    story = given(*ABC.nodes).started(plan_known=False)
    for look in range(1, 4):
        assert story.state.parked_reason is None
        story.when(e.PlanMissing(story.now_ms + look * 1_000, looks_max=3))
    story.expect_parked("no worker or client has registered the saga 'OrderSaga'")
    assert story.state.due_at_ms is None
    story.when_retried()
    assert story.state.due_at_ms == story.now_ms
    story.when(e.PlanMissing(story.now_ms, looks_max=3))
    assert story.state.parked_reason is None
    story.when(e.PlanFound(ABC.hash)).expect_act("A")


def test_a_pending_saga_can_be_refused_or_undone(given: Any) -> None:
    story = given(*ABC.nodes).started(plan_known=False).when(e.ContextRefused("n: not a number"))
    story.expect_parked("n: not a number").when_cancelled().expect_no_command().expect_status("COMPENSATED")
    parked = given(*ABC.nodes).started(plan_known=False).when(e.ContextRefused("bad")).when(e.PlanFound(ABC.hash))
    parked.expect_status("RUNNING").expect_act("A")
    given(*ABC.nodes).started(plan_known=False).when_cancelled().expect_status("COMPENSATED")


# --- the turn, and commands that were never sent


def test_an_act_that_was_never_sent_is_withdrawn_at_the_turn(given: Any) -> None:
    withdrawn = e.DispatchWithdrawn("B", Action.ACT, 1)
    story = given(*ABC.nodes).started().when_done("A").when_cancelled().when(withdrawn)
    story.expect_compensate("A").when_done("A").expect_status("COMPENSATED")
    assert story.state.step("B").act.phase is Phase.IDLE


def test_a_withdrawn_retry_leaves_its_earlier_attempts(given: Any) -> None:
    story = given(step("A", retry=TWICE)).started().when_unknown("A").when_cancelled()
    story.when(e.DispatchWithdrawn("A", Action.ACT, 2)).expect_compensate("A")


def test_only_the_turn_withdraws(given: Any) -> None:
    story = given(step("A", retry=TWICE)).started().when_unknown("A")
    story.when(e.DispatchWithdrawn("A", Action.ACT, 2)).expect_status("RUNNING")
    assert story.state.awaits("A", Action.ACT, 2)


def test_what_may_have_been_delivered_earlier_is_not_withdrawn(given: Any) -> None:
    """The last delivery was returned by the broker; an earlier one of the same attempt may have run."""
    for event in (e.DispatchWithdrawn("A", Action.ACT, 1), e.DispatchRepeated("A", Action.ACT, 1, unsent=True)):
        story = given(*ABC.nodes).started().after(DEADLINE_S).when_cancelled().when(event)
        story.expect_compensate("A")


def test_what_was_put_off_is_run_as_the_same_attempt(given: Any) -> None:
    put_off = e.DispatchPutOff("A", Action.ACT, 1)
    story = given(step("A", rerun=False)).started().when(put_off).expect_no_command()
    story.after(0).expect_act("A", attempt=1).when_failed("A").expect_status("COMPENSATED")
    assert not story.state.step("A").act.may_have_run, "it ran once"
    back = given(*ABC.nodes).started().when_done("A").when_failed("B").when(e.DispatchPutOff("A", Action.COMPENSATE, 1))
    back.expect_no_command().after(0).expect_compensate("A", attempt=1)


def test_what_was_put_off_is_not_run_after_the_turn(given: Any) -> None:
    put_off = e.DispatchPutOff("B", Action.ACT, 1)
    for story in (
        given(*ABC.nodes).started().when_done("A").when_cancelled().when(put_off),
        given(*ABC.nodes).started().when_done("A").when(put_off).when_cancelled(),
    ):
        story.expect_compensate("A").when_done("A").expect_status("COMPENSATED")


def test_what_may_have_begun_earlier_is_not_put_off(given: Any) -> None:
    story = given(*ABC.nodes).started().after(DEADLINE_S).when(e.DispatchPutOff("A", Action.ACT, 1))
    assert story.state.awaits("A", Action.ACT, 1)


def test_no_act_is_sent_again_after_the_turn(given: Any) -> None:
    story = given(*ABC.nodes).started().when_cancelled()
    story.when(e.DispatchRepeated("A", Action.ACT, 1, unsent=False)).expect_no_command()
    story.when(e.DispatchRepeated("A", Action.ACT, 1, unsent=True)).expect_status("COMPENSATED")
    back = given(*ABC.nodes).started().when_done("A").when_failed("B")
    back.when(e.DispatchRepeated("A", Action.COMPENSATE, 1, unsent=False)).expect_compensate("A", attempt=1)


# --- the machine as a function


def test_react_never_changes_what_it_is_given() -> None:
    story = given_saga(plan_of(step("A"), FALLBACK, step("Z"))).started({"n": [1]})
    for event in (
        e.StepReplied("A", Action.ACT, 1, "r1", Outcome.DONE, {"m": {"x": 1}}),
        e.StepReplied("P", Action.ACT, 1, "r2", Outcome.UNKNOWN),
        e.StepReplied("P", Action.COMPENSATE, 1, "r3", Outcome.DONE),
        e.StepReplied("P", Action.ACT, 1, "r4", Outcome.DONE, {"late": True}),
        e.StepReplied("F", Action.ACT, 1, "r5", Outcome.FAILED),
        e.TimePassed(),
    ):
        before = copy.deepcopy(story.state)
        react(story.plan, story.state, event, story.now_ms)
        assert story.state == before
        assert story.when(event).state.seq in (before.seq, before.seq + 1)


def test_a_broken_log_is_refused() -> None:
    state = SagaState("s")
    apply(state, c.Created("OrderSaga", {}, "hash"))
    apply(state, c.Completed())
    with pytest.raises(ValueError, match="completed cannot follow COMPLETED; its log is broken"):
        apply(state, c.Completed())


def test_the_table_of_status_moves_is_the_one_of_the_design() -> None:
    moves = {(before.value, after.value) for befores, after in STATUS_MOVES.values() for before in befores}
    assert moves == {
        ("PENDING", "RUNNING"),
        ("PENDING", "COMPENSATING"),
        ("RUNNING", "COMPENSATING"),
        ("RUNNING", "COMPLETED"),
        ("COMPENSATING", "COMPENSATED"),
        ("COMPENSATED", "COMPENSATING"),
    }
