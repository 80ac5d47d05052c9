"""A primary step and its stand-in."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from watership.saga.step import SagaStepHandler

if TYPE_CHECKING:
    from watership.adapters.circuit_breaker import CircuitBreaker


@dataclasses.dataclass(frozen=True)
class Fallback:
    """``fallback`` acts where ``step`` failed, with one of ``failure_exceptions`` or, if there are none, with any.

    A failed primary's changes to the context do not reach the fallback. A primary whose outcome is unknown is
    compensated before the fallback acts. With a ``circuit_breaker``, a primary that keeps failing is not called.
    """

    step: type[SagaStepHandler[Any, Any]]
    fallback: type[SagaStepHandler[Any, Any]]
    failure_exceptions: tuple[type[Exception], ...] = ()
    circuit_breaker: CircuitBreaker | None = None
