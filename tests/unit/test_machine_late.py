"""Replies that come late, twice or out of order (law 6): none forgotten, and none moves a saga forward."""

from __future__ import annotations

from typing import Any

import pytest

from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.apply import fold
from watership.machine.nodes import FallbackPlan, RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome
from watership.testing import Scenario, given

ONCE = RetryPlan()
TWICE = RetryPlan(attempts_max=2)


def step(name: str, **settings: Any) -> StepPlan:
    return StepPlan(name, queue=name, **settings)


def story_of(*nodes: StepPlan | FallbackPlan) -> Scenario:
    return given(Plan("OrderSaga", nodes)).started()


def the_log_gives_the_state(story: Scenario) -> None:
    assert fold(story.state.saga_id, story.log) == story.state


def undone_with_a_late_b() -> Scenario:
    """B replied "failed" at its first attempt, and now its first delivery's other run says "done"."""
    story = story_of(step("A"), step("B"), step("C")).when_done("A").when_failed("B").when_done("A")
    return story.expect_status("COMPENSATED").when_done("B", {"b": 1}, action="act")


def test_a_late_act_of_an_undone_saga_is_undone() -> None:
    story = undone_with_a_late_b().expect_ledger("act B attempt 1 was not awaited", "undone").expect_compensate("B")
    story.expect_context(b=1).expect_status("COMPENSATING").when_done("B").expect_status("COMPENSATED")
    the_log_gives_the_state(story)


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.UNKNOWN])
def test_an_act_that_was_undone_already_is_undone_again_under_a_new_generation(outcome: Outcome) -> None:
    story = story_of(step("A", retry=TWICE)).when_unknown("A").when_unknown("A").expect_compensate("A", attempt=1)
    story.when_done("A").expect_status("COMPENSATED")
    story.when(e.StepReplied("A", Action.ACT, 1, "late", outcome)).expect_ledger("undone")
    assert story.state.step("A").generation == 2
    story.expect_status("COMPENSATING").expect_compensate("A", attempt=2).when_done("A").expect_status("COMPENSATED")
    the_log_gives_the_state(story)


def test_a_late_reply_of_an_older_generation_is_not_taken_for_the_newer_one() -> None:
    story = undone_with_a_late_b().when_done("B").expect_status("COMPENSATED")
    story.when(e.StepReplied("B", Action.ACT, 1, "another", Outcome.DONE)).expect_compensate("B", attempt=2)
    story.when_done("B", action="compensate", attempt=1).expect_ledger("was not awaited").expect_status("COMPENSATING")
    story.when_done("B").expect_status("COMPENSATED")
    the_log_gives_the_state(story)


def test_a_new_generation_has_a_budget_of_its_own() -> None:
    story = story_of(step("A", compensation_retry=RetryPlan(attempts_max=2, delay_ms=1_000))).when_unknown("A")
    story.when_failed("A").after(1).when_done("A").expect_status("COMPENSATED")
    story.when(e.StepReplied("A", Action.ACT, 1, "late", Outcome.DONE)).expect_compensate("A", attempt=3)
    story.when_failed("A").expect_status("COMPENSATING").after(1).expect_compensate("A", attempt=4)


def test_a_late_act_while_its_compensation_is_under_way_is_undone_again() -> None:
    story = story_of(step("A", retry=TWICE)).when_unknown("A").when_unknown("A").expect_compensate("A")
    story.when_done("A", action="act", attempt=1).expect_no_command()
    assert story.state.step("A").undo_again
    story.when_done("A", action="compensate").expect_compensate("A", attempt=2)
    assert story.state.step("A").generation == 2
    story.when_done("A").expect_status("COMPENSATED")
    the_log_gives_the_state(story)


def test_a_late_act_before_its_compensation_was_sent_needs_no_second_one() -> None:
    story = story_of(step("A"), step("B", retry=TWICE)).when_done("A").when_unknown("B").when_cancelled()
    story.when_done("B", action="act", attempt=1).expect_no_command()
    story.when_failed("B").expect_compensate("B").when_done("B").expect_compensate("A")
    assert story.state.step("B").generation == 1


def test_a_second_run_of_what_stands_is_no_matter() -> None:
    story = story_of(step("A"), step("B")).when_done("A").when_done("A", action="act", attempt=1)
    story.expect_ledger("was not awaited").expect_no_command().expect_status("RUNNING")
    assert story.last is not None
    assert not story.last.changes


