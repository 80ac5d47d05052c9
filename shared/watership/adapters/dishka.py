"""dishka behind our Container protocol: a command is the next scope below the container's, REQUEST below APP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from dishka import AsyncContainer
from dishka.exceptions import NoFactoryError

from watership.container import Scope, constructor_parameters
from watership.errors import ConfigurationError

T = TypeVar("T")


class DishkaContainer:
    """Adapts a ``dishka.AsyncContainer``. Who made it closes it.

    A handler that no provider gives is built without arguments, if its constructor needs none.
    """

    def __init__(self, container: AsyncContainer) -> None:
        self._container = container

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        """A fresh child container; its finalisers get the error, if there was one."""
        async with self._container() as child:
            yield _DishkaScope(child)


class _DishkaScope:
    def __init__(self, container: AsyncContainer) -> None:
        self._container = container

    async def resolve(self, handler: type[T]) -> T:
        try:
            return await self._container.get(handler)
        except NoFactoryError as error:
            if error.requested.type_hint is not handler or error.path:
                raise ConfigurationError(f"{handler.__name__} cannot be built: {error}") from error
            needed = next((p.name for p in constructor_parameters(handler) if p.default is p.empty), None)
            if needed is not None:
                raise ConfigurationError(
                    f"{handler.__name__} cannot be built: its __init__ needs {needed!r}, and no dishka provider gives "
                    f"the handler. Add provider.provide({handler.__name__}, scope=Scope.REQUEST)"
                ) from error
        return handler()
