"""A plan: the JSON that a saga definition compiles to, named by its content hash. A running saga stays on its plan.

It must never know a Saga class, a handler or a queue's broker: names and numbers only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from watership.errors import DefinitionError

PLAN_VERSION = 1
STEPS_MAX = 1_000
ATTEMPTS_MAX = 1_000_000
DELAY_MS_MAX = 604_800_000  # seven days
# RabbitMQ takes a command back that is not acknowledged within 30 minutes: a longer run would be run twice.
TIMEOUT_MS_MAX = 1_500_000


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPlan:
    """How often an action is tried, and how long apart. ``attempts_max`` counts all attempts, the first included."""

    attempts_max: int = 1
    delay_ms: int = 0
    backoff: float = 2.0
    delay_max_ms: int = 300_000
    jitter: float = 0.0

    def delay_before_ms(self, attempt: int, *, salt: str) -> int:
        """The wait before ``attempt`` (2 is the first retry).

        Jitter comes from ``salt`` by a checksum, not from chance: the machine stays pure, and sagas still spread out.
        """
        if attempt <= 1 or self.delay_ms == 0:
            return 0
        try:
            delay = min(self.delay_ms * self.backoff ** (attempt - 2), float(self.delay_max_ms))
        except OverflowError:
            delay = float(self.delay_max_ms)
        spread = zlib.crc32(f"{salt}:{attempt}".encode()) / 0xFFFF_FFFF
        return int(delay * (1.0 + self.jitter * spread))


@dataclasses.dataclass(frozen=True, slots=True)
class BreakerPlan:
    """A circuit breaker's settings. Its state lives in each worker process."""

    fail_max: int
    timeout_duration_s: float
    exclude: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. ``compensable`` False: nothing to undo, so no command is sent for it."""

    name: str
    queue: str
    retry: RetryPlan = RetryPlan()
    compensation_retry: RetryPlan = RetryPlan(attempts_max=3, delay_ms=1_000)
    timeout_ms: int = 60_000
    queue_within_ms: int = 300_000
    compensable: bool = True
    kind: Literal["step"] = "step"


@dataclasses.dataclass(frozen=True, slots=True)
class FallbackPlan:
    """A primary step and the one that acts in its place when it failed with one of ``failure_codes`` (empty: any)."""

    primary: StepPlan
    fallback: StepPlan
    failure_codes: tuple[str, ...] = ()
    breaker: BreakerPlan | None = None
    kind: Literal["fallback"] = "fallback"

    def takes_over_from(self, lineage: tuple[str, ...]) -> bool:
        """Whether an error with these codes, most specific first, is one that the fallback answers."""
        return not self.failure_codes or any(code in self.failure_codes for code in lineage)


Node = StepPlan | FallbackPlan


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a saga in order, and the JSON Schema of its context."""

    saga: str
    nodes: tuple[Node, ...]
    context_schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def steps(self) -> Iterator[StepPlan]:
        """Every step, a fallback's primary before its fallback."""
        for node in self.nodes:
            yield from members(node)

    @cached_property
    def by_name(self) -> Mapping[str, StepPlan]:
        """Step name to step."""
        return {step.name: step for step in self.steps()}

    @cached_property
    def node_of(self) -> Mapping[str, Node]:
        """Step name to the node that holds it."""
        return {step.name: node for node in self.nodes for step in members(node)}

    @cached_property
    def hash(self) -> str:
        """The plan's name: the first 32 hex digits of the SHA-256 of its canonical JSON."""
        canonical = json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def to_data(self) -> dict[str, Any]:
        """Plain JSON data; `from_data` reads it back."""
        return {
            "v": PLAN_VERSION,
            "saga": self.saga,
            "nodes": [dataclasses.asdict(node) for node in self.nodes],
            "context_schema": dict(self.context_schema),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Plan:
        """Reads what `to_data` wrote. Raises `DefinitionError` with what is wrong about it."""
        try:
            if data["v"] != PLAN_VERSION:
                raise DefinitionError(f"a plan of version {data['v']}; this machine reads version {PLAN_VERSION}")
            nodes = tuple(_node_from(node) for node in data["nodes"])
            plan = cls(saga=data["saga"], nodes=nodes, context_schema=data.get("context_schema", {}))
            lint(plan)
        except DefinitionError:
            raise
        except (KeyError, TypeError, AttributeError) as error:
            raise DefinitionError(f"not a plan: {type(error).__name__} {error}") from error
        return plan


def members(node: Node) -> tuple[StepPlan, ...]:
    """The steps of one node, in the order in which they may act."""
    return (node.primary, node.fallback) if isinstance(node, FallbackPlan) else (node,)


def lint(plan: Plan) -> None:
    """Refuses a plan that could not run right. Raises `DefinitionError` that names the saga and the step."""
    lint_names(plan.saga, [step.name for step in plan.steps()])
    for step in plan.steps():
        _lint_step(plan.saga, step)


def lint_names(saga: str, names: Sequence[str]) -> None:
    """Refuses a saga without steps, with a step twice, or with too many."""
    if not names:
        raise DefinitionError(f"{saga} has no steps; list at least one")
    if len(names) > STEPS_MAX:
        raise DefinitionError(f"{saga} has {len(names)} steps, the limit is {STEPS_MAX}")
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(
                f"{saga} lists the step {name} twice; a step's name is unique within a saga: "
                f"give one of them another name, by a subclass or by `name = ...`"
            )


def _lint_step(saga: str, step: StepPlan) -> None:
    where = f"{saga}.{step.name}"
    for label, retry in (("retry", step.retry), ("compensation_retry", step.compensation_retry)):
        _lint_number(f"{where}: {label}: its attempts", retry.attempts_max, 1, ATTEMPTS_MAX)
        _lint_number(f"{where}: {label}: its delay in ms", retry.delay_ms, 0, DELAY_MS_MAX)
        _lint_number(f"{where}: {label}: its longest delay in ms", retry.delay_max_ms, 0, DELAY_MS_MAX)
        if not retry.backoff >= 1.0 or not retry.jitter >= 0.0:
            raise DefinitionError(f"{where}: {label} needs a backoff of 1 or more and a jitter of 0 or more")
    _lint_number(f"{where}: timeout_s in ms", step.timeout_ms, 1, TIMEOUT_MS_MAX)
    _lint_number(f"{where}: queue_within_s in ms", step.queue_within_ms, 1, DELAY_MS_MAX)


def _lint_number(what: str, value: object, least: int, most: int) -> None:
    """Plans come from elsewhere, too: a number that the broker or a column cannot take would disturb other sagas."""
    if type(value) is not int or not least <= value <= most:
        raise DefinitionError(f"{what} must be a whole number from {least} to {most}, it is {value!r}")


def _node_from(data: Mapping[str, Any]) -> Node:
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
    raise DefinitionError(f"a plan's node of the kind {data['kind']!r}; this machine knows step and fallback")


def _step_from(data: Mapping[str, Any]) -> StepPlan:
    retries = {key: RetryPlan(**data[key]) for key in ("retry", "compensation_retry")}
    return StepPlan(**{**data, **retries})
