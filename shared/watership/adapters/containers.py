"""Chooses the adapter for a user's container. It imports no DI library that the user did not: a library that is not
imported cannot be where the container comes from.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from watership.container import ACCEPTED, Container, PlainContainer, ResolverContainer
from watership.errors import ConfigurationError


def as_container(container: object | None) -> Container:
    """The user's container behind our protocol. None builds handlers without arguments."""
    if container is None:
        return PlainContainer()
    if isinstance(container, type):
        raise ConfigurationError(
            f"di_container is the class {container.__qualname__}; pass an instance: {container.__qualname__}()"
        )
    adapted = _from_library(container)
    if adapted is not None:
        return adapted
    if callable(getattr(container, "scope", None)):
        return cast("Container", container)
    if callable(getattr(container, "resolve", None)):
        return ResolverContainer(container)
    kind = type(container)
    raise ConfigurationError(f"di_container is a {kind.__module__}.{kind.__qualname__}; it can be {ACCEPTED}")


def _from_library(container: object) -> Container | None:
    # `solve` tells the library from a project's own module that is called `di` too.
    if _is_a(container, "di", "Container") and hasattr(container, "solve"):
        from watership.adapters.di import DiContainer

        return DiContainer(cast("Any", container))
    if _is_a(container, "dishka", "AsyncContainer"):
        from watership.adapters.dishka import DishkaContainer

        return DishkaContainer(cast("Any", container))
    if _is_a(container, "dependency_injector.containers", "Container"):
        from watership.adapters.dependency_injector import DependencyInjectorContainer

        return DependencyInjectorContainer(cast("Any", container))
    return None


def _is_a(container: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(container, kind)
