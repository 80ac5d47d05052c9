"""`di` behind our Container protocol. It must never know more than how to solve a handler and to run what was solved.

Solving costs 30 times what running costs, so a handler is solved once and the result is kept for as long as the
container's binds are the same: a bind that is added or undone later (a test's override) makes it solve again.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast, get_args

import di
from di.api.dependencies import DependencyParameter, DependentBase
from di.api.executor import SupportsTaskGraph
from di.dependent import Dependent
from di.exceptions import DependencyInjectionException, WiringError

from watership.container import Scope
from watership.errors import ConfigurationError

T = TypeVar("T")

SCOPE = "request"


class DiContainer:
    """Adapts a ``di.Container``. Dependents live in the scope "request", which is one command long.

    A dependent without a scope counts as "request"; another scope is a ConfigurationError, since nothing would say
    when that scope ends. To share one object, bind a function that returns it.
    """

    def __init__(self, container: di.Container) -> None:
        self._container = container
        self._solved: dict[type[Any], di.SolvedDependent[Any]] = {}
        self._solved_with: list[Any] = []

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        """A fresh scope "request"; its generators are finished at the exit."""
        failure: BaseException | None = None
        async with self._container.enter_scope(SCOPE) as state:
            try:
                yield _DiScope(self._solve, state)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:  # a generator swallowed it: the command must not look done
            raise failure

    def _solve(self, handler: type[T]) -> di.SolvedDependent[T]:
        # The list of binds is private; di has not changed since 2023, and our extra holds it below 0.80.
        binds = self._container._bind_hooks  # noqa: SLF001 - see above
        if binds != self._solved_with:
            self._solved, self._solved_with = {}, list(binds)
        if handler not in self._solved:
            self._solved[handler] = _solve(self._container, handler)
        return cast("di.SolvedDependent[T]", self._solved[handler])


class _DiScope:
    def __init__(self, solve: Callable[[type[Any]], di.SolvedDependent[Any]], state: di.ScopeState) -> None:
        self._solve, self._state = solve, state

    async def resolve(self, handler: type[T]) -> T:
        solved = self._solve(handler)
        return cast("T", await solved.execute_async(executor=_Executor(), state=self._state))


class _Executor:
    """One dependency after the other. di's own executor does the same, but needs anyio."""

    async def execute_async(self, tasks: SupportsTaskGraph, state: Any) -> None:
        for task in tasks.static_order():
            made = task.compute(state)
            if made is not None:
                await made


def _solve(container: di.Container, handler: type[T]) -> di.SolvedDependent[T]:
    def scope_of(dependent: DependentBase[Any], _inner: Sequence[Any], _scopes: Sequence[Any]) -> str:
        if dependent.scope not in (None, SCOPE):
            raise ConfigurationError(
                f"{handler.__name__} cannot be built: {_name(dependent.call)} is bound in the scope "
                f'{dependent.scope!r}; bind it with scope="{SCOPE}", which is one command long'
            )
        return SCOPE

    try:
        solved = container.solve(Dependent(handler, scope=SCOPE), scopes=[SCOPE], scope_resolver=scope_of)
    except WiringError as error:
        raise _unwired(handler, error) from error
    except NameError as error:
        raise ConfigurationError(
            f"{handler.__name__} cannot be built: {error}; di reads the annotations of constructors, "
            "so every name in them must be importable when the program runs"
        ) from error
    except DependencyInjectionException as error:
        raise ConfigurationError(f"{handler.__name__} cannot be built: {error}") from error
    _refuse_what_di_would_only_find_out_later(handler, solved)
    return solved


def _unwired(handler: type[Any], error: WiringError) -> ConfigurationError:
    # di tells the parameter in its message only: "The parameter gateway to <class ...> has no dependency marker, ..."
    parameter = str(error).removeprefix("The parameter ").split(" ", 1)[0]
    return _missing(handler, error.path[-1].call, parameter, "is not annotated with a class")


def _refuse_what_di_would_only_find_out_later(handler: type[Any], solved: di.SolvedDependent[Any]) -> None:
    """An unbound interface fails on every command, and an unbound ``str`` is filled with "" without a word."""
    for dependent, parameters in solved.dag.items():
        for needed in parameters:
            made_from = needed.dependency.call
            if needed.parameter is None or made_from not in _annotated(needed):
                continue
            is_interface = inspect.isabstract(made_from) or getattr(made_from, "_is_protocol", False)
            if is_interface or getattr(made_from, "__module__", None) == "builtins":
                why = f"is a {_name(made_from)}, which is not bound"
                raise _missing(handler, dependent.call, needed.parameter.name, why)


def _annotated(needed: DependencyParameter) -> tuple[Any, ...]:
    annotation = needed.parameter.annotation if needed.parameter is not None else None
    return (annotation, *get_args(annotation)[:1])  # the second for Annotated[X, ...]


def _missing(handler: type[Any], owner: Any, parameter: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{handler.__name__} cannot be built: the parameter {parameter!r} of {_name(owner)} {why}. Annotate it with "
        f'a class, and bind that: di_container.bind(bind_by_type(Dependent(factory, scope="{SCOPE}"), TheClass))'
    )


def _name(call: Any) -> str:
    return getattr(call, "__qualname__", None) or repr(call)
