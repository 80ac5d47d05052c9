"""Sleeps, waits with their signals, the saga's deadline, and events from steps."""

from __future__ import annotations

import pytest

from watership import StepError, StepEvent
from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.effects import NotifyStep, PublishEvent
from watership.machine.nodes import FallbackPlan, ParallelPlan, RetryPlan, SleepPlan, WaitPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Failure, Outcome, Phase
from watership.testing import Scenario, given

from tests.support.stories import check, step, story_of

A, B = step("A"), step("B")
DAY_S = 86_400.0
APPROVAL = WaitPlan("approval", "approved_by", 86_400_000)


def approved(data: object) -> dict[str, object]:
    return {"name": "Ann", "ok": data}


# --- sleeps


def test_a_sleep_lasts_its_time() -> None:
    story = story_of(A, SleepPlan("nap", 3_600_000), B).when_done("A").expect_waiting("nap", seconds=3_600)
    story.after(3_599).expect_no_command().after(1).expect_act("B").when_done("B").expect_status("COMPLETED")
    check(story)


def test_a_saga_may_begin_or_end_with_a_sleep() -> None:
    check(story_of(SleepPlan("nap", 1_000), A).expect_no_command().after(1).expect_act("A"))
    check(story_of(A, SleepPlan("nap", 1_000)).when_done("A").after(1).expect_status("COMPLETED"))


def test_a_sleeping_saga_that_is_cancelled_is_undone_at_once() -> None:
    story = story_of(A, SleepPlan("nap", 3_600_000), B).when_done("A").when_cancelled().expect_compensate("A")
    story.when_done("A").expect_status("COMPENSATED").after(7_200).expect_no_command()
    check(story)


# --- waits


def test_a_signal_ends_a_wait_and_is_in_the_context() -> None:
    story = story_of(A, APPROVAL, B).when_done("A").expect_waiting("approval", seconds=DAY_S)
    story.when_signalled("approval", "Ann").expect_act("B").expect_context(approved_by="Ann")
    check(story.when_done("B").expect_status("COMPLETED"))


def test_a_signal_without_a_field_changes_no_context() -> None:
    story = story_of(WaitPlan("go", None, 1_000)).when_signalled("go", {"x": 1}).expect_status("COMPLETED")
    assert story.state.context == {}
    check(story)


def test_an_early_signal_is_kept_until_its_wait() -> None:
    story = story_of(A, APPROVAL, B).when_signalled("approval", "Ann").expect_no_command()
    assert story.state.signals == {"approval": "Ann"}
    check(story)
    story.when_done("A").expect_act("B").expect_context(approved_by="Ann")
    assert story.state.signals == {}
    check(story)


def test_the_first_signal_counts() -> None:
    story = story_of(A, APPROVAL).when_signalled("approval", "Ann").when_signalled("approval", "Bob")
    story.expect_refused("has a signal approval already, and keeps the first").expect_ledger("keeps the first")
    story.when_done("A").expect_context(approved_by="Ann").expect_status("COMPLETED")
    story.when_signalled("approval", "Eve").expect_refused("came too late").expect_context(approved_by="Ann")
    check(story)


def test_a_signal_that_nobody_waits_for_names_those_that_are() -> None:
    story = story_of(APPROVAL, WaitPlan("pickup", None, 1_000)).when_signalled("aproval", "Ann")
    story.expect_refused("waits for no signal 'aproval'", "its signals: approval, pickup").expect_waiting("approval")
    story_of(A).when_signalled("approval", "Ann").expect_refused("its signals: none")


def test_a_signal_that_does_not_fit_is_refused_and_the_saga_waits_on() -> None:
    story = story_of(APPROVAL).when(e.SignalReceived("approval", 7, "approved_by: not a string"))
    story.expect_refused("does not fit", "approved_by: not a string").expect_waiting("approval")


def test_a_signal_may_turn_the_saga_around() -> None:
    wait = WaitPlan("approval", "answer", 86_400_000, reject_if=("ok", False))
    story = story_of(A, wait, B).when_done("A").when_signalled("approval", approved(False)).expect_compensate("A")
    story.expect_context(answer={"name": "Ann", "ok": False}).when_done("A").expect_status("COMPENSATED")
    assert story.state.failure is not None
    assert (story.state.failure.code, story.state.failure.step) == ("wait_rejected", "approval")
    assert "ok = False" in story.state.failure.message
    check(story)
    check(story_of(A, wait, B).when_signalled("approval", approved(False)).when_done("A").expect_compensate("A"))
    check(story_of(wait, B).when_signalled("approval", approved(False)).expect_status("COMPENSATED"))
    for data in (approved(True), approved(0), approved(None), {}, "no", None):
        story_of(wait, B).when_signalled("approval", data).expect_act("B")


