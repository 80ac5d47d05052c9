"""A plan: the JSON that a saga definition compiles to, named by its content hash. A running saga stays on its plan.

It must never know a Saga class, a handler or a queue's broker: names and numbers only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from watership.errors import DefinitionError
from watership.machine.lint import lint
from watership.machine.nodes import (
    BreakerPlan,
    FallbackPlan,
    Node,
    ParallelPlan,
    RetryPlan,
    SleepPlan,
    StepPlan,
    Unit,
    WaitPlan,
    members,
    names,
    units,
)

PLAN_VERSION = 1

# Fields that later releases added. At their defaults they are left out of the JSON: a plan that does not use them has
# the name that it always had, and the sagas that are pinned to it find it.
_ADDED = {"final_codes": (), "verify_retry": None, "rerun": True, "pivot": None, "deadline_ms": None}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The nodes of a saga in order, and the JSON Schema of its context.

    ``pivot``: the step after which the saga only goes forward. ``deadline_ms``: how long it may take until then.
    """

    saga: str
    nodes: tuple[Node, ...]
    context_schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pivot: str | None = None
    deadline_ms: int | None = None

    def steps(self) -> Iterator[StepPlan]:
        """Every step, a fallback's primary before its fallback."""
        for node in self.nodes:
            yield from members(node)

    @cached_property
    def by_name(self) -> Mapping[str, StepPlan]:
        """Step name to step."""
        return {step.name: step for step in self.steps()}

    @cached_property
    def unit_of(self) -> Mapping[str, Unit]:
        """Step name to the step itself, or to the fallback that holds it."""
        return {step.name: unit for node in self.nodes for unit in units(node) for step in members(unit)}

    @cached_property
    def group_of(self) -> Mapping[str, ParallelPlan]:
        """Step name to its parallel group, of those that are in one."""
        groups = [node for node in self.nodes if isinstance(node, ParallelPlan)]
        return {step.name: group for group in groups for step in members(group)}

    @cached_property
    def waits(self) -> Mapping[str, WaitPlan]:
        """Signal name to the wait for it."""
        return {node.name: node for node in self.nodes if isinstance(node, WaitPlan)}

    @cached_property
    def fallbacks(self) -> tuple[FallbackPlan, ...]:
        """Every fallback, in order."""
        return tuple(unit for node in self.nodes for unit in units(node) if isinstance(unit, FallbackPlan))

    @cached_property
    def breakers(self) -> Mapping[str, Mapping[str, Any]]:
        """Primary step's name to its circuit breaker's settings as plain JSON data, of those that have one."""
        guarded = [(fallback.primary.name, fallback.breaker) for fallback in self.fallbacks]
        return {name: dataclasses.asdict(breaker) for name, breaker in guarded if breaker is not None}

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The name of a step, a sleep or a wait to its node's place in the plan, from 0."""
        return {name: place for place, node in enumerate(self.nodes) for name in names(node)}

    @cached_property
    def hash(self) -> str:
        """The plan's name: the first 32 hex digits of the SHA-256 of its canonical JSON."""
        canonical = json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def to_data(self) -> dict[str, Any]:
        """Plain JSON data; `from_data` reads it back."""
        flow = _lean({"pivot": self.pivot, "deadline_ms": self.deadline_ms})
        return {
            "v": PLAN_VERSION,
            "saga": self.saga,
            "nodes": [_lean(dataclasses.asdict(node)) for node in self.nodes],
            "context_schema": dict(self.context_schema),
            **flow,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Plan:
        """Reads what `to_data` wrote. Raises `DefinitionError` with what is wrong about it."""
        try:
            if data["v"] != PLAN_VERSION:
                raise DefinitionError(f"a plan of version {data['v']}; this machine reads version {PLAN_VERSION}")
            nodes = tuple(_node_from(node) for node in data["nodes"])
            flow = {name: data.get(name) for name in ("pivot", "deadline_ms")}
            plan = cls(saga=data["saga"], nodes=nodes, context_schema=data.get("context_schema", {}), **flow)
            lint(plan.saga, plan.nodes, plan.pivot, plan.deadline_ms)
        except DefinitionError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DefinitionError(f"not a plan: {type(error).__name__} {error}") from error
        return plan


def _lean(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not (key in _ADDED and item == _ADDED[key])}
        return {key: _lean(item) for key, item in kept.items()}
    return [_lean(item) for item in value] if isinstance(value, list | tuple) else value


def _node_from(data: Mapping[str, Any]) -> Node:
    match data["kind"]:
        case "parallel":
            return ParallelPlan(tuple(_unit_from(unit) for unit in data["nodes"]))
        case "sleep":
            return SleepPlan(**data)
        case "wait":
            reject_if = data.get("reject_if")
            if reject_if is not None:
                field, value = reject_if
                reject_if = (field, value)
            return WaitPlan(**{**data, "reject_if": reject_if})
        case _:
            return _unit_from(data)


def _unit_from(data: Mapping[str, Any]) -> Unit:
    if data["kind"] == "step":
        return _step_from(data)
    if data["kind"] == "fallback":
        breaker = data.get("breaker")
        return FallbackPlan(
            primary=_step_from(data["primary"]),
            fallback=_step_from(data["fallback"]),
            failure_codes=tuple(data["failure_codes"]),
            breaker=BreakerPlan(**{**breaker, "exclude": tuple(breaker["exclude"])}) if breaker else None,
        )
    raise DefinitionError(
        f"a plan's node of the kind {data['kind']!r}; this machine knows step, fallback, parallel, sleep and wait"
    )


def _step_from(data: Mapping[str, Any]) -> StepPlan:
    retries = {key: _retry_from(data[key]) for key in ("retry", "compensation_retry")}
    verify = data.get("verify_retry")
    return StepPlan(**{**data, **retries, "verify_retry": _retry_from(verify) if verify is not None else None})


def _retry_from(data: Mapping[str, Any]) -> RetryPlan:
    return RetryPlan(**{**data, "final_codes": tuple(data.get("final_codes", ()))})
