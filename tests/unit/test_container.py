"""Containers through `as_container`: what it takes, and how long a scope lives, with the real DI libraries."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import di
import dishka
import pytest
from dependency_injector import containers, providers
from di import bind_by_type
from di.dependent import Dependent

from watership.adapters.containers import as_container
from watership.adapters.dependency_injector import DependencyInjectorContainer
from watership.adapters.di import DiContainer
from watership.adapters.dishka import DishkaContainer
from watership.container import Container, PlainContainer, ResolverContainer, Scope
from watership.errors import ConfigurationError

from tests.support.container_handlers import (
    Bare,
    Charge,
    Gateway,
    Repository,
    Reserve,
    Session,
    Visa,
    WithDefault,
    resolve,
)

T = TypeVar("T")

# Each of these gives a container whose Session is opened and closed per command, and the sessions that it opened.

Sessions = list[Session]


def opening(sessions: Sessions) -> Callable[[], AsyncIterator[Session]]:
    async def session() -> AsyncIterator[Session]:
        opened = Session()
        sessions.append(opened)
        await asyncio.sleep(0)
        try:
            yield opened
        finally:
            await asyncio.sleep(0)
            opened.is_closed = True

    return session


async def di_with_sessions(sessions: Sessions) -> Container:
    container = di.Container()
    container.bind(bind_by_type(Dependent(opening(sessions), scope="request"), Session))
    return as_container(container)


async def dishka_with_sessions(sessions: Sessions) -> Container:
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(opening(sessions))
    provider.provide(Repository)
    provider.provide(Reserve)
    return as_container(dishka.make_async_container(provider))


async def injector_with_sessions(sessions: Sessions) -> Container:
    class Providers(containers.DeclarativeContainer):
        session_of_command = providers.ContextLocalResource(opening(sessions))
        repository = providers.Factory(Repository, session=session_of_command)

    return as_container(Providers())


every_library = pytest.mark.parametrize(
    "make", [di_with_sessions, dishka_with_sessions, injector_with_sessions], ids=["di", "dishka", "injector"]
)
Make = Callable[[Sessions], Any]


@every_library
async def test_each_command_has_a_scope_of_its_own_that_is_closed_after_it(make: Make) -> None:
    sessions: Sessions = []
    container = await make(sessions)
    handlers = []
    for _ in range(3):
        async with container.scope() as scope:
            handler = await scope.resolve(Reserve)
            assert handler.session is handler.repository.session
            assert not handler.session.is_closed
            handlers.append(handler)
        assert handler.session.is_closed
    assert len({id(handler) for handler in handlers}) == 3
    assert [handler.session for handler in handlers] == sessions


@every_library
async def test_a_scope_is_closed_when_the_command_fails(make: Make) -> None:
    sessions: Sessions = []
    container = await make(sessions)
    with pytest.raises(RuntimeError, match="declined"):
        async with container.scope() as scope:
            await scope.resolve(Reserve)
            raise RuntimeError("declined")
    assert [session.is_closed for session in sessions] == [True]


@every_library
async def test_a_scope_is_closed_when_the_command_is_cancelled(make: Make) -> None:
    sessions: Sessions = []
    container = await make(sessions)
    is_running = asyncio.Event()

    async def command() -> None:
        async with container.scope() as scope:
            await scope.resolve(Reserve)
            is_running.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(command())
    await is_running.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [session.is_closed for session in sessions] == [True]


@every_library
async def test_scopes_that_are_open_at_once_do_not_see_each_other(make: Make) -> None:
    sessions: Sessions = []
    container = await make(sessions)
    everyone_is_in = asyncio.Barrier(50)

    async def command(fails: bool) -> Reserve:
        async with container.scope() as scope:
            handler = cast("Reserve", await scope.resolve(Reserve))
            await everyone_is_in.wait()
            assert handler.session is handler.repository.session
            if fails:
                raise RuntimeError("this one only")
            await asyncio.sleep(0)
            assert not handler.session.is_closed
            return handler

    ended = await asyncio.gather(*(command(number % 2 == 0) for number in range(50)), return_exceptions=True)
    assert sum(isinstance(end, RuntimeError) for end in ended) == 25
    assert len({id(end.session) for end in ended if isinstance(end, Reserve)}) == 25
    assert len(sessions) == 50
    assert all(session.is_closed for session in sessions)


@every_library
async def test_a_handler_that_needs_nothing_is_built_without_being_registered(make: Make) -> None:
    container = await make([])
    async with container.scope() as scope:
        assert isinstance(await scope.resolve(Bare), Bare)
        assert (await scope.resolve(WithDefault)).retries == 3


# What as_container accepts.


def test_it_knows_the_libraries() -> None:
    assert isinstance(as_container(None), PlainContainer)
    assert isinstance(as_container(di.Container()), DiContainer)
    assert isinstance(as_container(dishka.make_async_container(dishka.Provider())), DishkaContainer)
    assert isinstance(as_container(containers.DynamicContainer()), DependencyInjectorContainer)


async def test_a_container_of_our_protocol_is_returned_as_it_is() -> None:
    class Own:
        @asynccontextmanager
        async def scope(self) -> AsyncIterator[Scope]:
            async with PlainContainer().scope() as scope:
                yield scope

    own = Own()
    assert as_container(own) is own
    wrapped = DiContainer(di.Container())
    assert as_container(wrapped) is wrapped


async def test_an_object_with_resolve_is_adapted() -> None:
    class Resolver:
        async def resolve(self, kind: type[T]) -> T:
            return kind()

    class SyncResolver:
        def resolve(self, kind: type[T]) -> T:
            return kind()

    for resolver in (Resolver(), SyncResolver()):
        container = as_container(resolver)
        assert isinstance(container, ResolverContainer)
        async with container.scope() as scope:
            assert isinstance(await scope.resolve(Bare), Bare)


async def test_a_projects_own_module_called_di_is_not_taken_for_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own:
        async def resolve(self, kind: type[T]) -> T:
            return kind()

    monkeypatch.setattr(di, "Container", Own)
    assert isinstance(as_container(Own()), ResolverContainer)


def test_anything_else_is_refused_with_what_is_accepted() -> None:
    with pytest.raises(
        ConfigurationError, match=r"di_container is a builtins\.dict; it can be a di\.Container, a dishka"
    ):
        as_container({})
    with pytest.raises(ConfigurationError, match=r"a dishka\..*Container; it can be .* a dishka\.AsyncContainer"):
        as_container(dishka.make_container(dishka.Provider()))
    with pytest.raises(ConfigurationError, match=r"is the class Container; pass an instance: Container\(\)"):
        as_container(di.Container)
    with pytest.raises(ConfigurationError, match=r"is the class DynamicContainer; pass an instance"):
        as_container(containers.DynamicContainer)


def test_importing_it_imports_no_di_library() -> None:
    program = """
