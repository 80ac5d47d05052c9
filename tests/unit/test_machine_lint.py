"""Plans that could not run right are refused, with the saga, the step and the reason; whoever sends them."""

from __future__ import annotations

from typing import Any

import pytest

from watership import DefinitionError
from watership.machine.nodes import (
    NAME_BYTES_MAX,
    BreakerPlan,
    FallbackPlan,
    Node,
    ParallelPlan,
    RetryPlan,
    SleepPlan,
    StepPlan,
    WaitPlan,
)
from watership.machine.plan import Plan

from tests.support.stories import step

FOREVER = RetryPlan(attempts_max=None, delay_ms=1_000)
PIVOT = step("Capture")
SHIP = step("Ship", compensable=False, retry=FOREVER)


def read(*nodes: Node, pivot: str | None = None, deadline_ms: Any = None) -> Plan:
    """The plan as it comes over the wire: read from its own data."""
    return Plan.from_data(Plan("OrderSaga", nodes, pivot=pivot, deadline_ms=deadline_ms).to_data())


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((), "OrderSaga has no steps"),
        ((step("A"), step("A")), "lists the step A twice"),
        ((step("A"), WaitPlan("A", None, 1)), "lists the step A twice"),
        ((step("A"), ParallelPlan((step("B"), step("A")))), "lists the step A twice"),
        ((ParallelPlan((step("A"),)),), "a Parallel with 1 member"),
        ((SleepPlan("nap", 0),), "OrderSaga: nap: its seconds, in ms must be a whole number from 1"),
        ((SleepPlan("nap", 10**12),), "OrderSaga: nap: its seconds"),
        ((WaitPlan("go", None, 0),), "OrderSaga: Wait go: timeout_s in ms must be"),
        ((WaitPlan("go", None, 1, "explode"),), 'on_timeout is "compensate" or "continue", not \'explode\''),  # type: ignore[arg-type]
        ((WaitPlan("go", None, 1, reject_if=("ok", ["x"])),), "reject_if compares a field with a string"),
        ((step("A", retry=RetryPlan(attempts_max=None)),), "OrderSaga.A: retry is without end and without a delay"),
        ((step("A", retry=RetryPlan(attempts_max=0)),), "OrderSaga.A: retry: its attempts must be"),
        ((step("A", verify_retry=RetryPlan(backoff=0)),), "OrderSaga.A: verify_retry needs a backoff of 1"),
        (
            (step("A", verify_retry=RetryPlan(jitter=10.5)),),
            "OrderSaga.A: verify_retry: its jitter is 10.5, the limit is 10",
        ),
        ((step("A", retry=RetryPlan(jitter=1e300)),), "OrderSaga.A: retry: its jitter is 1e+300, the limit is 10"),
        ((step("A", retry=RetryPlan(jitter=float("nan"))),), "OrderSaga.A: retry: its jitter is nan"),
        ((step("A", timeout_ms=10**9),), "OrderSaga.A: timeout_s in ms must be a whole number"),
        ((step("A" * 150),), f"OrderSaga: the step's name {'A' * 40}… is 150 bytes long, the limit is 149"),
        ((step("Ш" * 75),), f"OrderSaga: the step's name {'Ш' * 40}… is 150 bytes long, the limit is 149"),
        (
            (SleepPlan("z" * 201, 1),),
            f"OrderSaga: the name of a sleep {'z' * 40}… is 201 characters long, the limit is 200",
        ),
        ((WaitPlan("", None, 1),), "OrderSaga: the name of a wait must be a string that is not empty"),
        ((ParallelPlan((step("A"), step("B" * 150))),), "is 150 bytes long, the limit is 149"),
        (
            (StepPlan("A", "q" * 150),),
            f"OrderSaga.A: the name of its queue {'q' * 40}… is 150 bytes long, the limit is 149",
        ),
        ((StepPlan("A", ""),), "OrderSaga.A: the name of its queue must be a string that is not empty"),
        ((step("a\0b"),), "OrderSaga: the step's name holds a NUL or a lone surrogate"),
        ((step("a\ud800b"),), "OrderSaga: the step's name holds a NUL or a lone surrogate"),
    ],
)
def test_what_could_not_run_is_refused(nodes: tuple[Node, ...], words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        read(*nodes)
    assert words in str(refused.value)
    assert "OrderSaga" in str(refused.value)


@pytest.mark.parametrize("name", ["S" * 150, "Ш" * 75, "", "a\0b", "\ud800", 7])
def test_a_sagas_name_has_its_limit_too(name: Any) -> None:
    with pytest.raises(DefinitionError, match="the saga's name"):
        Plan.from_data(Plan(name, (step("A"),)).to_data())


def test_a_name_as_long_as_may_be_is_taken() -> None:
    name = "Ш" * 74 + "A"
    assert len(name.encode()) == NAME_BYTES_MAX
    plan = Plan(name, (step(name, retry=RetryPlan(jitter=10.0)),))
    assert Plan.from_data(plan.to_data()) == plan


@pytest.mark.parametrize(
    ("nodes", "deadline_ms", "words"),
    [
        ((step("A"),), None, "its pivot Capture is none of its steps"),
        ((ParallelPlan((PIVOT, step("B"))),), None, "its pivot Capture is in a Parallel"),
        ((FallbackPlan(PIVOT, step("B")),), None, "its pivot Capture is in a fallback"),
        ((WaitPlan("Capture", None, 1),), None, "its pivot Capture is in a wait"),
        ((PIVOT, SHIP), 1_000, "deadline_s can only fire past the pivot, since Capture is its first step"),
        ((PIVOT, step("Ship", retry=FOREVER)), None, "OrderSaga.Ship has a compensation: after the pivot Capture"),
        ((PIVOT, step("Ship", compensable=False)), None, "OrderSaga.Ship has 1 attempts: after the pivot Capture"),
        ((PIVOT, ParallelPlan((SHIP, step("Mail", retry=FOREVER)))), None, "OrderSaga.Mail has a compensation"),
        ((PIVOT, FallbackPlan(SHIP, step("Mail"))), None, "a Fallback of Ship: after the pivot"),
        (
            (PIVOT, ParallelPlan((SHIP, FallbackPlan(step("P"), step("F"))))),
            None,
            "a Fallback of Ship: after the pivot",
        ),
        ((PIVOT, WaitPlan("go", None, 1)), None, "Wait go would compensate at its timeout: after the pivot"),
        ((PIVOT, WaitPlan("go", None, 1, "continue", ("ok", 0))), None, "Wait go has reject_if: after the pivot"),
    ],
)
def test_pivot_algebra(nodes: tuple[Node, ...], deadline_ms: int | None, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        read(*nodes, pivot="Capture", deadline_ms=deadline_ms)
    assert words in str(refused.value)


@pytest.mark.parametrize("deadline_ms", [0, -1, 1.5, True, "soon", 10**12])
def test_a_deadline_is_a_whole_number_of_ms(deadline_ms: object) -> None:
    with pytest.raises(DefinitionError, match=r"OrderSaga: deadline_s in ms must be a whole number"):
        read(step("A"), deadline_ms=deadline_ms)


def test_a_plan_of_everything_is_read_as_it_was_written() -> None:
    plan = Plan(
        "OrderSaga",
        (
            step("A", retry=RetryPlan(3, final_codes=("x",)), verify_retry=RetryPlan(2), rerun=False),
            ParallelPlan((step("B"), FallbackPlan(step("P"), step("F"), ("boom",), BreakerPlan(3, 1.0, ("x",))))),
            SleepPlan("nap", 1_000),
            WaitPlan("go", "went", 1_000, "compensate", ("ok", False)),
            PIVOT,
            WaitPlan("pickup", None, 1_000, "continue"),
            SHIP,
        ),
        pivot="Capture",
        deadline_ms=5_000,
    )
    assert Plan.from_data(plan.to_data()) == plan
    assert Plan.from_data(plan.to_data()).hash == plan.hash


def test_what_a_plan_does_not_use_does_not_change_its_name() -> None:
    """Sagas that were begun before a release that added settings find their plan after it."""
    data = Plan("OrderSaga", (step("A"),)).to_data()
    assert sorted(data) == ["context_schema", "nodes", "saga", "v"]
    assert not {"verify_retry", "rerun", "final_codes"} & (set(data["nodes"][0]) | set(data["nodes"][0]["retry"]))


@pytest.mark.parametrize(
    "node",
    [
        {"kind": "loop"},
        {"kind": "parallel", "nodes": [{"kind": "sleep", "name": "n", "duration_ms": 1}]},
        {"kind": "parallel"},
        {"kind": "wait", "name": "n", "into": None, "timeout_ms": 1, "reject_if": ["a", 1, 2]},
        {"kind": "sleep", "name": "n"},
        {"kind": "step", "name": "n"},
        "step",
    ],
)
def test_what_is_no_plan_is_refused(node: object) -> None:
    with pytest.raises(DefinitionError, match=r"plan"):
        Plan.from_data({"v": 1, "saga": "S", "nodes": [node]})
