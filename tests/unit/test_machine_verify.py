"""Three outcomes: an unknown act is asked about first, then tried again, then undone (law 5); rerun=False never runs twice."""

from __future__ import annotations

import pytest

from watership.machine import events as e
from watership.machine.nodes import FallbackPlan, ParallelPlan, RetryPlan, StepPlan
from watership.machine.state import Action, Outcome, Phase

from tests.support.stories import check, step, story_of

ONCE = RetryPlan()
TWICE = RetryPlan(attempts_max=2)
DEADLINE_S = 365.0
B = step("B")


def asked(name: str = "A", **settings: object) -> StepPlan:
    return step(name, **{"verify_retry": ONCE, **settings})


def test_an_act_that_is_found_done_goes_on() -> None:
    story = story_of(asked(), B).when_unknown("A", patch={"half": 1}).expect_verify("A").expect_no_command()
    assert story.state.step("A").act.phase is Phase.IN_DOUBT
    check(story)
    story.when_verified("A", "done", patch={"a": 1}).expect_act("B").expect_context(a=1, half=1)
    check(story.when_done("B").expect_status("COMPLETED"))


def test_an_act_that_is_found_not_done_has_failed() -> None:
    story = story_of(B, asked()).when_done("B").when_unknown("A").when_verified("A", "not_done")
    story.expect_compensate("B").expect_no_command()
    assert story.state.step("A").act.outcome is Outcome.FAILED
    check(story)
    again = story_of(asked(retry=TWICE)).when_unknown("A").when_verified("A", "not_done")
    check(again.expect_act("A", attempt=2).when_done("A").expect_status("COMPLETED"))


def test_an_act_that_stays_unknown_is_tried_again_then_undone() -> None:
    story = story_of(asked(retry=TWICE, verify_retry=RetryPlan(attempts_max=2, delay_ms=1_000)))
    story.when_unknown("A").when_verified("A", "still_unknown").expect_no_command().after(1).expect_verify(
        "A", attempt=2
    )
    story.when_verified("A", "still_unknown").expect_act("A", attempt=2)
    story.when_unknown("A").expect_verify("A", attempt=3).when_verified("A", "not_done").expect_compensate("A")
    assert story.state.step("A").act.outcome is Outcome.UNKNOWN, "of its first attempt nothing is known"
    check(story.when_done("A", action="compensate").expect_status("COMPENSATED"))


def test_not_done_is_no_proof_while_another_run_may_be_under_way() -> None:
    story = story_of(asked()).after(DEADLINE_S).expect_act("A", attempt=1)
    story.when_unknown("A").when_verified("A", "not_done").expect_compensate("A")
    check(story)
    story = story_of(asked()).when_failed("A", redelivered=True).expect_verify("A")
    check(story.when_verified("A", "not_done").expect_compensate("A"))


def test_a_late_run_after_not_done_is_undone() -> None:
    story = story_of(B, asked()).when_done("B").when_unknown("A").when_verified("A", "not_done")
    story.when_done("B").expect_status("COMPENSATED").when_done("A", action="act", attempt=1).expect_compensate("A")
    check(story.when_done("A").expect_status("COMPENSATED"))


def test_a_lost_question_is_asked_again() -> None:
    story = story_of(asked()).when_unknown("A").after(DEADLINE_S).expect_verify("A", attempt=1)
    story.when(e.DispatchRepeated("A", Action.VERIFY, 1, unsent=True)).expect_verify("A", attempt=1)
    story.when(e.RunInterrupted("A", Action.VERIFY, 1)).expect_verify("A", attempt=1)
    check(story.when_verified("A", "done").expect_status("COMPLETED"))


def test_a_question_that_nobody_serves_parks_and_is_asked_again() -> None:
    story = story_of(asked()).when_unknown("A")
    story.when(e.StepNotServed("A", Action.VERIFY, 1, story.now_ms, refusals_max=1)).expect_parked("step A")
    check(story.when_retried().expect_verify("A", attempt=1).when_verified("A", "done").expect_status("COMPLETED"))


