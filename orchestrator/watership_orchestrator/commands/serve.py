"""`watership orchestrator` and `watership reaper`: the services as processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from watership.bus.protocol import Bus
from watership.bus.rabbit import RabbitBus
from watership.commands.options import BrokerUrl, DatabaseUrl, Namespace
from watership.errors import ConfigurationError
from watership.saga.storage import migrations
from watership.service import Service, patiently, serve
from watership.settings import Settings, load_settings
from watership_orchestrator.orchestrator import Orchestrator
from watership_orchestrator.reaper import Reaper

# So that one that is stopped in the middle of a batch holds up nobody for long.
SERVER_SETTINGS = {
    "application_name": "watership",
    "jit": "off",
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
}


def orchestrator(broker_url: BrokerUrl = None, database_url: DatabaseUrl = None, namespace: Namespace = None) -> None:
    """Run an orchestrator: it decides what happens next. Run as many as you like."""
    settings = load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    asyncio.run(_serve(settings, lambda bus, database: Orchestrator(settings, bus, database)))


def reaper(broker_url: BrokerUrl = None, database_url: DatabaseUrl = None, namespace: Namespace = None) -> None:
    """Run a reaper: it re-drives what timed out or was interrupted. Run as many as you like."""
    settings = load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    asyncio.run(_serve(settings, lambda bus, database: Reaper(settings, bus, database)))


async def _serve(settings: Settings, make: Callable[[Bus, AsyncEngine], Service]) -> None:
    database = open_database(settings.database())
    service = make(RabbitBus(settings.broker()), database)
    await patiently(service.name, lambda: _check_database(settings.database()))
    await serve(service, drain_s=settings.drain_s)


async def _check_database(url: str) -> None:
    differences = await migrations.check(url)
    if differences:
        raise ConfigurationError(
            f"the database is not ready: {differences[0]}; run `watership db upgrade` "
            f"(or `watership db check` for all that differs)"
        )


def open_database(url: str) -> AsyncEngine:
    """The services' engine: Postgres only, every wait with a limit. Raises `ConfigurationError`."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigurationError(f"the database URL cannot be read: {error}") from error
    if parsed.drivername != "postgresql+asyncpg":
        raise ConfigurationError(
            f"the services need PostgreSQL, as postgresql+asyncpg://…; the database URL says {parsed.drivername}"
        )
    return create_async_engine(
        parsed,
        pool_size=4,
        max_overflow=2,
        pool_timeout=10,
        pool_recycle=1_800,
        connect_args={"timeout": 10, "command_timeout": 15, "server_settings": SERVER_SETTINGS},
    )