@pytest.mark.parametrize("on_timeout", ["compensate", "continue"])
def test_a_wait_without_a_signal(on_timeout: str) -> None:
    wait = WaitPlan("approval", "approved_by", 60_000, on_timeout)  # type: ignore[arg-type]
    story = story_of(A, wait, B).when_done("A").after(59.999).expect_no_command().after(0.001)
    if on_timeout == "continue":
        story.expect_act("B").when_signalled("approval", "Ann").expect_refused("came too late")
    else:
        story.expect_compensate("A")
        assert story.state.failure is not None
        assert (story.state.failure.code, story.state.failure.step) == ("wait_timeout", "approval")
        assert "no signal approval came within 60 s" in story.state.failure.message
        story.when_signalled("approval", "Ann").expect_refused("came too late").when_done("A")
        story.expect_status("COMPENSATED")
    check(story)


def test_a_waiting_saga_that_is_cancelled_is_undone_and_hears_no_signal() -> None:
    story = story_of(A, APPROVAL, B).when_done("A").when_cancelled().expect_compensate("A")
    story.when_signalled("approval", "Ann").expect_refused("came too late").when_done("A").expect_status("COMPENSATED")
    check(story)


def test_a_signal_to_a_saga_that_went_back_before_its_wait_is_refused() -> None:
    story = story_of(A, APPROVAL).when_failed("A").when_signalled("approval", "Ann").expect_refused("came too late")
    check(story)


def test_retry_says_what_a_waiting_saga_waits_for() -> None:
    story_of(APPROVAL).when_retried().expect_refused("nothing to retry", "it awaits what ends approval")


def test_a_wait_goes_on_while_a_late_primary_is_undone() -> None:
    nodes = (FallbackPlan(step("P", compensation_retry=RetryPlan()), step("F")), APPROVAL, B)
    story = story_of(*nodes).when_failed("P").when_done("F").expect_waiting("approval")
    story.when_done("P", action="act", attempt=1).expect_compensate("P").when_signalled("approval", "Ann")
    story.expect_no_command().when_done("P").expect_act("B")
    check(story)
    parked = story_of(*nodes).when_failed("P").when_done("F").when_done("P", action="act", attempt=1)
    parked.when_failed("P").expect_parked("step P").when_signalled("approval", "Ann").expect_no_command()
    check(parked)
    parked.when_retried().expect_compensate("P").when_done("P").expect_act("B")
    check(parked)


def test_a_foreign_reply_in_the_name_of_a_wait_moves_nothing() -> None:
    story = story_of(APPROVAL, B).when(e.StepReplied("approval", Action.ACT, 1, "forged", Outcome.DONE, {"x": 1}))
    story.expect_ledger("was not awaited").expect_waiting("approval")
    assert story.last is not None
    assert not story.last.changes


# --- the saga's deadline


def test_a_deadline_turns_the_saga_around() -> None:
    story = story_of(A, APPROVAL, deadline_ms=5_000).when_done("A").after(5).expect_compensate("A")
    assert story.state.failure is not None
    assert story.state.failure.code == "deadline_passed"
    check(story.when_done("A").expect_status("COMPENSATED"))


def test_a_deadline_waits_for_the_act_under_way() -> None:
    story = story_of(A, B, deadline_ms=5_000).after(6).expect_no_command().expect_status("COMPENSATING")
    story.when_done("A").expect_compensate("A")
    check(story)


def test_a_deadline_drops_retries() -> None:
    story = story_of(step("A", retry=RetryPlan(attempts_max=9, delay_ms=4_000)), deadline_ms=5_000)
    story.when_failed("A").after(4).expect_act("A", attempt=2).when_failed("A").after(1).expect_status("COMPENSATED")
    check(story)


def test_a_deadline_does_not_fire_while_the_saga_is_parked_but_then() -> None:
    story = story_of(A, deadline_ms=5_000).when_not_served("A", refusals_max=1).after(60).expect_parked("step A")
    story.when_retried().after(0.001).expect_status("COMPENSATING")
    check(story)


def test_a_finished_saga_has_no_deadline() -> None:
    assert story_of(A, deadline_ms=5_000).when_done("A").state.due_at_ms is None
    back = story_of(A, B, deadline_ms=5_000).when_done("A").when_failed("B").after(5).expect_no_command()
    check(back)


