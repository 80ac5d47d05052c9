"""What acts in a step's place in a test. Stand-ins keep no state: one may be used for many steps and many runs."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from watership.container import Container, Scope
from watership.errors import DefinitionError, OutcomeUnknown, StepError
from watership.saga.compile import Step
from watership.saga.step import SagaStepHandler, current_step, step_name

T = TypeVar("T")
Resolve = Callable[[], Awaitable[SagaStepHandler[Any, Any]]]
Part = Callable[[Any, Resolve], Awaitable[Any]]
AsyncFunction = Callable[[Any], Awaitable[Any]]


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What a step does in a test. Made by `succeeds`, `fails`, `unknown`, `compensation_fails` and `real`.

    ``act`` and ``compensate`` take the context, and what builds the real handler where it is wanted.
    """

    act: Part
    compensate: Part


def succeeds(response: Any = None, patch: Mapping[str, Any] | None = None) -> StandIn:
    """The act sets the fields of ``patch`` in the context and answers ``response``; the compensation does nothing."""

    async def act(context: Any, _: Resolve) -> Any:
        for name, value in (patch or {}).items():
            if not hasattr(context, name):
                raise DefinitionError(f"succeeds(patch=...): {type(context).__name__} has no field {name!r}")
            object.__setattr__(context, name, value)
        return response

    return StandIn(act, _nothing)


def fails(
    error: type[Exception] | Exception = StepError, times: int | None = None, *, then: StandIn | None = None
) -> StandIn:
    """The act raises ``error``: it had no effect.

    ``times``: only the first so many attempts do; later ones, and the compensation, are those of ``then``, which is
    `succeeds` unless you say `real`.
    """
    return _act_raises(lambda: error if isinstance(error, Exception) else _made(error), times, then)


def unknown(times: int | None = None, *, then: StandIn | None = None) -> StandIn:
    """The act cannot tell whether it had its effect: it will be retried, or undone. ``times``, ``then``: as in `fails`."""
    return _act_raises(lambda: OutcomeUnknown("a stand-in: nobody knows whether it acted"), times, then)


def compensation_fails(
    error: type[Exception] | Exception = StepError, times: int | None = None, *, act: StandIn | None = None
) -> StandIn:
    """The act is that of ``act``, `succeeds` unless you say otherwise; the compensation raises ``error``.

    ``times``: only the first so many attempts of the compensation do. None: all, so the saga is parked.
    """
    inner = act or succeeds()

    async def compensate(context: Any, resolve: Resolve) -> Any:
        if times is None or current_step().attempt <= times:
            raise error if isinstance(error, Exception) else _made(error)
        return await inner.compensate(context, resolve)

    return StandIn(inner.act, compensate)


def real() -> StandIn:
    """The step's own handler, from the container: ``fails(CardDeclined, times=2, then=real())``."""

    async def act(context: Any, resolve: Resolve) -> Any:
        return await (await resolve()).act(context)

    async def compensate(context: Any, resolve: Resolve) -> Any:
        return await (await resolve()).compensate(context)

    return StandIn(act, compensate)


def stand_in_from(step: str, given: object) -> StandIn:
    """What was given for a step: a `StandIn`, or an async function that takes the context and acts."""
    if isinstance(given, StandIn):
        return given
    if callable(given) and not isinstance(given, type):
        function = cast("AsyncFunction", given)

        async def act(context: Any, _: Resolve) -> Any:
            return await function(context)

        return StandIn(act, _nothing)
    raise DefinitionError(
        f"steps[{step!r}] is {given!r}; give a stand-in (succeeds(), fails(...), unknown(), compensation_fails(), "
        f"real()) or an async function that takes the context"
    )


class StandInContainer:
    """Gives stand-ins for the steps that have one, and what ``inner`` gives for the others."""

    def __init__(self, stand_ins: Mapping[str, StandIn], inner: Container) -> None:
        self._stand_ins = stand_ins
        self._inner = inner

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        """A scope of the inner container, with stand-ins in front."""
        async with self._inner.scope() as inner:
            yield _StandInScope(self._stand_ins, inner)


class _StandInScope:
    def __init__(self, stand_ins: Mapping[str, StandIn], inner: Scope) -> None:
        self._stand_ins = stand_ins
        self._inner = inner

    async def resolve(self, handler: type[T]) -> T:
        stand_in = self._stand_ins.get(step_name(cast("Step", handler)))
        if stand_in is None:
            return await self._inner.resolve(handler)

        async def build() -> SagaStepHandler[Any, Any]:
            return cast("SagaStepHandler[Any, Any]", await self._inner.resolve(handler))

        return cast("T", _StandInHandler(stand_in, build))


class _StandInHandler:
    def __init__(self, stand_in: StandIn, build: Resolve) -> None:
        self._stand_in = stand_in
        self._build = build

    async def act(self, context: Any) -> Any:
        return await self._stand_in.act(context, self._build)

    async def compensate(self, context: Any) -> Any:
        return await self._stand_in.compensate(context, self._build)


async def _nothing(context: Any, resolve: Resolve) -> None:
    """Has no effect, so nothing to undo."""


def _act_raises(make: Callable[[], Exception], times: int | None, then: StandIn | None) -> StandIn:
    after = then or succeeds()

    async def act(context: Any, resolve: Resolve) -> Any:
        if times is None or current_step().attempt <= times:
            raise make()
        return await after.act(context, resolve)

    return StandIn(act, after.compensate)


def _made(error: type[Exception]) -> Exception:
    try:
        return error()
    except TypeError as why:
        raise DefinitionError(
            f"a stand-in cannot make a {error.__name__} without arguments ({why}): give it an instance"
        ) from why
