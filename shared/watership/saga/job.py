"""What a drive is given: the saga's classes, how it starts, and what the drives of one store share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from uuid import UUID

from watership import codec
from watership.clock import Clock
from watership.container import Container
from watership.errors import SagaConflict, WatershipError
from watership.execution import Hands
from watership.saga.compile import Definition, context_of
from watership.saga.storage.protocol import LeaseKeeper, SagaRecord, SagaStorage
from watership.values import value

FOLLOW_EVERY_MS = 250
LEARNED_WITHIN_MS = 1_000


class LetGo(WatershipError):
    """This process stopped driving the saga; recovery, or whoever asks for it next, goes on with it."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a saga is driven with: its classes, and where its handlers come from. One serves all sagas of its class."""

    definition: Definition
    container: Container
    build_context: Callable[[dict[str, Any]], Any] | None = None
    barrier: type[Any] | None = None
    _hands: dict[str, Hands | None] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def hands(self, step: str) -> Hands | None:
        """How a step is run; None if this process has no such step."""
        if step not in self._hands:
            self._hands[step] = self._hands_of(step)
        return self._hands[step]

    def _hands_of(self, step: str) -> Hands | None:
        handler = self.definition.steps.get(step)
        if handler is None:
            return None
        fallback = self.definition.fallbacks.get(step)
        breaker = fallback.circuit_breaker if fallback is not None else None
        context = context_of(handler, self.definition.context_type)
        return Hands(handler, context, self.container, breaker, self.build_context, self.barrier)


@value
class Start:
    """A saga that is to be made if it is not there yet. ``saga_id``: in words, as the machine has it."""

    saga_id: str
    context: dict[str, Any]
    input_hash: str

    @classmethod
    def of(cls, name: str, context: dict[str, Any], saga_id: UUID) -> Start:
        """Checks the context and its size. Raises `InvalidPayload` or `LimitExceeded`."""
        words = str(saga_id)
        return cls(words, context, codec.checked_hash(name, context, what=f"saga {name} {words}: the context"))

    # Law 11: the same id and input is the same saga; anything else is a conflict.
    def check_same(self, record: SagaRecord, name: str) -> None:
        """Raises `SagaConflict` if the record is not of this start of a saga ``name``."""
        if record.state.name != name:
            raise SagaConflict(f"the id {record.saga_id} belongs to a saga {record.state.name}; use another id")
        if record.input_hash != self.input_hash:
            raise SagaConflict(
                f"saga {name} {record.saga_id} was started with other input; use another id, or the same input"
            )


def _nothing(_: Any) -> None:
    pass


@dataclasses.dataclass
class Seat:
    """What the drives of one store in one event loop share. ``plans_kept``: hashes that the store has for certain.

    ``follow_every_ms``: how soon to look whether somebody else moved a saga that sleeps; ever less often after that.
    ``forget``: what a drive calls at its very end.
    """

    storage: SagaStorage
    clock: Clock
    keeper: LeaseKeeper | None
    plans_kept: set[str] = dataclasses.field(default_factory=set)
    follow_every_ms: int = FOLLOW_EVERY_MS
    forget: Callable[[Any], None] = _nothing
    _offset_ms: int = 0
    _learned_at_ms: int | None = None

    def learn(self, now_ms: int) -> int:
        """Takes in what the store's clock said just now: by how much it is ahead of ours."""
        self._learned_at_ms = self.clock.monotonic_ms()
        self._offset_ms = now_ms - self._learned_at_ms
        return self._offset_ms

    async def now_ms(self) -> int:
        """The store's clock (law 9). Asked only if it has said nothing for a second: each new lease tells it, too."""
        at_ms = self.clock.monotonic_ms()
        if self._learned_at_ms is None or not 0 <= at_ms - self._learned_at_ms <= LEARNED_WITHIN_MS:
            self.learn(await self.storage.now_ms())
            at_ms = self.clock.monotonic_ms()
        return at_ms + self._offset_ms
