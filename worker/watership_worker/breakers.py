"""Which circuit breaker guards a command: the one of the saga in this process, else one made from the plan's settings."""

from __future__ import annotations

from collections.abc import Mapping

from watership.adapters.circuit_breaker import Breakers, BreakerSettings, CircuitBreaker
from watership.messages import StepCommand


def breaker_of(command: StepCommand, own: Mapping[str, CircuitBreaker], registry: Breakers) -> CircuitBreaker | None:
    """The breaker of a command's step; None if its plan has none."""
    if command.breaker is None:
        return None
    found = own.get(command.step)
    if found is not None:
        return found
    settings = BreakerSettings(
        fail_max=int(command.breaker["fail_max"]),
        timeout_duration_s=float(command.breaker["timeout_duration_s"]),
        exclude=tuple(command.breaker.get("exclude", ())),
    )
    return registry.of(command.step, settings)
