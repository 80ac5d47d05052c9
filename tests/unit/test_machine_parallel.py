"""Parallel groups: they act together, the saga waits for all, and they are undone together (law 4)."""

from __future__ import annotations

import pytest

from watership.machine import events as e
from watership.machine.nodes import FallbackPlan, ParallelPlan, RetryPlan, StepPlan
from watership.machine.state import Action, Outcome
from watership.testing import Scenario

from tests.support.stories import check, step, story_of

TWICE = RetryPlan(attempts_max=2)
LATER = RetryPlan(attempts_max=2, delay_ms=10_000)
DEADLINE_S = 365.0


def group(*units: StepPlan | FallbackPlan) -> ParallelPlan:
    return ParallelPlan(units)


AB = group(step("A"), step("B"))


def test_the_members_act_together_and_the_saga_waits_for_all() -> None:
    story = story_of(step("first"), AB, step("last")).when_done("first").expect_act("A").expect_act("B")
    story.when_done("B", patch={"b": 1}).expect_no_command().when_done("A", patch={"a": 1}).expect_act("last")
    story.expect_context(a=1, b=1).when_done("last").expect_status("COMPLETED")
    check(story)


def test_a_member_that_fails_is_waited_out_then_the_others_are_undone() -> None:
    story = story_of(step("first"), AB).when_done("first").when_failed("A").expect_no_command()
    story.expect_status("COMPENSATING").when_done("B").expect_compensate("B").expect_no_command()
    story.when_done("B").expect_compensate("first").when_done("first").expect_status("COMPENSATED")
    assert story.state.failure is not None
    assert story.state.failure.step == "A"
    check(story)


def test_members_that_acted_are_compensated_together() -> None:
    story = story_of(AB, step("C")).when_done("A").when_done("B").when_failed("C")
    story.expect_compensate("A").expect_compensate("B").when_done("A").expect_no_command().when_done("B")
    story.expect_status("COMPENSATED")
    check(story)


def test_a_member_that_never_answers_is_undone_after_its_deadline() -> None:
    story = story_of(AB).when_failed("A").after(DEADLINE_S).expect_compensate("B")
    assert story.state.step("B").act.outcome is Outcome.UNKNOWN
    story.when_done("B").expect_status("COMPENSATED")
    check(story)


def test_the_retry_of_a_member_is_dropped_when_another_turns_the_saga_around() -> None:
    story = story_of(group(step("A", retry=LATER), step("B"))).when_failed("A").when_failed("B")
    story.expect_no_command().expect_status("COMPENSATED")
    check(story)


def test_what_is_asked_about_a_member_is_not_waited_for_after_the_turn() -> None:
    story = story_of(group(step("A", verify_retry=TWICE), step("B"))).when_unknown("A").expect_verify("A")
    story.when_failed("B").expect_compensate("A").when_verified("A", "done").expect_ledger("verify A attempt 1")
    story.when_done("A", action="compensate").expect_status("COMPENSATED")
    check(story)


def test_a_fallback_in_a_group_takes_over_beside_the_others() -> None:
    story = story_of(group(FallbackPlan(step("P"), step("F")), step("B"))).expect_act("P").expect_act("B")
    story.when_unknown("P").expect_compensate("P").when_done("B").expect_no_command()
    story.when_done("P").expect_act("F").when_done("F").expect_status("COMPLETED")
    check(story)


def test_a_fallback_in_a_group_is_undone_before_its_primary() -> None:
    nodes = (group(FallbackPlan(step("P"), step("F")), step("B")), step("C"))
    story = story_of(*nodes).when_failed("P").when_done("B").when_done("F").expect_act("C")
    story.when_done("P", action="act", attempt=1).expect_compensate("P").when_failed("C")
    story.expect_compensate("F").expect_compensate("B")
    check(story)


