"""Circuit breakers: after too many failures in a row, a step is not called for a while. The only user of aiobreaker.

aiobreaker counts and switches between closed, open and half-open; this file runs the call and keeps the time, because
that library replaces the failure that trips it, lets every waiting call through when it is half-open, takes an excluded
error for a success, and reads a naive clock. A breaker must never know a saga, a context or a broker.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from watership.errors import ConfigurationError, StepError, error_code, error_lineage

T = TypeVar("T")

log = logging.getLogger(__name__)


class CircuitOpen(StepError):
    """The step was not called, because it failed too often: it had no effect."""

    code = "circuit_open"


class SettingsLike(Protocol):
    """What a breaker is made of, wherever it is written down: `BreakerSettings`, or the plan's own record."""

    @property
    def fail_max(self) -> int: ...
    @property
    def timeout_duration_s(self) -> float: ...
    @property
    def exclude(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class BreakerSettings:
    """A breaker as data, so that it can travel in a plan. ``exclude`` has error codes, not classes."""

    fail_max: int = 5
    timeout_duration_s: float = 60.0
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.fail_max < 1:
            raise ConfigurationError(f"fail_max of a circuit breaker is {self.fail_max}; it is at least 1")
        if not self.timeout_duration_s > 0:
            raise ConfigurationError(
                f"timeout_duration of a circuit breaker is {self.timeout_duration_s} s; it is more than 0"
            )


class CircuitBreaker(Protocol):
    """Guards calls, each identifier (a step's name) by a circuit of its own."""

    @property
    def settings(self) -> SettingsLike:
        """What travels in the plan; the state does not."""
        ...

    async def call(self, identifier: str, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()``, or raise `CircuitOpen` without calling it.

        What the function raises is raised as it is. A timeout belongs inside the function: one outside of it arrives
        here as a cancellation, which says nothing about the step.
        """
        ...


class AioBreakerAdapter:
    """Opens after ``fail_max`` failures in a row; after ``timeout_duration`` seconds it lets one trial call through.

    The trial decides: a success closes the circuit, a failure opens it again. Errors of the classes in ``exclude``,
    and cancellations, count neither as failures nor as successes. The state lives in this object.
    """

    def __init__(
        self,
        fail_max: int = 5,
        timeout_duration: float = 60,
        exclude: Sequence[type[Exception]] = (),
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        codes = tuple(error_code(error) for error in exclude)
        self._settings = BreakerSettings(fail_max, float(timeout_duration), codes)
        self._now = now
        self._circuits: dict[str, _Circuit] = {}

    @property
    def settings(self) -> BreakerSettings:
        """What travels in the plan."""
        return self._settings

    async def call(self, identifier: str, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()``, or raise `CircuitOpen` without calling it."""
        circuit = self._circuits.get(identifier)
        if circuit is None:
            circuit = self._circuits[identifier] = _Circuit(identifier, self._settings, self._now)
        return await circuit.call(function)


class Breakers:
    """The breakers of one process. The same step with the same settings shares one circuit, whatever its saga."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._breakers: dict[tuple[str, BreakerSettings], AioBreakerAdapter] = {}

    def of(self, step_name: str, settings: SettingsLike) -> CircuitBreaker:
        """The breaker of a step. Changed settings begin with a closed circuit."""
        own = BreakerSettings(settings.fail_max, settings.timeout_duration_s, tuple(settings.exclude))
        breaker = self._breakers.get((step_name, own))
        if breaker is None:
            breaker = self._breakers[step_name, own] = breaker_for(own, now=self._now)
        return breaker


def breaker_for(settings: BreakerSettings, *, now: Callable[[], float] = time.monotonic) -> AioBreakerAdapter:
    """A breaker from settings that came with a plan: their errors are codes already."""
    breaker = AioBreakerAdapter(now=now)
    breaker._settings = settings  # noqa: SLF001 - of this very module
    return breaker


class _Circuit:
    """One identifier's circuit. Between two awaits nothing else runs, so it needs no lock."""

    def __init__(self, identifier: str, settings: BreakerSettings, now: Callable[[], float]) -> None:
        self._identifier, self._settings, self._now = identifier, settings, now
        self._aiobreaker = _import_aiobreaker()
        self._breaker = _new_breaker(self._aiobreaker, settings)
        self._changed_at_s = now()
        self._era = 0  # counts the changes of state
        self._trial_is_running = False

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        is_trial = self._admit()
        era = self._era
        try:
            result = await function()
        except Exception as error:
            if not self._is_excluded(error):
                self._record(era, failed=True)
            raise
        else:
            self._record(era, failed=False)
            return result
        finally:  # a cancelled trial comes by here alone: the next call is the trial then
            if is_trial:
                self._trial_is_running = False

    def _admit(self) -> bool:
        """Whether the call is the trial of a half-open circuit. Raises CircuitOpen if it may not run."""
        states = self._aiobreaker.CircuitBreakerState
        if self._breaker.current_state is states.CLOSED:
            return False
        if self._breaker.current_state is states.OPEN:
            left_s = self._changed_at_s + self._settings.timeout_duration_s - self._now()
            if left_s > 0:
                raise CircuitOpen(
                    f"{self._identifier} was not called: its circuit breaker is open because it kept "
                    f"failing; the next trial is in {left_s:.1f} s"
                )
            self._breaker.half_open()
            self._changed()
        if self._trial_is_running:
            raise CircuitOpen(
                f"{self._identifier} was not called: its circuit breaker is half-open, and one trial call is under way"
            )
        self._trial_is_running = True
        return True

    def _record(self, era: int, *, failed: bool) -> None:
        """Tells aiobreaker an outcome; the error itself never goes through it, so it keeps its type."""
        if era != self._era:
            return  # a call from before the last change says nothing about the step as it is now
        before = self._breaker.current_state

        def outcome() -> None:
            if failed:
                raise _CallFailed

        with contextlib.suppress(_CallFailed, self._aiobreaker.CircuitBreakerError):
            self._breaker.call(outcome)
        if self._breaker.current_state is not before:
            self._changed()

    def _changed(self) -> None:
        self._era += 1
        self._changed_at_s = self._now()
        state = self._breaker.current_state.name.lower().replace("_", "-")
        level = logging.WARNING if state == "open" else logging.INFO
        log.log(level, "the circuit breaker of step %s is %s", self._identifier, state)

    def _is_excluded(self, error: Exception) -> bool:
        return any(code in self._settings.exclude for code in error_lineage(type(error)))


class _CallFailed(Exception):
    """Stands for the step's own error in what aiobreaker is told."""


def _import_aiobreaker() -> Any:
    try:
        import aiobreaker
    except ImportError as error:
        raise ConfigurationError("a circuit breaker needs aiobreaker: pip install 'watership[breaker]'") from error
    return aiobreaker


def _new_breaker(aiobreaker: Any, settings: BreakerSettings) -> Any:
    class Breaker(aiobreaker.CircuitBreaker):  # type: ignore[misc]  # the library ships no types
        opens_at = None  # aiobreaker's own mixes up local time and UTC

        def open(self) -> None:
            # As in aiobreaker, but without utcnow(), which warns from Python 3.12 on.
            self._state_storage.opened_at = datetime.now(UTC).replace(tzinfo=None)  # noqa: TID251 - aiobreaker wants it
            self.state = self._state_storage.state = aiobreaker.CircuitBreakerState.OPEN

    return Breaker(fail_max=settings.fail_max, timeout_duration=timedelta(seconds=settings.timeout_duration_s))
