"""What a plan is made of: steps, fallbacks, parallel groups, sleeps and waits, as data with names and numbers only."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any, Literal

STEPS_MAX = 1_000
ATTEMPTS_MAX = 1_000_000
DELAY_MS_MAX = 604_800_000  # seven days
JITTER_MAX = 10
# AMQP's short strings hold 255 bytes. With the longest namespace, the names of a saga, a step and a queue go into
#   a queue's name       <namespace: 100>.step.<queue>                                        106 and the name
#   an event's key       saga.<saga>.<event: 100>                                             106 and the name
#   a command's id       <id: 36>:<step>:compensate:<attempt: 10>:<generation: 10>             70 and the name
#   a reply's id         <id: 36>:<step>:compensate:<attempt: 10>:<run: 16>                    76 and the name
NAME_BYTES_MAX = 149
PAUSE_NAME_CHARS_MAX = 200  # a Sleep or a Wait, whose names go into the database alone
PAUSE_MS_MAX = 31_622_400_000  # a year, and a leap day: how long a Sleep or a Wait may last
# RabbitMQ takes a command back that is not acknowledged within 30 minutes: a longer run would be run twice.
TIMEOUT_MS_MAX = 1_500_000


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPlan:
    """How often an action is tried, and how long apart. ``attempts_max`` counts all attempts; None: without end.

    ``final_codes``: errors that no further attempt could mend.
    """

    attempts_max: int | None = 1
    delay_ms: int = 0
    backoff: float = 2.0
    delay_max_ms: int = 300_000
    jitter: float = 0.0
    final_codes: tuple[str, ...] = ()

    def allows_another(self, attempts: int, lineage: tuple[str, ...]) -> bool:
        """Whether another attempt may follow ``attempts`` of them, the last of which ended with such an error."""
        if any(code in self.final_codes for code in lineage):
            return False
        return self.attempts_max is None or attempts < self.attempts_max

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
    """One step. ``compensable`` False: nothing to undo, so no command is sent for it.

    ``verify_retry``: how often an unknown act is asked about; None: the step cannot be asked. ``rerun`` False: a run
    that may have begun is never begun again; its outcome is unknown instead.
    """

    name: str
    queue: str
    retry: RetryPlan = RetryPlan()
    compensation_retry: RetryPlan = RetryPlan(attempts_max=3, delay_ms=1_000)
    timeout_ms: int = 60_000
    queue_within_ms: int = 300_000
    compensable: bool = True
    kind: Literal["step"] = "step"
    verify_retry: RetryPlan | None = None
    rerun: bool = True


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


@dataclasses.dataclass(frozen=True, slots=True)
class ParallelPlan:
    """Steps and fallbacks that act at the same time, and are compensated together."""

    nodes: tuple[StepPlan | FallbackPlan, ...]
    kind: Literal["parallel"] = "parallel"


@dataclasses.dataclass(frozen=True, slots=True)
class SleepPlan:
    """A pause. It has a name, as a step has, under which the saga's state keeps its moment."""

    name: str
    duration_ms: int
    kind: Literal["sleep"] = "sleep"


@dataclasses.dataclass(frozen=True, slots=True)
class WaitPlan:
    """Waits for the signal ``name``, whose data goes into the context's field ``into`` (None: nowhere).

    ``on_timeout``: what follows when none came in ``timeout_ms``. ``reject_if``: a field of the data and the value of
    it that turns the saga around.
    """

    name: str
    into: str | None
    timeout_ms: int
    on_timeout: Literal["compensate", "continue"] = "compensate"
    reject_if: tuple[str, Any] | None = None
    kind: Literal["wait"] = "wait"

    def rejects(self, data: Any) -> bool:
        """Whether this signal turns the saga around."""
        if self.reject_if is None or not isinstance(data, dict):
            return False
        field, value = self.reject_if
        found = data.get(field, self)  # a field that is not there equals no value
        return type(found) is type(value) and found == value


Unit = StepPlan | FallbackPlan
Node = Unit | ParallelPlan | SleepPlan | WaitPlan


def members(node: Node) -> tuple[StepPlan, ...]:
    """The steps of one node, in the order in which they may act; none for a sleep or a wait."""
    match node:
        case StepPlan():
            return (node,)
        case FallbackPlan():
            return (node.primary, node.fallback)
        case ParallelPlan():
            return tuple(step for unit in node.nodes for step in members(unit))
        case _:
            return ()


def units(node: Node) -> tuple[Unit, ...]:
    """What of a node comes to an end of its own: each member of a group; none for a sleep or a wait."""
    if isinstance(node, ParallelPlan):
        return node.nodes
    return () if isinstance(node, SleepPlan | WaitPlan) else (node,)


def names(node: Node) -> Iterator[str]:
    """Every name that a node takes in its saga."""
    if isinstance(node, SleepPlan | WaitPlan):
        yield node.name
    for step in members(node):
        yield step.name
