"""What a service's owner writes: which sagas and steps this worker serves, and where their handlers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from watership.adapters.circuit_breaker import Breakers, CircuitBreaker
from watership.adapters.containers import as_container
from watership.errors import DefinitionError
from watership.execution import Hands, checked_barrier
from watership.machine.lint import lint_name
from watership.machine.plan import Plan
from watership.messages import HandlerOnWire, StepCommand
from watership.saga.compat import Code, ServedStep
from watership.saga.compile import Definition, Step, compile_saga, context_of
from watership.saga.retry import RetryPolicy
from watership.saga.saga import SagaMap
from watership.saga.step import RemoteStep, declared_types, step_name, step_source
from watership_worker.breakers import breaker_of


class Worker:
    """The steps that one service serves. Run it with ``watership worker MODULE:NAME``.

    ``sagas_mapper`` binds sagas: their plans are announced, and all their steps that are not `Remote` are served.
    ``handlers`` are steps of sagas that live elsewhere; ``only`` narrows what is served to these steps, so that one
    saga's steps can be spread over several services. Raises `DefinitionError` on two different handlers of one name,
    or on a handler that does not name its context.

    ``barrier``: the type of the handlers' database session (``AsyncSession``, say), which ``di_container`` makes once for
    each command. Then every act and every compensation runs in one transaction of that session, behind the barrier (see
    `watership.barrier`), which the worker begins and commits: a handler does neither, and what it returns is answered to
    duplicates as well. Raises `ConfigurationError` without ``di_container``.
    """

    def __init__(
        self,
        di_container: object | None = None,
        sagas_mapper: Callable[[SagaMap], None] | SagaMap | None = None,
        handlers: Iterable[Step] = (),
        *,
        only: Iterable[Step] | None = None,
        compensation_retry: RetryPolicy | None = None,
        barrier: type[Any] | None = None,
    ) -> None:
        self._container = as_container(di_container)
        self._barrier = checked_barrier(barrier, di_container)
        self._breakers = Breakers()
        self._definitions = [
            compile_saga(saga, default_compensation_retry=compensation_retry)
            for saga in SagaMap.of(sagas_mapper).sagas()
        ]
        self._handlers: dict[str, tuple[Step, str, type]] = {}
        self._own_breakers: dict[str, CircuitBreaker] = {}
        wanted = None if only is None else {step_name(step) for step in only}
        for definition in self._definitions:
            self._add_saga(definition, wanted)
        for handler in handlers:
            self._add(handler, handler.queue or step_name(handler), _context_of(handler))
        if not self._handlers:
            raise DefinitionError("a worker that serves no step: give it sagas_mapper or handlers")

    def _add_saga(self, definition: Definition, wanted: set[str] | None) -> None:
        for name, step in definition.steps.items():
            if issubclass(step, RemoteStep) or (wanted is not None and name not in wanted):
                continue
            self._add(step, step.queue or name, context_of(step, definition.context_type))
            fallback = definition.fallbacks.get(name)
            if fallback is not None and fallback.circuit_breaker is not None:
                self._own_breakers[name] = fallback.circuit_breaker

    def _add(self, step: Step, queue: str, context: type) -> None:
        name = step_name(step)
        lint_name("a handler's name", name)
        lint_name("the name of its queue", queue, f"handler {name}: ")
        known = self._handlers.get(name)
        if known is not None and known[0] is not step:
            raise DefinitionError(
                f"two handlers are named {name}: {step_source(known[0])} and {step_source(step)}; a step's name is one within "
                f"a namespace: give one of them another `name`"
            )
        self._handlers[name] = (step, queue, context)

    def plans(self) -> list[Plan]:
        """The plans of this worker's sagas."""
        return [definition.plan for definition in self._definitions]

    def queues(self) -> list[str]:
        """The queues that this worker consumes, as plans name them."""
        return sorted({queue for _, queue, _ in self._handlers.values()})

    def announced(self) -> list[HandlerOnWire]:
        """What it says of its handlers when it registers."""
        return [
            HandlerOnWire(step=name, queue=queue, source=step_source(step))
            for name, (step, queue, _) in sorted(self._handlers.items())
        ]

    def code(self, where: str) -> Code:
        """What `watership plans compat` compares with the plans that are live."""
        served = {name: ServedStep(step, queue, context) for name, (step, queue, context) in self._handlers.items()}
        definitions = {definition.plan.saga: definition for definition in self._definitions}
        return Code(where, served, definitions, embeds=False)

    def hands(self, command: StepCommand) -> Hands | None:
        """How a command is run; None if this worker does not serve its step."""
        found = self._handlers.get(command.step)
        if found is None:
            return None
        step, _, context = found
        breaker = breaker_of(command, self._own_breakers, self._breakers)
        return Hands(step, context, self._container, breaker, barrier=self._barrier)


def _context_of(step: Step) -> type:
    declared = declared_types(step)[0]
    if not isinstance(declared, type):
        raise DefinitionError(
            f"handler {step_name(step)} does not name its context: write "
            f"class {step.__name__}(SagaStepHandler[Context, Response])"
        )
    return declared
