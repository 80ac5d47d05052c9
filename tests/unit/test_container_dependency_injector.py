"""dependency-injector through `as_container`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers

from watership.adapters.containers import as_container
from watership.errors import ConfigurationError

from tests.support.container_handlers import (
    Amex,
    Bare,
    Charge,
    Gateway,
    NeedsText,
    Repository,
    Reserve,
    Session,
    Unannotated,
    Visa,
    resolve,
)


class Two:
    def __init__(self, visa: Gateway, amex: Gateway) -> None:
        self.visa, self.amex = visa, amex


def injector(**named: providers.Provider[Any]) -> containers.DynamicContainer:
    container = containers.DynamicContainer()
    container.set_providers(**named)
    return container


async def test_injector_takes_the_provider_of_the_handler() -> None:
    raw = injector(step=providers.Factory(NeedsText, url="amqp://"), only=providers.Singleton(Bare))
    assert (await resolve(raw, NeedsText)).url == "amqp://"
    assert await resolve(raw, NeedsText) is not await resolve(raw, NeedsText)
    assert await resolve(raw, Bare) is await resolve(raw, Bare)


@pytest.mark.parametrize(
    "provider",
    [
        providers.Factory(Visa),
        providers.Singleton(Visa),
        providers.Object(Visa()),
        providers.Callable(Visa),
    ],
    ids=["factory", "singleton", "object", "callable"],
)
async def test_injector_matches_a_subclass(provider: providers.Provider[Any]) -> None:
    raw = injector(payments=provider)
    first, second = await resolve(raw, Charge), await resolve(raw, Charge)
    assert first.gateway.charge() == "visa"
    assert first is not second
    is_kept = isinstance(provider, providers.Singleton | providers.Object)
    assert (first.gateway is second.gateway) is is_kept


async def test_injector_matches_functions_by_what_they_return_and_awaits_them() -> None:
    async def gateway() -> Gateway:
        await asyncio.sleep(0)
        return Visa()

    async def session() -> AsyncIterator[Session]:
        yield Session()

    shared = providers.Resource(session)
    raw = injector(gateway=providers.Coroutine(gateway), session=shared)
    raw.set_providers(repository=providers.Factory(Repository, session=shared))
    assert (await resolve(raw, Charge)).gateway.charge() == "visa"
    first, second = await asyncio.gather(resolve(raw, Reserve), resolve(raw, Reserve))
    assert first.session is second.session is first.repository.session  # a Resource is the process's
    assert shared.initialized
    closing = raw.shutdown_resources()
    assert closing is not None
    await closing


async def test_injector_looks_into_nested_containers_and_follows_overrides() -> None:
    class Gateways(containers.DeclarativeContainer):
        gateway = providers.Factory(Visa)

    class Application(containers.DeclarativeContainer):
        gateways = providers.Container(Gateways)

    raw = Application()
    container = as_container(raw)

    async def charged_by() -> str:
        async with container.scope() as scope:
            return (await scope.resolve(Charge)).gateway.charge()

    assert await charged_by() == "visa"
    with raw.gateways.gateway.override(providers.Factory(Amex)):
        assert await charged_by() == "amex"
    assert await charged_by() == "visa"


async def test_injector_sees_providers_that_come_later() -> None:
    raw = injector(session=providers.Factory(Session))
    container = as_container(raw)
    async with container.scope() as scope:
        with pytest.raises(ConfigurationError):
            await scope.resolve(Charge)
        raw.set_providers(gateway=providers.Factory(Visa))
        assert (await scope.resolve(Charge)).gateway.charge() == "visa"


async def test_injector_tells_two_that_fit_apart_by_name() -> None:
    raw = injector(visa=providers.Factory(Visa), amex=providers.Factory(Amex))
    two = await resolve(raw, Two)
    assert (two.visa.charge(), two.amex.charge()) == ("visa", "amex")
    with pytest.raises(ConfigurationError, match="'gateway' .* more than one provider: .*; name one of them 'gateway'"):
        await resolve(raw, Charge)


async def test_injector_matches_plain_types_by_name_only() -> None:
    raw = injector(password=providers.Object("secret"))
    with pytest.raises(ConfigurationError, match="'url' .* is a str, which no provider of the container gives"):
        await resolve(raw, NeedsText)
    raw.set_providers(url=providers.Object("amqp://"))
    assert (await resolve(raw, NeedsText)).url == "amqp://"


async def test_injector_tells_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="Unannotated .* 'inventory_service' .* not annotated with a class"):
        await resolve(injector(), Unannotated)
    with pytest.raises(
        ConfigurationError, match=r"'gateway' .* is a Gateway, .* add providers\.Factory\(Charge, \.\.\.\)"
    ):
        await resolve(injector(), Charge)


class Connection:
    pass


class Transaction:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class Transfer:
    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction


async def test_injector_closes_dependents_first_and_leaves_what_was_open_before() -> None:
    closed: list[str] = []

    def connect() -> Iterator[Connection]:
        yield Connection()
        closed.append("connection")

    def begin(connection: Connection) -> Iterator[Transaction]:
        yield Transaction(connection)
        closed.append("transaction")

    connection = providers.ContextLocalResource(connect)
    raw = injector(transaction=providers.ContextLocalResource(begin, connection=connection), connection=connection)
    await resolve(raw, Transfer)
    assert closed == ["transaction", "connection"]

    closed.clear()
    connection.init()  # the caller's own
    await resolve(raw, Transfer)
    assert closed == ["transaction"]
    connection.shutdown()


async def test_injector_closes_all_though_one_of_them_fails() -> None:
    closed: list[str] = []

    def connect() -> Iterator[Connection]:
        yield Connection()
        closed.append("connection")

    def begin(connection: Connection) -> Iterator[Transaction]:
        yield Transaction(connection)
        raise OSError("gone")

    connection = providers.ContextLocalResource(connect)
    raw = injector(transaction=providers.ContextLocalResource(begin, connection=connection), connection=connection)
    with pytest.raises(OSError, match="gone"):
        await resolve(raw, Transfer)
    assert closed == ["connection"]
