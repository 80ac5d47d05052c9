"""What a client missed, told from what it saw: pure."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from watership.listening import Listening
from watership.machine.nodes import FallbackPlan, StepPlan
from watership.machine.plan import Plan
from watership.messages import SagaEnded
from watership.saga.watch import SagaWatch, StepDone

PLAN = Plan("OrderSaga", (StepPlan("A", "A"), FallbackPlan(StepPlan("P", "P"), StepPlan("F", "F")), StepPlan("C", "C")))


def listening(*seen: str, plan: Plan | None = PLAN, end_only: bool = False) -> Listening:
    watch = SagaWatch(uuid.uuid4())
    for seq, step in enumerate(seen, start=2):
        watch.step_done(StepDone(seq, step, None, {}, None))
    return Listening(watch, plan, 0.0, end_only)


def ended(status: str, failed_step: str | None = None) -> SagaEnded:
    values: dict[str, Any] = {"saga_id": uuid.uuid4(), "saga": "OrderSaga", "seq": 9, "context": {}}
    return SagaEnded(**values, status=status, failed_step=failed_step)


@pytest.mark.parametrize(
    ("seen", "step", "expected"),
    [
        ((), "A", True),
        ((), "P", False),
        (("A",), "P", True),
        (("A",), "F", True),
        (("A",), "C", False),
        (("A",), "X", False),
    ],
)
def test_a_step_out_of_turn_says_that_one_was_missed(seen: tuple[str, ...], step: str, expected: bool) -> None:
    assert listening(*seen).is_next(step) is expected
    assert not listening(*seen, plan=None).is_next(step), "without the plan nobody can tell: the log is read"


@pytest.mark.parametrize(
    ("seen", "end", "expected"),
    [
        (("A", "F", "C"), ended("COMPLETED"), True),
        (("A", "F"), ended("COMPLETED"), False),
        (("A",), ended("COMPENSATED", "P"), True),
        ((), ended("COMPENSATED", "P"), False),
        (("A", "P"), ended("COMPENSATED"), False),
    ],
)
def test_an_end_that_came_before_its_steps_is_noticed(seen: tuple[str, ...], end: SagaEnded, expected: bool) -> None:
    assert listening(*seen).saw_all(end) is expected
    assert listening(end_only=True).saw_all(end)
    assert not listening(*seen, plan=None).saw_all(end)


def test_progress_that_is_told_twice_is_seen_once() -> None:
    it = listening("A")
    it.watch.step_done(StepDone(2, "A", None, {}, None))
    assert it.watch.steps_seen == 1
