"""The services' footing on Postgres: one engine, and what stands on it."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from watership.machine.state import MACHINE_VERSION
from watership_orchestrator.admin import Admin
from watership_orchestrator.database import check_database
from watership_orchestrator.plans import PlanBook
from watership_orchestrator.store import Store


class PostgresBacking:
    """Store, plans and reader on one database, for one namespace. See `watership_orchestrator.ports.Backing`."""

    def __init__(self, database: AsyncEngine, namespace: str, *, machine_version: int = MACHINE_VERSION) -> None:
        self._database = database
        self.store = Store(database, namespace, machine_version=machine_version)
        self.plans = PlanBook(database, namespace)
        self.reader = Admin(database, namespace)

    async def check(self) -> None:
        """See `Backing.check`."""
        await check_database(self._database)

    async def close(self) -> None:
        """See `Backing.close`."""
        await self._database.dispose()
