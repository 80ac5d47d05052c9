"""A step whose workers are gone for good: its queue takes every command, and nobody answers."""

from __future__ import annotations

import dataclasses

import pytest

from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Phase, Status
from watership.messages import AdminVerb
from watership_orchestrator.judgement import Arrival, Judgement, judge
from watership_orchestrator.unserved import UNSERVED_MAX

from tests.support.judging import PLAN, SAGA_ID, Row, admin, plans, reply, sent, start, step


class Abandoned(Row):
    """Whose steps are announced by workers, but for those named."""

    def look(self, *served: str) -> Judgement:
        """The reaper, when the row is due."""
        assert self.stored is not None
        self.now_ms = max(self.now_ms, self.stored.state.due_at_ms or 0)
        known = dataclasses.replace(plans(self.plan), served=frozenset(served))
        it = judge(SAGA_ID, self.stored, [Arrival(SAGA_ID, None)], known, self.now_ms, self.log)
        assert it.state is not None
        self.log += it.entries
        self.stored = dataclasses.replace(self.stored, state=it.state)
        return it


def test_it_is_sent_again_for_a_while_and_then_parked_with_the_reason() -> None:
    row = Abandoned()
    row.batch(start(), reply("A"))
    for _ in range(UNSERVED_MAX - 1):
        it = row.look("A", "C")
        assert sent(it) == ["act B 1"]
        assert it.state is not None
        assert it.state.parked_reason is None
    it = row.look("A", "C")
    assert it.state is not None
    assert it.state.parked_reason is not None
    assert "no worker serves step B any more" in it.state.parked_reason
    assert f"watership retry {SAGA_ID}" in it.state.parked_reason
    assert sent(it) == []
    assert sent(row.look("A", "C")) == [], "and stays parked"
    assert sent(row.batch(admin(AdminVerb.RETRY))) == ["act B 1"]
    assert sent(row.batch(reply("B"))) == ["act C 1"]


def test_a_worker_that_comes_back_in_time_goes_on_by_itself() -> None:
    row = Abandoned()
    row.batch(start(), reply("A"))
    row.look("A", "C")
    assert sent(row.look("A", "B", "C")) == ["act B 1"]
    assert sent(row.batch(reply("B"))) == ["act C 1"]


def test_where_nobody_knows_who_serves_what_nothing_is_abandoned() -> None:
    row = Abandoned()
    row.batch(start(), reply("A"))
    for _ in range(UNSERVED_MAX + 2):
        assert row.stored is not None
        row.now_ms = max(row.now_ms, row.stored.state.due_at_ms or 0)
        assert sent(row.batch(Arrival(SAGA_ID, None))) == ["act B 1"]


def test_a_compensation_is_parked_too() -> None:
    row = Abandoned()
    row.batch(start(), reply("A"), reply("B", "failed"))
    its = [row.look("B", "C") for _ in range(UNSERVED_MAX)]
    assert [sent(it) for it in its] == [["compensate A 1"]] * (UNSERVED_MAX - 1) + [[]]
    assert its[-1].state is not None
    assert "no worker serves step A any more" in (its[-1].state.parked_reason or "")


@pytest.mark.parametrize("turned", [True, False])
def test_an_act_that_is_not_sent_again_ends_unknown(turned: bool) -> None:
    row = Abandoned(Plan("OrderSaga", (step("A"), StepPlan("B", "b", rerun=False))) if not turned else PLAN)
    row.batch(start(), reply("A"))
    if turned:
        row.batch(admin(AdminVerb.COMPENSATE))
    it = row.look("A", "C")
    assert it.state is not None
    assert it.state.status is Status.COMPENSATING
    assert it.state.step("B").act.phase is Phase.SETTLED
    assert sent(it) == ["compensate B 1"], "in doubt means undone"
    assert it.state.awaits("B", Action.COMPENSATE, 1)
