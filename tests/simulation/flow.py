"""What half of the seeds have besides steps and fallbacks: groups, acts that are asked about or must not run twice, pivots,
pauses, signals, deadlines. Drawn with dice of its own: a seed without them is what it was without this module.
"""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from watership.machine.lint import lint
from watership.machine.nodes import (
    FallbackPlan,
    Node,
    ParallelPlan,
    RetryPlan,
    SleepPlan,
    StepPlan,
    Unit,
    WaitPlan,
    members,
)
from watership.machine.plan import Plan

from tests.simulation.town import SIGNAL_FIELDS, SPARE_NAMES, Manners
from tests.simulation.workload import SignalOrder, Workload, manners_of, step_of

SHARE = 0.5
# Past the pivot a step is tried without end; the waits between must not outlast a run's calm.
FORWARD = RetryPlan(attempts_max=None, delay_ms=1_000, delay_max_ms=8_000)


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a step has in every plan. ``verify_retry`` None: it cannot be asked."""

    rerun: bool
    verify_retry: RetryPlan | None


def widened(work: Workload, chance: random.Random) -> Workload:
    """The workload, or in half of the seeds one with more in its plans, and signals for them."""
    if chance.random() >= SHARE:
        return work
    manners = dict(work.manners)
    spare = list(SPARE_NAMES)
    longer = {plan.hash: _with_more_steps(chance, plan, manners, spare) for plan in work.plans}
    traits = {name: _traits(chance) for name in sorted(manners)}
    plans = {old: _widened(chance, plan, traits) for old, plan in longer.items()}
    tireless = {name for plan in plans.values() for name in _tireless(plan)}
    new = [name for name in manners if name not in work.manners]
    return dataclasses.replace(
        work,
        plans=list(plans.values()),
        registered_at_s={plans[old].hash: at_s for old, at_s in work.registered_at_s.items()},
        manners={
            name: _with_manners(chance, one, traits[name], tireless=name in tireless) for name, one in manners.items()
        },
        starts=[
            dataclasses.replace(start, plan=plans[start.plan].hash if start.plan is not None else None)
            for start in work.starts
        ],
        workers=[[*steps, *new] for steps in work.workers],
        signals=_signals(chance, work, list(plans.values())),
    )


def _with_more_steps(chance: random.Random, plan: Plan, manners: dict[str, Manners], spare: list[str]) -> Plan:
    nodes = list(plan.nodes)
    for _ in range(min(chance.choice((0, 1, 1, 2)), len(spare))):
        step = step_of(chance, spare.pop(0))
        manners[step.name] = manners_of(chance, step.timeout_ms / 1000)
        nodes.insert(chance.randint(0, len(nodes)), step)
    return dataclasses.replace(plan, nodes=tuple(nodes))


def _traits(chance: random.Random) -> Traits:
    asked = RetryPlan(attempts_max=chance.choice((1, 2, 3)), delay_ms=chance.choice((0, 500)))
    return Traits(rerun=chance.random() >= 0.15, verify_retry=asked if chance.random() < 0.4 else None)


def _with_manners(chance: random.Random, manners: Manners, traits: Traits, *, tireless: bool) -> Manners:
    return dataclasses.replace(
        manners,
        verify_unknown=chance.choice((0.0, 0.2, 0.6)),
        rerun=traits.rerun,
        shares=chance.choice((1, 2)) if chance.random() < 0.2 else None,
        tireless=tireless,
    )


# --- plans


def _widened(chance: random.Random, plan: Plan, traits: Mapping[str, Traits]) -> Plan:
    def with_traits(step: StepPlan) -> StepPlan:
        own = traits[step.name]
        return dataclasses.replace(step, rerun=own.rerun, verify_retry=own.verify_retry)

    nodes = [_each(node, with_traits) for node in plan.nodes]
    if chance.random() < 0.5:
        nodes = _grouped(chance, nodes)
    pivot = None
    places = [place for place, node in enumerate(nodes) if isinstance(node, StepPlan)]
    if places and chance.random() < 0.4:
        place = chance.choice(places)
        (pivot,) = (step.name for step in members(nodes[place]))
        nodes[place + 1 :] = [_past_the_pivot(node) for node in nodes[place + 1 :]]
    if chance.random() < 0.5:
        nodes = _with_pauses(chance, nodes, pivot)
    deadline_ms = chance.choice((3_000, 15_000)) if chance.random() < 0.2 else None
    if pivot in [step.name for step in members(nodes[0])]:
        deadline_ms = None
    lint(plan.saga, nodes, pivot, deadline_ms)
    return dataclasses.replace(plan, nodes=tuple(nodes), pivot=pivot, deadline_ms=deadline_ms)


def _each(node: Node, change: Callable[[StepPlan], StepPlan]) -> Node:
    """The node with each of its steps changed."""
    match node:
        case StepPlan():
            return change(node)
        case FallbackPlan():
            return dataclasses.replace(node, primary=change(node.primary), fallback=change(node.fallback))
        case ParallelPlan():
            return ParallelPlan(tuple(_unit(_each(unit, change)) for unit in node.nodes))
        case _:
            return node


def _unit(node: Node) -> Unit:
    assert isinstance(node, StepPlan | FallbackPlan)
    return node


def _grouped(chance: random.Random, nodes: list[Node]) -> list[Node]:
    """Two or three neighbours act at the same time."""
    size = chance.choice((2, 2, 3))
    if len(nodes) < size:
        return nodes
    first = chance.randint(0, len(nodes) - size)
    group = ParallelPlan(tuple(_unit(node) for node in nodes[first : first + size]))
    return [*nodes[:first], group, *nodes[first + size :]]


def _past_the_pivot(node: Node) -> Node:
    """The node as the lint allows it there: nothing to undo, and tried without end."""
    if isinstance(node, FallbackPlan):
        return _past_the_pivot(node.primary)
    if isinstance(node, ParallelPlan):
        return ParallelPlan(tuple(_unit(_past_the_pivot(unit)) for unit in node.nodes))
    return _each(node, lambda step: dataclasses.replace(step, compensable=False, retry=FORWARD))


def _tireless(plan: Plan) -> list[str]:
    """The pivot, and what comes after it: without them their saga could not end."""
    if plan.pivot is None:
        return []
    return [step.name for node in plan.nodes[plan.places[plan.pivot] :] for step in members(node)]


def _with_pauses(chance: random.Random, nodes: list[Node], pivot: str | None) -> list[Node]:
    names = list(SIGNAL_FIELDS)
    for number in range(chance.choice((1, 1, 2))):
        place = chance.randint(0, len(nodes))
        past = any(step.name == pivot for node in nodes[:place] for step in members(node))
        if chance.random() < 0.3:
            pause: Node = SleepPlan(f"Z{number}", chance.choice((500, 4_000, 20_000)))
        else:
            pause = _wait(chance, names.pop(0), past=past)
        nodes.insert(place, pause)
    return nodes


def _wait(chance: random.Random, field: str, *, past: bool) -> WaitPlan:
    """``past``: the pivot, behind which nothing turns a saga around."""
    return WaitPlan(
        field.upper(),
        field if chance.random() < 0.7 else None,
        chance.choice((1_000, 6_000, 20_000)),
        "continue" if past or chance.random() < 0.5 else "compensate",
        ("ok", False) if not past and chance.random() < 0.5 else None,
    )


# --- signals


def _signals(chance: random.Random, work: Workload, plans: list[Plan]) -> list[SignalOrder]:
    """Early ones, late ones, the same one again, another one, one that does not fit; or none at all."""
    orders: list[SignalOrder] = []
    for start in work.starts:
        names = sorted({name for plan in plans if plan.saga == start.saga for name in plan.waits})
        for name in names:
            for _ in range(chance.choice((0, 1, 1, 2))):
                orders.append(_signal(chance, start.saga_id, name, len(orders), start.at_s, work.calm_at_s))
        if names and chance.random() < 0.1:
            saga_id = chance.choice((start.saga_id, uuid.UUID(int=99)))
            orders.append(_signal(chance, saga_id, "nobody", len(orders), start.at_s, work.calm_at_s))
    return orders


def _signal(
    chance: random.Random, saga_id: uuid.UUID, name: str, number: int, start_at_s: float, calm_at_s: float
) -> SignalOrder:
    data: Any = {"ok": chance.random() < 0.7, "number": number}
    early = chance.random() < 0.3
    return SignalOrder(
        at_s=chance.uniform(0.0, start_at_s + 1.0) if early else start_at_s + chance.uniform(0.0, calm_at_s),
        saga_id=saga_id,
        name=name,
        signal_id=f"signal-{number}",
        data=data if chance.random() < 0.9 else "it does not fit",
        copies=chance.choice((1, 1, 1, 2, 3)),
        watched=chance.random() < 0.5,
    )
