"""Whether code can finish what is in flight: the judgement, on plans and contexts as an older version left them."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from watership import RetryPolicy, Saga, SagaContext, SagaStepHandler, Verified
from watership.errors import DefinitionError
from watership.machine import events as e
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import Action, Outcome, SagaState
from watership.saga.compat import (
    EMBEDDED,
    EXAMPLES_MAX,
    ORCHESTRATOR,
    Announced,
    Code,
    Comparison,
    InFlight,
    Kind,
    LivePlan,
    Report,
    elsewhere,
)
from watership.saga.compile import compile_saga
from watership.saga.context_fields import dropped, narrowed, newly_required
from watership.saga.models import shape_of
from watership.saga.step import Remote
from watership_worker import Worker


@dataclasses.dataclass
class Before(SagaContext):
    order: str
    grams: int = 0


@dataclasses.dataclass
class Now(SagaContext):
    """Of another shape: ``order`` is a number, ``address`` is needed."""

    order: int
    address: str
    grams: int = 0


class Step(SagaStepHandler[Before, None]):
    async def act(self, context: Before) -> None: ...


class Undone(Step):
    async def compensate(self, context: Before) -> None: ...


class Reserve(Undone):
    pass


class Weigh(Undone):
    async def verify(self, context: Before) -> Verified:
        return Verified.DONE


class Ship(Step):
    pass


class First(Saga[Before]):
    name = "Parcel"
    steps = [Reserve, Weigh, Ship]


PLAN = compile_saga(First).plan


def code(*steps: type[SagaStepHandler[Any, Any]], former: Sequence[type[SagaStepHandler[Any, Any]]] = ()) -> Code:
    """Another version of the saga."""
    body = {"name": "Parcel", "steps": list(steps), "former_steps": list(former), "__orig_bases__": (Saga[Before],)}
    return Code.of_sagas("app:sagas", [type("Second", (Saga,), body)])


def in_flight(
    *acted: str,
    plan: Plan = PLAN,
    context: dict[str, Any] | None = None,
    driver: str = ORCHESTRATOR,
    turned: bool = False,
) -> InFlight:
    """A saga that these steps have acted for."""
    state = react(plan, SagaState("1"), e.SagaStarted(plan.saga, context or {"order": "a"}, plan.hash), 0).state
    for step in acted:
        state = react(plan, state, e.StepReplied(step, Action.ACT, 1, step, Outcome.DONE), 0).state
    if turned:
        state = react(plan, state, e.CompensateRequested("ann", "why"), 0).state
    return InFlight(uuid.uuid4(), driver, plan.hash, state.context, state)


def compared(
    with_code: Code,
    *sagas: InFlight,
    plan: Plan = PLAN,
    driver: str = ORCHESTRATOR,
    starts: str | None = None,
    count: int | None = None,
    others: Sequence[Announced] = (),
) -> Report:
    live = LivePlan(plan, driver, len(sagas) if count is None else count, starts)
    comparison = Comparison([with_code], [live], elsewhere(others, [with_code]))
    for saga in sagas:
        comparison.saga(saga)
    return comparison.report(complete=count is None)


def found(report: Report) -> list[tuple[Kind, str | None, int]]:
    return [(finding.kind, finding.step, finding.sagas) for finding in report.findings]


@pytest.mark.parametrize("driver", [EMBEDDED, ORCHESTRATOR])
def test_the_same_code_is_compatible(driver: str) -> None:
    report = compared(code(Reserve, Weigh, Ship), in_flight(driver=driver), driver=driver, starts="newest")
    assert report.compatible
    assert (report.read, report.in_flight) == (1, 1)


@pytest.mark.parametrize("driver", [EMBEDDED, ORCHESTRATOR])
def test_a_dropped_step_touches_the_sagas_that_still_need_it(driver: str) -> None:
    past = in_flight("Reserve", "Weigh", driver=driver)
    before = in_flight(driver=driver)
    undone = in_flight("Reserve", turned=True, driver=driver)
    without_ship = compared(code(Reserve, Weigh), past, before, undone, driver=driver)
    assert found(without_ship) == [(Kind.HANDLER_MISSING, "Ship", 2)], "what is turned around never acts"
    assert {saga_id for saga_id, _ in without_ship.findings[0].examples} == {past.saga_id, before.saga_id}
    without_weigh = compared(code(Reserve, Ship), past, before, driver=driver)
    assert found(without_weigh) == [(Kind.HANDLER_MISSING, "Weigh", 2)], "one that is past it may have it undone"
    assert compared(code(Reserve, former=[Weigh, Ship]), past, before, driver=driver).compatible
    assert compared(code(Ship, Weigh, Reserve), past, before, driver=driver).compatible, (
        "the order is the plan's affair"
    )


def test_steps_that_changed_in_ways_that_matter() -> None:
    bare = type("Weigh", (Step,), {"name": "Weigh"})
    sagas = in_flight("Reserve"), in_flight("Reserve", "Weigh"), in_flight("Reserve", "Weigh")
    assert found(compared(code(Reserve, bare, Ship), *sagas)) == [
        (Kind.COMPENSATION_GONE, "Weigh", 3),
        (Kind.VERIFICATION_GONE, "Weigh", 1),
    ]
    moved = type("Weigh", (Weigh,), {"name": "Weigh", "queue": "scales"})
    report = compared(code(Reserve, moved, Ship), *sagas)
    assert found(report) == [(Kind.QUEUE_GONE, "Weigh", 3)]
    assert "scales" in report.findings[0].words
    assert compared(code(Reserve, moved, Ship), in_flight(driver=EMBEDDED), driver=EMBEDDED).compatible, (
        "no queues there"
    )
    undone_now = type("Ship", (Undone,), {"name": "Ship"})
    changed = compared(code(Reserve, Weigh, undone_now), *sagas)
    assert changed.compatible
    assert any("Ship has a compensation now" in note for note in changed.notes)


def test_what_does_not_change_a_plan_s_sagas_is_no_finding() -> None:
    slower = type("Weigh", (Weigh,), {"name": "Weigh", "timeout_s": 5.0, "retry": RetryPolicy(max_attempts=7)})
    assert compared(code(Reserve, slower, Ship), in_flight(), starts="newest").compatible


def test_contexts_are_really_read_by_the_class_of_each_step_that_is_still_asked() -> None:
    class Other(SagaStepHandler[Now, None]):
        name = "Ship"

        async def act(self, context: Now) -> None: ...

    shipping = Worker(handlers=[Reserve, Weigh, Other]).code("app:worker")
    good = [in_flight(context={"order": 7, "address": "x", "unknown": 1})]
    bad = [in_flight(context={"order": f"A-{number}"}) for number in range(EXAMPLES_MAX + 2)]
    turned = in_flight("Reserve", context={"order": "A"}, turned=True)
    report = compared(shipping, *good, *bad, turned)
    misfit = next(finding for finding in report.findings if "Now" in finding.words)
    assert (misfit.kind, misfit.sagas, len(misfit.examples)) == (Kind.CONTEXT_MISFIT, EXAMPLES_MAX + 2, EXAMPLES_MAX)
    assert misfit.examples[0][0] == bad[0].saga_id
    assert "address" in misfit.examples[0][1]
    assert "step Ship" in misfit.words
    strict = next(finding for finding in report.findings if "Before" in finding.words)
    assert strict.sagas == 1, "the good one of Now's shape is none of Before's: each class reads for itself"


def test_what_new_starts_would_get_is_judged_by_the_schema() -> None:
    class Other(SagaStepHandler[Now, None]):
        name = "Ship"

        async def act(self, context: Now) -> None: ...

    shipping = Worker(handlers=[Reserve, Weigh, Other]).code("app:worker")
    report = compared(shipping, starts="chosen")
    assert {finding.kind for finding in report.findings} == {Kind.FIELD_REQUIRED, Kind.FIELD_NARROWED}
    assert all(finding.starts and not finding.sagas for finding in report.findings)
    assert compared(shipping).compatible, "nobody starts on it and nothing is in flight"
    assert found(compared(code(Reserve, Weigh), starts="newest")) == [(Kind.HANDLER_MISSING, "Ship", 0)]


def test_sagas_that_were_not_read_may_be_touched() -> None:
    past = in_flight("Reserve", "Weigh", "Ship")
    assert compared(code(Reserve, Weigh), past).compatible
    report = compared(code(Reserve, Weigh), past, count=10)
    assert found(report) == [(Kind.HANDLER_MISSING, "Ship", 0)]
    assert not report.complete


def test_a_saga_that_a_newer_version_wrote_counts_for_every_step() -> None:
    newer = InFlight(uuid.uuid4(), ORCHESTRATOR, PLAN.hash, {"order": "a"}, None)
    assert found(compared(code(Reserve, Weigh), newer)) == [(Kind.HANDLER_MISSING, "Ship", 1)]


def test_an_embedded_saga_needs_its_own_class_bound() -> None:
    worker = Worker(handlers=[Reserve, Weigh, Ship]).code("app:worker")
    assert found(compared(worker, in_flight(driver=EMBEDDED), driver=EMBEDDED)) == [(Kind.SAGA_MISSING, None, 1)]
    assert compared(worker, in_flight()).compatible


def test_another_service_s_step_is_told_and_not_compared() -> None:
    other = Announced("Ship", "carrier.steps:Ship", "Ship", "worker 2", 12_000)
    report = compared(code(Reserve, Weigh), in_flight(), others=[other])
    assert report.compatible
    assert "carrier.steps:Ship" in report.notes[0]
    mine = Announced("Reserve", f"{__name__}:Reserve", "Reserve", "worker 2", 12_000)
    assert not compared(code(Reserve, Weigh), in_flight(), others=[other, mine]).compatible, "my old version's, then"
    near = Announced("Ship", f"{__name__}:Ship", "Ship", "worker 3", 12_000)
    assert not compared(code(Reserve, Weigh), in_flight(), others=[near]).compatible, "of a module that is compared"
    remote = code(Reserve, Weigh, Remote("Ship"))
    assert found(compared(remote, in_flight())) == [(Kind.HANDLER_MISSING, "Ship", 1)], "elsewhere, and nobody is there"
    assert compared(remote, in_flight(), others=[other]).compatible


def test_former_steps_are_checked_and_are_not_in_the_plan() -> None:
    kept = code(Reserve, former=[Weigh]).definitions["Parcel"]
    assert list(kept.plan.by_name) == ["Reserve"]
    assert list(kept.steps) == ["Reserve", "Weigh"]
    with pytest.raises(DefinitionError, match="Weigh is one of its steps"):
        code(Reserve, Weigh, former=[Weigh])
    with pytest.raises(DefinitionError, match=r"former_steps\[0\]"):
        code(Reserve, former=["Weigh"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        (int, float, ""),
        (float, int, "number"),
        (int, int | None, ""),
        (int | None, int, "null"),
        (str, int, "string"),
        (str, uuid.UUID, "string"),
        (uuid.UUID, str, ""),
        (list[int], dict[str, int], "array"),
        (Before, Now, ""),
        (Any, int, ""),
    ],
)
def test_kinds_of_values_that_a_field_lost(before: Any, now: Any, lost: str) -> None:
    def schema(kind: Any) -> dict[str, Any]:
        return shape_of(dataclasses.make_dataclass("C", [("it", kind)])).schema()

    assert [words for _, words in narrowed(schema(before), schema(now))] == ([lost] if lost else [])


def test_fields_that_came_and_went() -> None:
    before, now = shape_of(Before).schema(), shape_of(Now).schema()
    assert newly_required(before, now) == ["address"]
    assert dropped(now, before) == ["address"]
