"""Where the commands find plans: the services' through the admin queue, or a database directly."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

from watership.commands.reach import connected, existing_database
from watership.errors import ConfigurationError, OperationRefused
from watership.messages import AdminVerb
from watership.settings import Settings, load_settings
from watership.wire import Wire

if TYPE_CHECKING:
    from watership.saga.storage.database import Database


class PlanDesk(Protocol):
    """What can be asked and said about plans."""

    where: str

    async def list(self, limit: int) -> list[dict[str, Any]]:
        """By saga: its plans."""

    async def show(self, plan: str) -> dict[str, Any]:
        """One plan whole. Raises `OperationRefused`."""

    async def use(self, saga: str, plan: str | None, *, actor: str, reason: str) -> dict[str, Any]:
        """What foreign starts get from now on. Raises `OperationRefused`."""


@contextlib.asynccontextmanager
async def open_desk(broker_url: str | None, database_url: str | None, namespace: str | None) -> AsyncIterator[PlanDesk]:
    """What to ask, by flags and settings. A flag says what is meant; without one, a broker goes before a database."""
    settings = load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    if settings.broker_url and (broker_url or not database_url):
        async with connected(settings) as wire:
            yield _Services(wire, settings.namespace)
        return
    if not settings.database_url:
        raise ConfigurationError(
            "nowhere to look for plans: set --broker-url or WATERSHIP_BROKER_URL to ask the services, "
            "--database-url or WATERSHIP_DATABASE_URL to look into a database"
        )
    async with open_database(settings) as database:
        yield _InDatabase(database)


@contextlib.asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The database that the settings name. Raises `ConfigurationError` if there is none."""
    from watership.saga.storage.database import Database
    from watership.saga.storage.engines import make_engine, parse_url

    url = settings.database()
    existing_database(url)
    database = Database(make_engine(parse_url(url), pooled=False), settings.namespace, owned=True)
    try:
        yield database
    finally:
        await database.close()


class _Services:
    def __init__(self, wire: Wire, namespace: str) -> None:
        self._wire = wire
        self.where = f"the namespace {namespace}"

    async def list(self, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._wire.ask(AdminVerb.PLANS_LIST, limit=limit)
        return found

    async def show(self, plan: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._wire.ask(AdminVerb.PLANS_SHOW, plan=plan)
        return found

    async def use(self, saga: str, plan: str | None, *, actor: str, reason: str) -> dict[str, Any]:
        arguments = {"saga": saga, "plan": plan, "actor": actor, "reason": reason}
        found: dict[str, Any] = await self._wire.ask(AdminVerb.PLANS_USE, **arguments)
        return found


class _InDatabase:
    """Sagas of the services and those that run embedded, side by side."""

    def __init__(self, database: Database) -> None:
        from watership.saga.storage.trouble import shown

        self._database = database
        self._namespace = database.namespace
        self.where = f"the database {shown(database.engine.url)}, namespace {database.namespace}"

    async def list(self, limit: int) -> list[dict[str, Any]]:
        from watership.saga.storage.plan_records import DRIVERS, list_plans

        return await self._database.read(lambda it: list_plans(it, self._namespace, DRIVERS, limit))

    async def show(self, plan: str) -> dict[str, Any]:
        from watership.saga.storage.plan_records import DRIVERS, show_plan

        return await self._database.read(lambda it: show_plan(it, self._namespace, DRIVERS, plan))

    async def use(self, saga: str, plan: str | None, *, actor: str, reason: str) -> dict[str, Any]:
        from watership.saga.storage.plan_records import choose_plan

        if self._database.engine.dialect.name != "postgresql":
            raise OperationRefused(
                "the services keep their plans in PostgreSQL: sagas in this database run embedded, and start on the plan "
                "of the code that starts them"
            )
        now = self._database.queries.now
        return await self._database.write(
            lambda it: choose_plan(it, self._namespace, saga, plan, actor=actor, reason=reason, now=now)
        )
