"""dependency-injector behind our Container protocol: its providers have names, so they are matched by what they give.

A handler comes from the provider of exactly that class; else it is built by its constructor, each annotated parameter
from the provider whose class fits. What was matched is kept for as long as the container's providers are the same.
"""

from __future__ import annotations

import builtins
import inspect
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dependency_injector import containers, providers, resources

from watership.container import Scope, constructor_parameters
from watership.errors import ConfigurationError

T = TypeVar("T")

# Resources whose state belongs to a context, not to the process. Releases before 4.47 do not have them.
_CONTEXT_LOCAL: type[Any] | None = getattr(providers, "ContextLocalResource", None)


@dataclass(frozen=True)
class _Offer:
    """A provider, its name in the container, and the class of what it gives."""

    name: str
    gives: type[Any]
    provider: providers.Provider[Any]


@dataclass(frozen=True)
class _Recipe:
    """How to build one handler: from a provider of its own, or by its constructor."""

    own: providers.Provider[Any] | None
    arguments: tuple[tuple[inspect.Parameter, providers.Provider[Any]], ...] = ()


class DependencyInjectorContainer:
    """Adapts an instance of a dependency-injector container.

    A Factory gives a new object at each call and a Singleton stays, as everywhere in that library. A Resource is the
    process's: open and close it with ``init_resources`` and ``shutdown_resources``. A ContextLocalResource is the
    command's: one that a command opened is shut down after it.
    """

    def __init__(self, container: containers.Container) -> None:
        self._container = container
        self._matched_with: dict[str, providers.Provider[Any]] = {}
        self._offers: tuple[_Offer, ...] = ()
        self._locals: tuple[providers.BaseResource[Any], ...] = ()
        self._recipes: dict[type[Any], _Recipe] = {}

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        """A scope that shuts down the context-local resources that were opened in it, dependents first."""
        self._refresh()
        resources_local = self._locals
        before = [resource for resource in resources_local if resource.initialized]
        try:
            yield _InjectorScope(self)
        finally:
            async with AsyncExitStack() as stack:
                for resource in resources_local:
                    if resource.initialized and resource not in before:
                        stack.push_async_callback(_shut_down, resource)

    def recipe(self, handler: type[Any]) -> _Recipe:
        """How to build the handler. Raises ConfigurationError naming the parameter that nothing fits."""
        self._refresh()
        if handler not in self._recipes:
            self._recipes[handler] = _recipe(handler, self._offers)
        return self._recipes[handler]

    def _refresh(self) -> None:
        present = dict(self._container.providers)
        if present == self._matched_with:
            return
        self._matched_with, self._recipes = present, {}
        self._offers = tuple(_offers(present))
        if _CONTEXT_LOCAL is not None:
            # What depends on another has more below it, so this order has dependencies first; closing reverses it.
            found = self._container.traverse([_CONTEXT_LOCAL])
            self._locals = tuple(sorted(found, key=lambda resource: sum(1 for _ in resource.traverse())))


class _InjectorScope:
    def __init__(self, container: DependencyInjectorContainer) -> None:
        self._container = container

    async def resolve(self, handler: type[T]) -> T:
        recipe = self._container.recipe(handler)
        if recipe.own is not None:
            return cast("T", await _provide(recipe.own))
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for parameter, provider in recipe.arguments:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(await _provide(provider))
            else:
                named[parameter.name] = await _provide(provider)
        return handler(*positional, **named)


async def _provide(provider: providers.Provider[Any]) -> Any:
    made = provider()
    return await made if inspect.isawaitable(made) else made


async def _shut_down(resource: providers.BaseResource[Any]) -> None:
    closing = resource.shutdown()
    if closing is not None:
        await closing


def _offers(present: dict[str, providers.Provider[Any]]) -> Iterator[_Offer]:
    for name, provider in present.items():
        if isinstance(provider, providers.Container):
            yield from _offers(dict(provider.container.providers))
            continue
        gives = _gives(provider)
        if gives is not None:
            yield _Offer(name, gives, provider)


