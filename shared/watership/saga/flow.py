"""What stands among a saga's steps beside steps: groups that act at the same time, pauses, and waits for a signal."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from watership.errors import DefinitionError
from watership.saga.fallback import Fallback
from watership.saga.step import SagaStepHandler

DAY_S = 86_400.0


@dataclasses.dataclass(frozen=True, init=False)
class Parallel:
    """Steps and fallbacks that act at the same time: ``Parallel(ReserveStock, CheckFraud)``.

    The saga goes on when all are done. When one fails, what the others did, or are doing, is undone: they are
    compensated together, once each has an outcome. They must be independent: none may read a field of the context
    that another one writes.
    """

    steps: tuple[type[SagaStepHandler[Any, Any]] | Fallback, ...]

    def __init__(self, *steps: type[SagaStepHandler[Any, Any]] | Fallback) -> None:
        object.__setattr__(self, "steps", steps)


@dataclasses.dataclass(frozen=True)
class Sleep:
    """A pause of so many seconds, kept in the saga's log: no process waits. ``name`` tells it apart in the log."""

    seconds: float
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Wait:
    """Waits for the signal ``name``: ``await mediator.signal(saga_id, "approval", {"approved": True})``.

    ``into``: the context's field that gets the signal's data, which must fit that field's type. ``timeout_s``: how long
    to wait; then ``on_timeout`` compensates the saga, or lets it continue. ``reject_if``: a field of the data and the
    value that turns the saga around: ``("approved", False)``. A signal that comes early is kept.
    """

    name: str
    into: str | None = None
    timeout_s: float = DAY_S
    on_timeout: Literal["compensate", "continue"] = "compensate"
    reject_if: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 200:
            raise DefinitionError(
                f"a Wait is named after its signal, with 1 to 200 characters; this name is {self.name!r}"
            )
        if self.reject_if is not None and not (isinstance(self.reject_if, tuple) and len(self.reject_if) == 2):
            raise DefinitionError(f'Wait {self.name}: reject_if is a field and its value, like ("approved", False)')
