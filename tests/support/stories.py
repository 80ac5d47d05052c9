"""Stories of the machine on bare plans, and what must hold at the end of each."""

from __future__ import annotations

from typing import Any

from watership.machine.lint import lint
from watership.machine.nodes import Node, StepPlan
from watership.machine.plan import Plan
from watership.testing import Scenario, given

from tests.support import machine_laws as laws


def step(name: str, **settings: Any) -> StepPlan:
    return StepPlan(name, queue=name, **settings)


def story_of(*nodes: Node, pivot: str | None = None, deadline_ms: int | None = None) -> Scenario:
    """A started saga on a plan that passes the lint."""
    lint("OrderSaga", nodes, pivot, deadline_ms)
    return given(Plan("OrderSaga", nodes, pivot=pivot, deadline_ms=deadline_ms)).started()


def check(story: Scenario) -> None:
    """The laws that hold of any saga, wherever it stands."""
    laws.nothing_is_stuck(story.state)
    laws.the_log_is_the_truth(story.state, story.log)
    laws.the_row_is_the_state(story.state)
    laws.completed_means_done_once(story.plan, story.state, story.log)