def test_a_saga_whose_plan_comes_late_has_its_whole_deadline() -> None:
    plan = Plan("OrderSaga", (A, APPROVAL), deadline_ms=5_000)
    story = given(plan).started(plan_known=False).after(60).when(e.PlanFound(plan.hash)).expect_act("A")
    assert story.state.deadline_at_ms == story.now_ms + 5_000
    check(story)


# --- events, and errors that say when


def events_of(story: Scenario) -> list[tuple[str, object]]:
    assert story.last is not None
    return [(effect.name, effect.data) for effect in story.last.effects if isinstance(effect, PublishEvent)]


def test_a_step_emits_events_with_its_result() -> None:
    story = story_of(A, B).when_done("A", events=[StepEvent("reserved", {"sku": "x"}), StepEvent("reserved", 2)])
    story.expect_event("reserved", {"sku": "x"}).expect_event("reserved", 2).expect_act("B")
    assert story.last is not None
    assert [effect.index for effect in story.last.effects if isinstance(effect, PublishEvent)] == [0, 1]
    assert story.state.emits
    story.when_done("B")
    assert not events_of(story)
    check(story)


def test_only_an_act_that_is_done_emits() -> None:
    story = story_of(A)
    failed = e.StepReplied("A", Action.ACT, 1, "r", Outcome.FAILED, events=({"name": "x", "data": 1},))
    story.when(failed)
    assert not events_of(story)
    late = e.StepReplied("A", Action.ACT, 1, "late", Outcome.DONE, events=({"name": "x", "data": 1},))
    story.when(late)
    assert not events_of(story), "what is undone again has not happened"
    check(story)


def test_a_late_reply_that_answers_a_doubt_is_told_whole() -> None:
    story = story_of(step("A", verify_retry=RetryPlan()), B).when_unknown("A").expect_verify("A")
    story.when_done("A", {"a": 1}, {"r": 1}, action="act", events=[StepEvent("acted", 1)])
    story.expect_ledger("it answers what was in doubt").expect_event("acted", 1).expect_act("B").expect_context(a=1)
    assert story.last is not None
    assert NotifyStep(story.state.seq, "A", {"r": 1}, {"a": 1}) in story.last.effects
    story.when_verified("A", "not_done", attempt=1).expect_ledger("was not awaited").expect_no_command()
    check(story)


class Busy(StepError):
    code = "busy_in_machine_tests"


def test_an_error_says_when_to_try_again() -> None:
    story = story_of(step("A", retry=RetryPlan(attempts_max=3, delay_ms=1_000)))
    reply = e.StepReplied("A", Action.ACT, 1, "r", Outcome.FAILED, failure=failure(30_000))
    story.when(reply).after(29.999).expect_no_command().after(0.001).expect_act("A", attempt=2)
    reply = e.StepReplied("A", Action.ACT, 2, "r", Outcome.FAILED, failure=failure(500))
    story.when(reply).after(1.999).expect_no_command().after(0.001).expect_act(
        "A", attempt=3
    )  # the policy waits longer
    check(story)


def test_an_error_does_not_ask_for_more_than_the_longest_delay() -> None:
    story = story_of(step("A", retry=RetryPlan(attempts_max=2)))
    story.when(e.StepReplied("A", Action.ACT, 1, "r", Outcome.FAILED, failure=failure(10**12)))
    assert story.state.due_at_ms == story.now_ms + 604_800_000


def failure(retry_after_ms: int) -> Failure:
    return Failure("busy", "Busy", "busy", ("busy",), "A", retry_after_ms)


def test_an_error_that_no_attempt_can_mend_ends_the_attempts() -> None:
    retry = RetryPlan(attempts_max=5, delay_ms=1_000, final_codes=("busy_in_machine_tests",))
    story = story_of(A, step("B", retry=retry)).when_done("A").when_failed("B").expect_no_command()
    story.after(1).expect_act("B", attempt=2).when_failed("B", Busy).expect_compensate("A")
    check(story)


def test_a_group_and_a_pause_in_one_saga() -> None:
    story = story_of(ParallelPlan((A, B)), SleepPlan("nap", 1_000), APPROVAL, step("C"))
    story.when_signalled("approval", "Ann").when_done("B").when_done("A").expect_waiting("nap").after(1)
    story.expect_act("C").when_failed("C").expect_compensate("A").expect_compensate("B")
    assert [change for entry in story.log for change in entry if isinstance(change, c.Signalled)]
    assert story.state.step("nap").act.phase is Phase.SETTLED
    check(story)
