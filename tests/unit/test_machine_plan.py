"""Plans as data, their names and their lint; changes as data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from watership import DefinitionError
from watership.machine import changes as c
from watership.machine.lint import lint
from watership.machine.nodes import STEPS_MAX, BreakerPlan, FallbackPlan, RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Failure, Outcome


def step(name: str, **settings: Any) -> StepPlan:
    return StepPlan(name, queue=name, **settings)


FULL = Plan(
    "OrderSaga",
    (
        step("A", retry=RetryPlan(3, 10, 1.5, 100, 0.25), compensable=False),
        FallbackPlan(step("P"), step("F"), ("boom",), BreakerPlan(3, 60.0, ("x",))),
    ),
    {"type": "object"},
)

FAILURE = Failure("boom", "Boom", "it broke", ("boom", "step_error"), "A")
CHANGES: list[c.Change] = [
    c.Created("OrderSaga", {"n": 1}, "hash"),
    c.Created("OrderSaga", {}, None, 5),
    c.Created("OrderSaga", {}, "hash", None, 99),
    c.PlanPinned("hash"),
    c.PlanPinned("hash", 99),
    c.PlanMissed(6),
    c.Dispatched("A", Action.ACT, 1, 7),
    c.Resent("A", Action.COMPENSATE, 2, 7, doubtful=True),
    c.Withdrawn("A", Action.ACT, 1),
    c.Replied("A", Action.ACT, 1, "r", Outcome.DONE, True, {"n": None}, {"r": [1]}),
    c.Replied("A", Action.ACT, 1, "r", Outcome.FAILED, False, failure=FAILURE),
    c.Replied("A", Action.ACT, 1, "r", Outcome.UNKNOWN, False, failure=FAILURE, redelivered=True, in_doubt=True),
    c.Replied("A", Action.ACT, 1, "r", Outcome.DONE, True, {"n": 1}, shared=True, events=[{"name": "e", "data": 1}]),
    c.Verified("A", 1, Outcome.DONE, {"n": 1}),
    c.Stopped("A"),
    c.PivotReached("A"),
    c.Waiting("W", 9),
    c.Elapsed("W", Outcome.FAILED),
    c.SignalKept("W", {"x": [1]}),
    c.Signalled("W", None, "field"),
    c.Overdue("A", 1),
    c.Delayed("A", Action.ACT, 2, 8),
    c.Postponed("A", Action.ACT, 2, 8),
    c.Postponed("A", Action.ACT, 2, 8, doubtful=True),
    c.Dropped("A"),
    c.NothingToUndo("A"),
    c.LateAct("A", 1, "r", Outcome.UNKNOWN, {"n": 2}),
    c.LateAct("A", 1, "r", Outcome.DONE, {"n": 2}, aside=True),
    c.CompensationBegan(FAILURE),
    c.CompensationBegan(None),
    c.Completed(),
    c.Compensated(),
    c.Parked("because"),
    c.Unparked(),
    c.RetryAllowed("A", Action.COMPENSATE),
    c.Operated("ann", "retry", "why"),
]


@pytest.mark.parametrize("change", CHANGES, ids=[f"{number}-{change.kind}" for number, change in enumerate(CHANGES)])
def test_a_change_goes_through_json(change: c.Change) -> None:
    data = json.loads(json.dumps(c.change_to_data(change)))
    assert c.change_from_data(data) == change


def test_every_kind_of_change_is_tried_above() -> None:
    assert {type(change) for change in CHANGES} == set(c.Change.__args__)
    assert len({cls.kind for cls in c.Change.__args__}) == len(c.Change.__args__)


def test_a_plan_goes_through_json_under_the_same_name() -> None:
    data = json.loads(json.dumps(FULL.to_data()))
    again = Plan.from_data(data)
    assert again == FULL
    assert again.hash == FULL.hash
    shuffled = {key: data[key] for key in reversed(data)}
    assert Plan.from_data(shuffled).hash == FULL.hash


def test_a_plans_name_is_stable_over_releases() -> None:
    """Sagas in flight are pinned to it: a change here strands them."""
    plan = Plan("OrderSaga", (step("A"),))
    assert plan.hash == Plan("OrderSaga", (step("A"),)).hash
    assert plan.hash != Plan("OrderSaga", (step("A", timeout_ms=1),)).hash
    assert plan.hash == "abba8c1cfa0222a698925997fc1f55df"


def changed(**settings: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(Plan("OrderSaga", (step("A"),)).to_data()))
    data["nodes"][0].update(settings)
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "not a plan"),
        ({**changed(), "v": 2}, "a plan of version 2; this machine reads version 1"),
        ({**changed(), "nodes": []}, "OrderSaga has no steps"),
        ({**changed(), "nodes": [42]}, "not a plan"),
        (changed(kind="dance"), "a plan's node of the kind 'dance'"),
        (changed(colour="red"), "not a plan: .*colour"),
        (changed(timeout_ms=0), "OrderSaga.A: timeout_s"),
        (changed(queue_within_ms=-1), "OrderSaga.A: queue_within_s in ms must be"),
        (changed(timeout_ms="soon"), "OrderSaga.A: timeout_s in ms must be a whole number .* it is 'soon'"),
        (changed(timeout_ms=60000.5), "must be a whole number"),
        (changed(queue_within_ms=2**62), "from 1 to 604800000"),
        (changed(retry={"attempts_max": 0}), "OrderSaga.A: retry: its attempts must be"),
        (changed(retry={"attempts_max": "many"}), "must be a whole number"),
        (changed(compensation_retry={"backoff": 0.5}), "OrderSaga.A: compensation_retry"),
        (changed(retry={"backoff": float("nan")}), "OrderSaga.A: retry"),
        (changed(retry={"jitter": -1}), "OrderSaga.A: retry"),
    ],
)
def test_what_is_no_plan_is_refused_in_words(data: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        Plan.from_data(data)


def test_lint_names_the_saga_and_the_step() -> None:
    with pytest.raises(DefinitionError, match="OrderSaga lists the step A twice"):
        lint("OrderSaga", (step("A"), FallbackPlan(step("B"), step("A"))))
    with pytest.raises(DefinitionError, match=f"has {STEPS_MAX + 1} steps, the limit is {STEPS_MAX}"):
        lint("OrderSaga", tuple(step(f"S{n}") for n in range(STEPS_MAX + 1)))


def test_a_fallback_takes_over_by_lineage() -> None:
    node = FallbackPlan(step("P"), step("F"), ("OSError",))
    assert node.takes_over_from(("ConnectionError", "OSError"))
    assert not node.takes_over_from(("ValueError",))
    assert not node.takes_over_from(())
    assert FallbackPlan(step("P"), step("F")).takes_over_from(())