def _gives(provider: providers.Provider[Any]) -> type[Any] | None:
    if isinstance(provider, providers.Configuration | providers.Delegate | providers.DependenciesContainer):
        return None
    if isinstance(provider, providers.Object):
        return None if provider.provides is None else type(provider.provides)
    if isinstance(provider, providers.Dependency):
        return provider.instance_of if provider.instance_of is not object else None
    if isinstance(provider, providers.BaseResource):
        return _resource_gives(provider.provides)
    if isinstance(provider, providers.Factory | providers.BaseSingleton | providers.Callable):
        return provider.provides if inspect.isclass(provider.provides) else _returns(provider.provides)
    return None


def _resource_gives(provides: Any) -> type[Any] | None:
    if inspect.isclass(provides):
        if issubclass(provides, resources.Resource | resources.AsyncResource):
            return _returns(provides.init)
        return provides
    return _returns(provides, of_iterator=True)


def _returns(function: Any, *, of_iterator: bool = False) -> type[Any] | None:
    try:
        hint = get_type_hints(function).get("return")
    except (NameError, TypeError):  # a name for type checkers only, or not a function: it matches nothing
        return None
    if of_iterator and get_args(hint):
        hint = get_args(hint)[0]
    return _class_in(hint)


def _class_in(hint: Any) -> type[Any] | None:
    """The class in ``X``, ``X | None``, ``Annotated[X, ...]`` and ``X[Y]``."""
    if get_origin(hint) is Annotated:
        return _class_in(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not types.NoneType]
        return _class_in(choices[0]) if len(choices) == 1 else None
    kind = get_origin(hint) or hint
    return kind if inspect.isclass(kind) and kind is not types.NoneType else None


def _recipe(handler: type[Any], offers: tuple[_Offer, ...]) -> _Recipe:
    own = [offer for offer in offers if offer.gives is handler]
    if len(own) > 1:
        raise ConfigurationError(f"{handler.__name__}: the container has more than one provider of it: {_names(own)}")
    if own:
        return _Recipe(own[0].provider)
    try:
        hints = get_type_hints(handler.__init__, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"{handler.__name__} cannot be built: {error}; every name in the annotations of its constructor must be "
            "importable when the program runs"
        ) from error
    arguments = []
    for parameter in constructor_parameters(handler):
        offer = _offer_for(handler, parameter, _class_in(hints.get(parameter.name)), offers)
        if offer is not None:
            arguments.append((parameter, offer.provider))
    return _Recipe(None, tuple(arguments))


def _offer_for(
    handler: type[Any], parameter: inspect.Parameter, wanted: type[Any] | None, offers: tuple[_Offer, ...]
) -> _Offer | None:
    """The provider for a parameter; None leaves it to its default."""
    if type(parameter.default).__module__.startswith("dependency_injector."):
        return None  # a marker of the library's own wiring, which fills it
    fitting = _fitting(parameter.name, wanted, offers)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and parameter.default is not parameter.empty:
        return None
    what = f"{handler.__name__} cannot be built: the parameter {parameter.name!r} of its __init__"
    if wanted is None:
        why = "is not annotated with a class; annotate it"
    elif fitting:
        why = f"fits more than one provider: {_names(fitting)}; name one of them {parameter.name!r}"
    else:
        why = f"is a {wanted.__name__}, which no provider of the container gives; add one"
    raise ConfigurationError(f"{what} {why}, or add providers.Factory({handler.__name__}, ...) to the container")


def _fitting(name: str, wanted: type[Any] | None, offers: tuple[_Offer, ...]) -> list[_Offer]:
    if wanted is None:
        return []
    exact = [offer for offer in offers if offer.gives is wanted]
    fitting = exact or [offer for offer in offers if _is_subclass(offer.gives, wanted)]
    named = [offer for offer in fitting if offer.name == name]
    # A str or an int says nothing about what it is for: only its name does.
    return named if named or wanted.__module__ == builtins.__name__ else fitting


def _is_subclass(gives: type[Any], wanted: type[Any]) -> bool:
    try:
        return issubclass(gives, wanted)
    except TypeError:  # a Protocol that is not runtime_checkable, and not a base of the class
        return wanted in gives.__mro__


def _names(offers: list[_Offer]) -> str:
    return ", ".join(repr(offer.name) for offer in offers)