def test_a_cancelled_saga_asks_no_more() -> None:
    story = story_of(asked()).when_unknown("A").when_cancelled().expect_compensate("A").expect_no_command()
    story.when_verified("A", "not_done", attempt=1).expect_ledger("verify A attempt 1 was not awaited")
    check(story.when_done("A", action="compensate").expect_status("COMPENSATED"))


def test_a_fallback_waits_for_what_is_asked_about_its_primary() -> None:
    node = FallbackPlan(asked("P"), step("F"))
    check(story_of(node, B).when_unknown("P").expect_verify("P").when_verified("P", "done").expect_act("B"))
    check(story_of(node).when_unknown("P").when_verified("P", "not_done").expect_act("F").expect_no_command())
    story = story_of(node).when_unknown("P").when_verified("P", "still_unknown").expect_compensate("P")
    check(story.when_done("P", action="compensate").expect_act("F"))


def test_a_primary_that_was_done_late_needs_no_fallback_and_is_told() -> None:
    story = story_of(FallbackPlan(step("P", retry=TWICE), step("F")), B).when_unknown("P").when_done("P", attempt=1)
    story.when_failed("P").expect_act("B").expect_no_command().when_done("B").expect_status("COMPLETED")
    check(story)


def test_errors_that_no_attempt_can_mend_end_the_attempts_after_the_question() -> None:
    retry = RetryPlan(attempts_max=5, final_codes=("ValueError",))
    story = story_of(asked(retry=retry)).when_unknown("A", error=ValueError("no")).expect_verify("A")
    check(story.when_verified("A", "not_done").expect_status("COMPENSATED"))


# --- rerun = False


def test_no_reply_in_its_time_is_unknown() -> None:
    story = story_of(step("A", rerun=False)).after(DEADLINE_S).expect_compensate("A").expect_no_command()
    assert story.state.failure is not None
    assert story.state.failure.code == "run_lost"
    check(story)
    check(story_of(step("A", rerun=False, retry=TWICE)).after(DEADLINE_S).expect_compensate("A"))


def test_its_failure_is_tried_again() -> None:
    check(story_of(step("A", rerun=False, retry=TWICE)).when_failed("A").expect_act("A", attempt=2))


def test_what_may_have_been_sent_is_not_sent_again_but_waited_for() -> None:
    story = story_of(step("A", rerun=False)).when(e.DispatchRepeated("A", Action.ACT, 1, unsent=False))
    story.expect_no_command().expect_status("RUNNING").when_done("A").expect_status("COMPLETED")
    check(story)
    lost = story_of(step("A", rerun=False)).when(e.DispatchRepeated("A", Action.ACT, 1, unsent=False))
    check(lost.after(DEADLINE_S).expect_compensate("A"))
    check(story_of(step("A", rerun=False)).when(e.DispatchRepeated("A", Action.ACT, 1, unsent=True)).expect_act("A"))


def test_a_refusal_of_what_was_delivered_before_is_unknown() -> None:
    story = story_of(step("A", rerun=False)).when_not_served("A", redelivered=True).expect_compensate("A")
    check(story)
    check(story_of(step("A", rerun=False)).when_not_served("A").after(5).expect_act("A", attempt=1))
    back = story_of(step("A", rerun=False)).when_cancelled().when_not_served("A", redelivered=True)
    check(back.expect_compensate("A"))


@pytest.mark.parametrize("verify", [True, False])
def test_an_interrupted_run_is_unknown(verify: bool) -> None:
    story = story_of(step("A", rerun=False, verify_retry=ONCE if verify else None))
    story.when(e.RunInterrupted("A", Action.ACT, 1))
    if verify:
        story.expect_verify("A").when_verified("A", "done").expect_status("COMPLETED")
    else:
        story.expect_compensate("A")
    check(story)


def test_a_group_whose_member_is_lost_waits_for_the_others() -> None:

    story = story_of(ParallelPlan((step("A", rerun=False), B))).when(e.RunInterrupted("A", Action.ACT, 1))
    story.expect_no_command().when_done("B").expect_compensate("A").expect_compensate("B")
    check(story)
