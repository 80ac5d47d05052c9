"""Runs one saga in this process, in memory and in virtual time: hours of retries pass at once."""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Generic

from watership.adapters.containers import as_container
from watership.chance import new_saga_id
from watership.clock import VirtualClock
from watership.errors import ConfigurationError, DefinitionError
from watership.machine import changes as c
from watership.machine.effects import NotifyStep, effects_of
from watership.machine.state import Action, Outcome, Status
from watership.saga.compile import Definition, compile_saga
from watership.saga.drivers import Drivers
from watership.saga.job import Job
from watership.saga.models import ContextT, shape_of
from watership.saga.saga import Saga
from watership.saga.signals import make_signal, signal_event
from watership.saga.step import RemoteStep
from watership.saga.storage.memory import MemorySagaStorage
from watership.saga.storage.protocol import EarlySignal, LogEntry, SagaLogEntry
from watership.saga.watch import SagaEnd
from watership.testing.stand_ins import AsyncFunction, StandIn, StandInContainer, stand_in_from


@dataclasses.dataclass(frozen=True)
class SagaRun(Generic[ContextT]):
    """How a saga went in a test.

    ``acted`` and ``compensated`` are step names in the order in which they were done. ``attempts`` and
    ``compensation_attempts`` count by step. ``error`` is what ``stream`` would raise, None if the saga completed.
    ``elapsed_ms`` is virtual: what the retries waited. ``history`` has a line for everything that befell a step.
    """

    saga_id: uuid.UUID
    status: Status
    context: ContextT
    acted: Sequence[str]
    compensated: Sequence[str]
    attempts: Mapping[str, int]
    compensation_attempts: Mapping[str, int]
    history: Sequence[SagaLogEntry]
    failed_step: str | None
    error: Exception | None
    parked_reason: str | None
    elapsed_ms: int


async def run(
    saga: type[Saga[ContextT]],
    context: ContextT,
    *,
    steps: Mapping[str, StandIn | AsyncFunction] | None = None,
    container: object | None = None,
    saga_id: uuid.UUID | None = None,
    signals: Mapping[str, Any] | None = None,
) -> SagaRun[ContextT]:
    """Runs ``saga`` to its end, or until it is parked, with stand-ins for the steps that ``steps`` names.

    ``signals``: what its ``Wait``s get, by name; one that gets none waits, in virtual time, until its timeout.
    Steps that it does not name run their own handlers, from ``container`` (None: made without arguments). Retries,
    fallbacks and compensation are those of production. ``context`` itself is not changed; the result has its own.
    Raises `DefinitionError` for a step or a signal that the saga does not have or whose data does not fit,
    `ConfigurationError` for a step that cannot run here.
    """
    definition = _isolated(compile_saga(saga))
    stand_ins = stand_ins_for(definition, steps or {})
    clock = VirtualClock()
    storage = MemorySagaStorage(now_ms=clock.monotonic_ms)
    drivers = Drivers(storage, clock, alone=True)
    wanted = saga_id or new_saga_id()
    job = Job(definition, StandInContainer(stand_ins, as_container(container)))
    started_ms = clock.monotonic_ms()
    try:
        for signal in _signals(definition, wanted, signals or {}):
            await storage.keep_signal(signal)
        drive = await drivers.start(job, shape_of(type(context)).dump(context), wanted)
        end = await drive.watch.end()
    finally:
        await drivers.close()
    error = end.exception(wanted)
    for fault in (error, error.__cause__ if error is not None else None):
        if isinstance(fault, ConfigurationError | DefinitionError):
            raise fault  # the test is written wrong: that is no failure of a step
    elapsed_ms = clock.monotonic_ms() - started_ms
    history = await storage.get_step_history(wanted)
    return _told(wanted, end, type(context), error, history, await storage.history(wanted), elapsed_ms)


def _signals(definition: Definition, saga_id: uuid.UUID, given: Mapping[str, Any]) -> list[EarlySignal]:
    saga, waits = definition.plan.saga, definition.plan.waits
    strange = sorted(set(given) - set(waits))
    if strange:
        known = ", ".join(waits) or "none"
        raise DefinitionError(f"{saga} waits for no signal {', '.join(strange)}; its signals: {known}")
    made = [make_signal(saga_id, name, data, f"test:{name}") for name, data in given.items()]
    for signal in made:
        trouble = signal_event(definition, signal).trouble
        if trouble is not None:
            raise DefinitionError(f"signals[{signal.name!r}] does not fit {saga}: {trouble}")
    return made


def _isolated(definition: Definition) -> Definition:
    """With circuit breakers of its own: what one test broke, the next finds closed."""
    fallbacks = {}
    for name, fallback in definition.fallbacks.items():
        breaker = fallback.circuit_breaker
        if breaker is not None:
            from watership.adapters.circuit_breaker import Breakers

            breaker = Breakers().of(name, breaker.settings)
        fallbacks[name] = dataclasses.replace(fallback, circuit_breaker=breaker)
    return dataclasses.replace(definition, fallbacks=fallbacks)


def stand_ins_for(definition: Definition, steps: Mapping[str, StandIn | AsyncFunction]) -> dict[str, StandIn]:
    """The stand-ins that a test gives. Raises `DefinitionError`, `ConfigurationError`: see `run`."""
    saga = definition.plan.saga
    strange = sorted(set(steps) - set(definition.steps))
    if strange:
        raise DefinitionError(f"{saga} has no step {', '.join(strange)}; its steps are {', '.join(definition.steps)}")
    for name, step in definition.steps.items():
        if issubclass(step, RemoteStep) and name not in steps:
            raise ConfigurationError(
                f"step {name} of {saga} is Remote, its code is not here: give it a stand-in, "
                f"steps={{{name!r}: succeeds()}}"
            )
    return {name: stand_in_from(name, given) for name, given in steps.items()}


def _told(
    saga_id: uuid.UUID,
    end: SagaEnd,
    context_type: type[Any],
    error: Exception | None,
    history: Sequence[SagaLogEntry],
    log: Sequence[LogEntry],
    elapsed_ms: int,
) -> SagaRun[Any]:
    changes = [change for entry in log for change in entry.changes]
    done = [change for change in changes if isinstance(change, c.Replied) and change.outcome is Outcome.DONE]
    acted = [
        effect.step
        for entry in log
        for effect in effects_of(entry.seq, entry.changes)
        if isinstance(effect, NotifyStep)
    ]
    sent = [change for change in changes if isinstance(change, c.Dispatched)]
    return SagaRun(
        saga_id=saga_id,
        status=end.status,
        context=shape_of(context_type).load(end.context),
        acted=acted,
        compensated=[change.step for change in done if change.action is Action.COMPENSATE],
        attempts=Counter(change.step for change in sent if change.action is Action.ACT),
        compensation_attempts=Counter(change.step for change in sent if change.action is Action.COMPENSATE),
        history=history,
        failed_step=end.failure.step if end.failure is not None else None,
        error=error,
        parked_reason=end.parked_reason,
        elapsed_ms=elapsed_ms,
    )
