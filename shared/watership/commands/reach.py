"""Where the commands find sagas: the distributed system through the broker, or an embedded database directly."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from watership.client import rabbit_bus
from watership.errors import ConfigurationError, SagaNotFound, SagaPruned
from watership.machine.state import Status
from watership.messages import AdminVerb
from watership.settings import Settings, load_settings
from watership.wire import Wire

LEDGER_SHOWN_MAX = 100


class Reader(Protocol):
    """What can be asked about sagas, wherever they are."""

    where: str

    async def ledger(self, saga_id: uuid.UUID | None, *, limit: int) -> list[dict[str, Any]]:
        """What came late, twice or for nobody, the newest first: of one saga, or of all."""

    async def list(self, *, limit: int, status: Status | None, parked: bool | None) -> list[dict[str, Any]]:
        """The newest sagas first, a line for each."""

    async def show(self, saga_id: uuid.UUID) -> dict[str, Any]:
        """A whole saga. Raises `SagaNotFound`."""


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Wire]:
    """A connection to the distributed system. Raises `ConfigurationError`, `BrokerUnavailable`."""
    wire = Wire(rabbit_bus(settings.broker(), name="watership command"), settings.namespace)
    try:
        await wire.open()
        yield wire
    finally:
        await wire.close()


@contextlib.asynccontextmanager
async def open_reader(broker_url: str | None, database_url: str | None, namespace: str | None) -> AsyncIterator[Reader]:
    """What to ask, by flags and settings. A flag says what is meant; without one, a broker goes before a database."""
    settings = load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    if by_broker(settings, broker_url, database_url, "to look for sagas"):
        async with connected(settings) as wire:
            yield _Distributed(wire, settings.namespace)
        return
    async with _open_embedded(settings.database(), settings.namespace) as reader:
        yield reader


def by_broker(settings: Settings, broker_url: str | None, database_url: str | None, what_for: str) -> bool:
    """Whether the services are meant, else an embedded database: a flag says it; without one, a broker goes first.

    ``what_for``: to do what, for the message. Raises `ConfigurationError` if neither is known.
    """
    if settings.broker_url and (broker_url or not database_url):
        return True
    if not settings.database_url:
        raise ConfigurationError(
            f"nowhere {what_for}: set --broker-url or WATERSHIP_BROKER_URL for sagas that services run, "
            f"--database-url or WATERSHIP_DATABASE_URL for sagas that your own process runs"
        )
    return False


def without_broker(settings: Settings, verb: str) -> ConfigurationError | None:
    """Why a verb that moves a saga cannot be sent; None: it can."""
    if settings.broker_url:
        return None
    if settings.database_url:
        return ConfigurationError(
            f"an embedded saga needs the code of its own program: {verb} it there (`await recover_saga(...)` retries a parked "
            f"one, `await mediator.cancel(...)` compensates); sagas of the services are reached by --broker-url or WATERSHIP_BROKER_URL"
        )
    return ConfigurationError(
        f"{verb} goes to the services, through a broker: set --broker-url or WATERSHIP_BROKER_URL"
    )


class _Distributed:
    def __init__(self, wire: Wire, namespace: str) -> None:
        self._wire = wire
        self.where = f"the namespace {namespace}"

    async def ledger(self, saga_id: uuid.UUID | None, *, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._wire.ask(AdminVerb.LEDGER, saga_id=saga_id, limit=limit)
        return found

    async def list(self, *, limit: int, status: Status | None, parked: bool | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._wire.ask(
            AdminVerb.LIST, limit=limit, status=status.value if status is not None else None, parked=parked
        )
        return found

    async def show(self, saga_id: uuid.UUID) -> dict[str, Any]:
        found: dict[str, Any] = await self._wire.ask(AdminVerb.SHOW, saga_id=saga_id)
        return found


class _Embedded:
    def __init__(self, storage: Any, where: str) -> None:
        self._storage = storage
        self.where = where

    async def ledger(self, saga_id: uuid.UUID | None, *, limit: int) -> list[dict[str, Any]]:
        from watership.saga.storage.views import ledger_view

        return [ledger_view(line) for line in await self._storage.ledger(saga_id=saga_id, limit=limit)]

    async def list(self, *, limit: int, status: Status | None, parked: bool | None) -> list[dict[str, Any]]:
        from watership.saga.storage.views import summary_to_view

        rows = await self._storage.list_sagas(limit=limit, status=status, parked=parked)
        return [summary_to_view(row) for row in rows]

    async def show(self, saga_id: uuid.UUID) -> dict[str, Any]:
        from watership.saga.storage.views import record_view

        record = await self._storage.load(saga_id)
        if record is None:
            tombstone = await self._storage.tombstone(saga_id)
            if tombstone is not None and tombstone.ours:
                raise SagaPruned(tombstone.words)
            raise SagaNotFound(f"no saga has the id {saga_id} in {self.where}")
        lines = await self._storage.ledger(saga_id=saga_id, limit=LEDGER_SHOWN_MAX)
        return record_view(record, await self._storage.history(saga_id), lines)


@contextlib.asynccontextmanager
async def _open_embedded(database_url: str, namespace: str) -> AsyncIterator[Reader]:
    from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

    where = existing_database(database_url)
    storage = SqlAlchemySagaStorage(database_url, namespace=namespace)
    try:
        yield _Embedded(storage, f"the embedded database {where}, namespace {namespace}")
    finally:
        await storage.close()


def existing_database(database_url: str) -> str:
    """The database's name for people. Raises `ConfigurationError` for a file that looking would only create."""
    from watership.saga.storage.engines import in_memory, parse_url
    from watership.saga.storage.trouble import shown

    url = parse_url(database_url)
    if in_memory(url):
        raise ConfigurationError(f"{shown(url)} is in memory: nothing of it is left for another process to see")
    if url.get_backend_name() == "sqlite":
        path = str(url.database)
        if not path.startswith("file:") and not Path(path).is_file():
            raise ConfigurationError(f"there is no database file {path}; `watership db upgrade` makes one")
    return shown(url)
