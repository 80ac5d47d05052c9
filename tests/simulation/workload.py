"""What a seed asks of the system: random plans, sagas on them, who serves which step, what operators want, and when."""

from __future__ import annotations

import dataclasses
import random
import uuid
from typing import Any

from watership.machine.nodes import FallbackPlan, Node, RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.messages import AdminVerb

from tests.simulation.town import FIELDS, NAMES, SIGNAL_FIELDS, Manners

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        **{name: {} for name in (*FIELDS, "shared")},
        **{name: {"type": ["object", "null"]} for name in SIGNAL_FIELDS},
    },
    "required": ["n"],
}


@dataclasses.dataclass(frozen=True)
class StartOrder:
    """Somebody starts a saga at ``at_s``. ``copies``: with the same input; ``conflict``: once more, with other input."""

    at_s: float
    saga_id: uuid.UUID
    saga: str
    plan: str | None
    context: dict[str, Any]
    copies: int
    conflict: bool
    watched: bool


@dataclasses.dataclass(frozen=True)
class OperatorOrder:
    """An operator's verb."""

    at_s: float
    saga_id: uuid.UUID
    verb: AdminVerb
    seq: int | None


@dataclasses.dataclass(frozen=True)
class SignalOrder:
    """Somebody answers what a saga waits for, will wait for, or does not wait for."""

    at_s: float
    saga_id: uuid.UUID
    name: str
    signal_id: str
    data: Any
    copies: int
    watched: bool


@dataclasses.dataclass(frozen=True)
class Workload:
    """See the module. ``registered_at_s``: by plan hash, when it becomes known; None: never."""

    plans: list[Plan]
    registered_at_s: dict[str, float | None]
    manners: dict[str, Manners]
    starts: list[StartOrder]
    operators: list[OperatorOrder]
    workers: list[list[str]]  # each worker's steps
    idlers: list[list[str]]  # workers that take these steps' queues, and do not serve them
    calm_at_s: float
    signals: list[SignalOrder] = dataclasses.field(default_factory=list)


def drawn(chance: random.Random) -> Workload:
    """One of very many."""
    manners: dict[str, Manners] = {}
    count = chance.choice((1, 1, 2))
    plans = [_plan(chance, "Saga0", manners)]
    if count == 2:
        plans.append(_other_plan(chance, plans[0], manners))
    registered = {plan.hash: _when(chance) for plan in plans}
    calm_at_s = chance.choice((10.0, 25.0, 60.0))
    starts = [_start(chance, number, plans, calm_at_s) for number in range(1, chance.choice((1, 1, 2, 3, 4)) + 1)]
    operators = [_operator(chance, starts, calm_at_s) for _ in range(chance.choice((0, 0, 1, 3)))]
    steps = sorted(manners)
    workers = [steps] if chance.random() < 0.5 else [steps, [step for step in steps if chance.random() < 0.6]]
    idlers = [[chance.choice(steps)]] if chance.random() < 0.25 else []
    return Workload(plans, registered, manners, starts, operators, [w for w in workers if w], idlers, calm_at_s)


def _when(chance: random.Random) -> float | None:
    """Most plans are known before their first saga; some come late; a few never."""
    roll = chance.random()
    if roll < 0.75:
        return 0.0
    return chance.uniform(0.0, 30.0) if roll < 0.95 else None


def _other_plan(chance: random.Random, plan: Plan, manners: dict[str, Manners]) -> Plan:
    """Another saga, or a new version of the first: other steps before those that it has had, in another order."""
    if chance.random() < 0.5:
        return _plan(chance, "Saga1", manners)
    new, kept = _plan(chance, plan.saga, manners), list(plan.nodes)
    chance.shuffle(kept)
    return dataclasses.replace(new, nodes=(*new.nodes[:2], *kept))


def _plan(chance: random.Random, saga: str, manners: dict[str, Manners]) -> Plan:
    """A plan; its steps' manners go into ``manners``. What other plans have besides is in `flow`."""
    free = [name for name in NAMES if name not in manners]

    def step() -> StepPlan:
        name = free.pop(0)
        made = step_of(chance, name)
        manners[name] = manners_of(chance, made.timeout_ms / 1000)
        return made

    nodes: list[Node] = []
    for _ in range(chance.choice((1, 2, 2, 3, 3))):
        if chance.random() < 0.25:
            codes = chance.choice(((), ("boom",), ("other", "refused")))
            nodes.append(FallbackPlan(step(), step(), codes))
        else:
            nodes.append(step())
        if len(free) < 2:
            break
    return Plan(saga, tuple(nodes), SCHEMA)


def step_of(chance: random.Random, name: str) -> StepPlan:
    """A step's plan."""
    return StepPlan(
        name,
        name,
        retry=_retry(chance),
        compensation_retry=_retry(chance),
        timeout_ms=chance.choice((500, 2_000, 4_000)),
        queue_within_ms=chance.choice((1_000, 5_000, 10_000)),
        compensable=chance.random() < 0.85,
    )


def _retry(chance: random.Random) -> RetryPlan:
    return RetryPlan(attempts_max=chance.choice((1, 1, 2, 3)), delay_ms=chance.choice((0, 0, 1_000, 4_000)))


def manners_of(chance: random.Random, timeout_s: float) -> Manners:
    """A step's manners."""

    def share(*shares: float) -> float:
        return chance.choice(shares) if chance.random() < 0.4 else 0.0

    return Manners(
        kind=chance.choice(("barrier", "barrier", "keyed", "plain")),
        fails=share(0.2, 0.5, 1.0),
        unknown=share(0.1, 0.5),
        slow=share(0.1, 0.5),
        undo_fails=share(0.2, 0.6),
        undo_unknown=share(0.2, 0.5),
        undo_slow=share(0.1, 0.3),
        timeout_s=timeout_s,
    )


def _start(chance: random.Random, number: int, plans: list[Plan], calm_at_s: float) -> StartOrder:
    plan = chance.choice(plans)
    return StartOrder(
        at_s=chance.uniform(0.0, min(5.0, calm_at_s)) if chance.random() < 0.8 else chance.uniform(0.0, calm_at_s),
        saga_id=uuid.UUID(int=number),
        saga=plan.saga,
        plan=plan.hash if chance.random() < 0.5 else None,
        context={"n": number},
        copies=chance.choice((1, 1, 1, 2, 3)),
        conflict=chance.random() < 0.15,
        watched=chance.random() < 0.5,
    )


def _operator(chance: random.Random, starts: list[StartOrder], calm_at_s: float) -> OperatorOrder:
    return OperatorOrder(
        at_s=chance.uniform(0.0, calm_at_s * 1.2),
        saga_id=chance.choice(starts).saga_id if chance.random() < 0.95 else uuid.UUID(int=99),
        verb=chance.choice((AdminVerb.RETRY, AdminVerb.COMPENSATE)),
        seq=chance.choice((None, None, None, 1, 2)),
    )