import sys
import watership.adapters.containers
assert not {"di", "dishka", "dependency_injector", "aiobreaker"} & set(sys.modules)
try:
    watership.adapters.containers.as_container(object())
except watership.adapters.containers.ConfigurationError:
    pass
assert not {"di", "dishka", "dependency_injector", "aiobreaker"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# No container.


async def test_plain_builds_without_arguments_and_anew() -> None:
    container = as_container(None)
    async with container.scope() as first, container.scope() as second:
        assert await first.resolve(Bare) is not await second.resolve(Bare)
        assert (await first.resolve(WithDefault)).retries == 3


async def test_plain_names_the_handler_the_parameter_and_the_way_out() -> None:
    async with as_container(None).scope() as scope:
        with pytest.raises(ConfigurationError, match=r"Reserve .* __init__ needs 'repository'\. Pass di_container="):
            await scope.resolve(Reserve)


# dishka.


async def test_dishka_keeps_what_belongs_to_the_app() -> None:
    provider = dishka.Provider()
    provider.provide(Visa, provides=Gateway, scope=dishka.Scope.APP)
    provider.provide(Charge, scope=dishka.Scope.REQUEST)
    raw = dishka.make_async_container(provider)
    first, second = await resolve(raw, Charge), await resolve(raw, Charge)
    assert first is not second
    assert first.gateway is second.gateway


async def test_dishka_tells_which_line_to_add() -> None:
    raw = dishka.make_async_container(dishka.Provider())
    with pytest.raises(
        ConfigurationError, match=r"needs 'gateway', .* Add provider\.provide\(Charge, scope=Scope\.REQUEST\)"
    ):
        await resolve(raw, Charge)


async def test_dishka_tells_which_dependency_is_missing() -> None:
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(Charge)
    raw = dishka.make_async_container(provider, skip_validation=True)
    with pytest.raises(ConfigurationError, match=r"Charge cannot be built: (?s:.*)Gateway"):
        await resolve(raw, Charge)
