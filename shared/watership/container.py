"""Where handlers come from: one protocol over the DI containers that users already have.

A container opens a fresh scope for every command and closes it afterwards, whatever happened in between. This module
must never know a broker, a saga, a store or a DI library: `watership.adapters.containers` chooses among those.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, Self, TypeVar, cast

from watership.errors import ConfigurationError

T = TypeVar("T")

ACCEPTED = (
    "a di.Container, a dishka.AsyncContainer, an instance of a dependency_injector container, "
    "an object with `async resolve(type)`, or one with `scope()` as in watership.container.Container"
)


class Scope(Protocol):
    """What lives as long as one command: one session, one unit of work, one handler."""

    async def resolve(self, handler: type[T]) -> T:
        """A handler with all that its constructor needs. ConfigurationError says what is missing."""
        ...


class Container(Protocol):
    """Opens scopes. Many are open at once, and none of them sees another."""

    def scope(self) -> AbstractAsyncContextManager[Scope]:
        """A fresh scope for one command. Finalisers run at its exit, on an error and on a cancellation too.

        It must not swallow the error that passes through it: a step that failed would look as if it was done.
        """
        ...


class PlainContainer:
    """No DI: a handler is built anew for each command, without arguments."""

    def scope(self) -> AbstractAsyncContextManager[Scope]:
        """A scope that holds nothing and has nothing to close."""
        return _PLAIN_SCOPE


class _OpenScope:
    """A scope that nothing opens or closes: entering it gives itself."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class _PlainScope(_OpenScope):
    async def resolve(self, handler: type[T]) -> T:
        return built(handler)


def built(handler: type[T]) -> T:
    """A handler that needs nothing."""
    missing = _needs[handler] if handler in _needs else _needed(handler)
    if missing is not None:
        raise ConfigurationError(
            f"{handler.__name__} cannot be built: its __init__ needs {missing!r}. "
            f"Pass di_container=, a container that knows how to make it; it can be {ACCEPTED}"
        )
    return handler()


_PLAIN_SCOPE = _PlainScope()
_needs: dict[type[Any], str | None] = {}


def _needed(handler: type[Any]) -> str | None:
    """The first constructor argument that has no default; looked up once for each class."""
    if handler not in _needs:
        parameters = constructor_parameters(handler)
        _needs[handler] = next((p.name for p in parameters if p.default is p.empty), None)
    return _needs[handler]


class ResolverContainer:
    """Adapts an object with ``resolve(type)``, async or not. It has no scopes: what it opens, it must close."""

    def __init__(self, resolver: object) -> None:
        self._resolver: Any = resolver

    def scope(self) -> AbstractAsyncContextManager[Scope]:
        """The resolver itself: lifetimes are its own affair."""
        return _ResolverScope(self._resolver)


class _ResolverScope(_OpenScope):
    def __init__(self, resolver: Any) -> None:
        self._resolver = resolver

    async def resolve(self, handler: type[T]) -> T:
        found = self._resolver.resolve(handler)
        if inspect.isawaitable(found):
            found = await found
        return cast("T", found)


def constructor_parameters(handler: type[Any]) -> tuple[inspect.Parameter, ...]:
    """What the constructor takes by name or position; ``*args`` and ``**kwargs`` need nothing."""
    parameters = inspect.signature(handler).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(parameter for parameter in parameters if parameter.kind not in variable)
