"""The pivot: up to it a saga can go back, behind it only forward. An unknown pivot is never assumed, nor undone (law 5)."""

from __future__ import annotations

import pytest

from watership.machine.nodes import ParallelPlan, RetryPlan, SleepPlan, StepPlan, WaitPlan
from watership.machine.state import Outcome, Phase
from watership.testing import Scenario

from tests.support.stories import check, step, story_of

TWICE = RetryPlan(attempts_max=2)
FOREVER = RetryPlan(attempts_max=None, delay_ms=1_000)
PIVOT = step("Capture", compensable=False)


def after(name: str, **settings: object) -> StepPlan:
    return step(name, compensable=False, **{"retry": FOREVER, **settings})


def pivoting(**settings: object) -> Scenario:
    """A, the pivot Capture, and Ship behind it; the pivot is sent."""
    pivot = step("Capture", **{"compensable": False, **settings})
    story = story_of(step("A"), pivot, after("Ship"), pivot="Capture", deadline_ms=60_000)
    return story.when_done("A").expect_act("Capture")


def test_a_pivot_takes_deadline_and_cancel_away_with_its_dispatch() -> None:
    story = story_of(step("A"), PIVOT, pivot="Capture", deadline_ms=60_000)
    assert not story.state.pivoted
    story.when_done("A").expect_act("Capture")
    assert story.state.pivoted
    story.after(61).expect_no_command().expect_status("RUNNING")
    story.when_cancelled().expect_refused("has sent its pivot Capture", "only goes forward").expect_no_command()
    check(story.when_done("Capture").expect_status("COMPLETED"))


def test_before_its_pivot_a_saga_can_be_cancelled() -> None:
    story = story_of(step("A"), PIVOT, pivot="Capture").when_cancelled().when_done("A").expect_compensate("A")
    check(story)


def test_a_pivot_that_failed_is_turned_back_from() -> None:
    check(pivoting().when_failed("Capture").expect_compensate("A").when_done("A").expect_status("COMPENSATED"))


def test_an_unknown_pivot_is_tried_again_then_parked_and_nothing_is_undone() -> None:
    story = pivoting(retry=TWICE).when_unknown("Capture").expect_act("Capture", attempt=2).when_unknown("Capture")
    story.expect_parked("the outcome of the pivot Capture is unknown after 2 attempts", "watership retry")
    story.expect_no_command()
    assert story.state.step("Capture").act.phase is Phase.STOPPED
    story.when_cancelled().expect_refused("has sent its pivot")
    check(story)
    story.when_retried().expect_act("Capture", attempt=3).when_done("Capture").expect_act("Ship").when_done("Ship")
    check(story.expect_status("COMPLETED"))


@pytest.mark.parametrize("compensable", [True, False])
def test_a_pivot_whose_last_attempt_failed_is_unknown_if_an_earlier_one_was(compensable: bool) -> None:
    story = pivoting(retry=TWICE, compensable=compensable).when_unknown("Capture").when_failed("Capture")
    story.expect_parked("the outcome of the pivot Capture is unknown").expect_no_command()
    check(story)
    doubtful = pivoting(retry=TWICE).when_failed("Capture", redelivered=True).when_failed("Capture")
    check(doubtful.expect_parked("the outcome of the pivot Capture is unknown"))


def test_a_pivot_whose_earlier_attempt_was_done_goes_forward_though_the_last_one_failed() -> None:
    story = pivoting(retry=TWICE).when_unknown("Capture").when_done("Capture", attempt=1).expect_no_command()
    story.when_failed("Capture").expect_act("Ship").when_done("Ship").expect_status("COMPLETED")
    check(story)


def test_a_late_reply_settles_a_parked_pivot_and_a_person_lets_it_go_on() -> None:
    story = pivoting().when_unknown("Capture").expect_parked("pivot Capture")
    story.when_done("Capture", {"captured": 1}, action="act", attempt=1).expect_ledger("it answers what was in doubt")
    story.expect_parked("pivot Capture").expect_context(captured=1).when_retried().expect_act(
        "Ship"
    ).expect_no_command()
    check(story.when_done("Ship").expect_status("COMPLETED"))