def test_late_failures_late_compensations_and_what_was_never_sent_change_nothing() -> None:
    story = story_of(step("A"), step("B")).when_done("A").when_failed("B").when_done("A").expect_status("COMPENSATED")
    before = story.state
    for event in (
        e.StepReplied("B", Action.ACT, 1, "x", Outcome.FAILED),
        e.StepReplied("A", Action.COMPENSATE, 1, "x", Outcome.DONE),
        e.StepReplied("A", Action.ACT, 7, "x", Outcome.DONE),
        e.StepReplied("Nobody", Action.ACT, 1, "x", Outcome.DONE),
        e.StepReplied("B", Action.ACT, 1, "x", Outcome.DONE, known=True),
    ):
        story.when(event).expect_ledger("was not awaited").expect_no_command()
    assert story.state == before


def test_a_late_reply_of_an_earlier_attempt_does_not_move_the_saga_forward() -> None:
    story = story_of(step("A", retry=TWICE), step("B")).when_unknown("A").expect_act("A", attempt=2)
    story.when_done("A", attempt=1).expect_no_command().expect_status("RUNNING")
    assert story.state.awaits("A", Action.ACT, 2)
    story.when_failed("A").expect_compensate("A")  # though the last attempt failed: the first had its effect


# --- fallbacks

SAGA = (FallbackPlan(step("P"), step("F")), step("Z"))


def test_a_late_primary_is_undone_though_the_saga_completed() -> None:
    story = story_of(*SAGA).when_failed("P").when_done("F").when_done("Z").expect_status("COMPLETED")
    story.when_done("P", action="act", attempt=1).expect_compensate("P").expect_status("COMPLETED")
    assert story.state.due_at_ms is not None
    story.when_done("P").expect_no_command().expect_status("COMPLETED")
    assert story.state.due_at_ms is None
    story.when(e.StepReplied("P", Action.ACT, 1, "again", Outcome.UNKNOWN)).expect_compensate("P", attempt=2)
    the_log_gives_the_state(story)


def test_a_late_primary_is_undone_while_the_saga_goes_on() -> None:
    story = story_of(*SAGA).when_failed("P").when_done("F").expect_act("Z")
    story.when_done("P", action="act", attempt=1).expect_compensate("P")
    story.when_done("Z").expect_no_command().expect_status("RUNNING")
    story.when_done("P").expect_status("COMPLETED")


def test_a_late_primary_during_its_compensation_does_not_stand() -> None:
    """Its compensation may have undone it, or not: it is undone again, and its fallback acts."""
    story = story_of(FallbackPlan(step("P", retry=TWICE), step("F"))).when_unknown("P").when_unknown("P")
    story.expect_compensate("P").when_done("P", action="act", attempt=1).expect_no_command()
    story.when_done("P", action="compensate").expect_compensate("P", attempt=2).expect_status("RUNNING")
    story.when_done("P").expect_act("F").when_done("F").expect_status("COMPLETED")
    the_log_gives_the_state(story)


def test_a_late_primary_of_a_parked_completed_saga_is_not_forgotten() -> None:
    nodes = [FallbackPlan(step(f"P{n}", compensation_retry=ONCE), step(f"F{n}")) for n in (1, 2)]
    story = story_of(*nodes).when_failed("P1").when_done("F1").when_failed("P2").when_done("F2")
    story.when_done("P1", action="act", attempt=1).expect_compensate("P1").when_failed("P1").expect_parked("step P1")
    story.when_done("P2", action="act", attempt=1).expect_no_command()
    story.when_retried().expect_compensate("P2").when_done("P2").expect_compensate("P1").when_done("P1")
    story.expect_status("COMPLETED")
    the_log_gives_the_state(story)


def test_a_parked_saga_sends_nothing_until_a_person_says_so() -> None:
    nodes = (FallbackPlan(step("P", compensation_retry=ONCE), step("F")), step("Z", retry=TWICE))
    story = story_of(*nodes).when_failed("P").when_done("F").when_done("P", action="act", attempt=1)
    story.when_failed("P").expect_parked("step P").when_unknown("Z").expect_no_command()
    story.when_retried().expect_act("Z", attempt=2).expect_compensate("P", attempt=2)
    story.when_failed("P").expect_parked("step P").when_failed("Z").expect_no_command()
    assert any(isinstance(change, c.CompensationBegan) for change in story.log[-1])
    story.when_retried().expect_compensate("Z").expect_no_command().when_done("Z").expect_compensate("F").when_done("F")
    story.expect_compensate("P", attempt=3).when_done("P").expect_status("COMPENSATED")
    the_log_gives_the_state(story)


def test_a_refused_act_of_a_parked_saga_on_its_way_back_is_dropped() -> None:
    nodes = (FallbackPlan(step("P", compensation_retry=ONCE), step("F")), step("Z"))
    story = story_of(*nodes).when_failed("P").when_done("F").when_done("P", action="act", attempt=1)
    story.when_failed("P").when_cancelled().expect_no_command()  # Z may be acting
    story.when_not_served("Z").expect_compensate("F")
    the_log_gives_the_state(story)