def test_members_that_write_one_field_differently_fail_the_group() -> None:
    story = story_of(AB, step("C")).when_done("A", patch={"n": 1, "a": 1}).when_done("B", patch={"n": 2, "b": 2})
    story.expect_status("COMPENSATING").expect_compensate("A").expect_compensate("B").expect_no_command()
    assert story.state.failure is not None
    assert story.state.failure.code == "parallel_clash"
    assert "A and B act in parallel and wrote n differently" in story.state.failure.message
    assert story.state.context_for("A", Action.COMPENSATE) == {"n": 1, "a": 1, "b": 2}, "each sees what it wrote"
    assert story.state.context_for("B", Action.COMPENSATE) == {"n": 2, "a": 1, "b": 2}
    check(story)


def test_members_that_write_one_field_alike_do_not_clash() -> None:
    story = story_of(AB, step("C")).when_done("A", patch={"n": 1}).when_done("B", patch={"n": 1}).expect_act("C")
    check(story)


def test_what_verification_or_a_late_reply_found_clashes_too() -> None:
    asked = step("A", verify_retry=TWICE)
    story = story_of(group(asked, step("B"))).when_done("B", patch={"n": 2}).when_unknown("A")
    story.when_verified("A", "done", patch={"n": 1}).expect_status("COMPENSATING").expect_compensate("A")
    assert story.state.failure is not None
    assert story.state.failure.code == "parallel_clash"
    check(story)
    story = story_of(group(asked, step("B"))).when_unknown("A").when_verified("A", "done", patch={"n": 1})
    story.when_done("B", patch={"n": 2}).expect_status("COMPENSATING")
    check(story)
    story = story_of(group(asked, step("B"))).when_done("B", patch={"n": 2}).when_unknown("A")
    story.when_done("A", patch={"n": 1}, action="act").expect_status("COMPENSATING")
    check(story)


def test_a_stand_in_does_not_clash_with_its_own_primary() -> None:
    story = story_of(group(FallbackPlan(step("P"), step("F")), step("B"))).when_unknown("P", patch={"n": 1})
    story.when_done("P").when_done("F", patch={"n": 2}).when_done("B").expect_status("COMPLETED").expect_context(n=2)
    check(story)


def test_a_late_member_overwrites_nothing_that_others_wrote() -> None:
    story = story_of(group(step("A", retry=TWICE), step("B"))).when_failed("A").expect_act("A", attempt=2)
    story.when_done("B", patch={"n": 2}).when_done("A", patch={"n": 1}, attempt=1).expect_context(n=2)
    story.when_failed("A").expect_compensate("A").expect_compensate("B")
    assert story.state.context_for("A", Action.COMPENSATE)["n"] == 1
    check(story)


def test_a_member_that_nobody_serves_parks_the_saga_and_the_others_go_on() -> None:
    story = story_of(AB).when_not_served("A", refusals_max=1).expect_parked("step A")
    story.when_done("B").expect_no_command().expect_parked("step A")
    story.when_retried().expect_act("A").expect_no_command().when_done("A").expect_status("COMPLETED")
    check(story)


def test_a_member_that_fails_while_the_saga_is_parked_is_undone_once_a_person_has_looked() -> None:
    story = story_of(AB).when_not_served("A", refusals_max=1).when_failed("B").expect_no_command()
    story.when_retried().expect_no_command().expect_status("COMPENSATED")
    check(story)


def test_a_lost_member_is_sent_again_alone() -> None:
    story = story_of(AB).after(10).when_done("A").after(DEADLINE_S - 10).expect_act("B", attempt=1).expect_no_command()
    check(story)


def test_all_members_that_were_never_sent_are_withdrawn() -> None:
    story = story_of(AB).when_cancelled().expect_no_command()
    for name in ("A", "B"):
        story.when(e.DispatchWithdrawn(name, Action.ACT, 1))
    story.expect_status("COMPENSATED")
    check(story)


@pytest.mark.parametrize("first", ["A", "B"])
def test_a_late_act_of_a_member_that_was_undone_is_undone_again(first: str) -> None:
    other = "B" if first == "A" else "A"
    story: Scenario = story_of(AB).when_failed(first).when_done(other).when_done(other).expect_status("COMPENSATED")
    story.when_done(first, action="act", attempt=1).expect_compensate(first).when_done(first)
    story.expect_status("COMPENSATED")
    check(story)