def test_an_unknown_pivot_is_asked_about() -> None:
    story = pivoting(verify_retry=TWICE).when_unknown("Capture").expect_verify("Capture")
    story.when_verified("Capture", "done").expect_act("Ship")
    check(story)
    check(
        pivoting(verify_retry=TWICE).when_unknown("Capture").when_verified("Capture", "not_done").expect_compensate("A")
    )
    story = pivoting(verify_retry=TWICE).when_unknown("Capture").when_verified("Capture", "still_unknown")
    story.expect_verify("Capture", attempt=2).when_verified("Capture", "still_unknown").expect_parked("pivot Capture")
    check(story)


def test_what_follows_the_pivot_is_tried_without_end() -> None:
    story = pivoting().when_done("Capture")
    for attempt in range(2, 40):
        story.when_failed("Ship").after(300).expect_act("Ship", attempt=attempt)
    check(story.when_done("Ship").expect_status("COMPLETED"))


def test_an_error_that_cannot_be_mended_parks_behind_the_pivot() -> None:
    final = RetryPlan(attempts_max=None, delay_ms=1_000, final_codes=("step_error",))
    story = story_of(PIVOT, after("Ship", retry=final), pivot="Capture").when_done("Capture")
    story.when_failed("Ship").expect_parked("past its pivot Capture, the act Ship is failed after 1 attempts")
    check(story)
    check(story.when_retried().expect_act("Ship", attempt=2).when_done("Ship").expect_status("COMPLETED"))


def test_a_group_behind_the_pivot_parks_with_what_failed_and_goes_on_with_both() -> None:
    final = RetryPlan(attempts_max=None, delay_ms=1_000, final_codes=("step_error",))
    members = (after("X", retry=final), after("Y", retry=final))
    group = ParallelPlan(members)
    story = story_of(PIVOT, group, pivot="Capture").when_done("Capture").when_failed("X").expect_parked("the act X")
    story.when_failed("Y").expect_parked("the act Y").when_retried().expect_act("X").expect_act("Y")
    story.when_done("X", {"n": 1}).when_done("Y", {"n": 2}).expect_parked("X and Y act in parallel and wrote n")
    check(story.when_retried().expect_status("COMPLETED"))


def test_pauses_behind_the_pivot() -> None:
    wait = WaitPlan("pickup", None, 1_000, "continue")
    story = story_of(PIVOT, SleepPlan("nap", 1_000), wait, after("Ship"), pivot="Capture")
    check(story.when_done("Capture").after(2).expect_act("Ship").when_done("Ship").expect_status("COMPLETED"))


def test_a_pivot_that_acted_late_when_the_saga_had_turned_around_is_put_right_by_a_person() -> None:
    story = pivoting().when_failed("Capture").when_done("A").expect_status("COMPENSATED")
    story.when_done("Capture", action="act", attempt=1).expect_parked("the pivot Capture acted after all", "by hand")
    check(story)
    check(story.when_retried().expect_no_command().expect_status("COMPENSATED"))


def test_a_compensable_pivot_that_acted_late_is_undone_again() -> None:
    story = pivoting(compensable=True).when_failed("Capture").when_done("A").expect_status("COMPENSATED")
    story.when_done("Capture", action="act", attempt=1).expect_compensate("Capture").when_done("Capture")
    check(story.expect_status("COMPENSATED"))


def test_a_pivot_that_nobody_serves_parks_and_goes_on() -> None:
    story = pivoting().when_not_served("Capture", refusals_max=1).expect_parked("step Capture").when_retried()
    check(story.expect_act("Capture", attempt=1).when_done("Capture").expect_act("Ship"))


def test_a_pivot_that_must_not_run_twice_parks_when_no_reply_comes() -> None:
    story = pivoting(rerun=False).after(365).expect_no_command().expect_parked("pivot Capture is unknown", "RunLost")
    assert story.state.step("Capture").act.outcome is Outcome.UNKNOWN
    check(story)
