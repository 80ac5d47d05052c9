"""The services inside a test's own process, on real servers: so that a test can hold one still, and ask it to look."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership.bus.protocol import Fate, Message
from watership.bus.rabbit import RabbitBus
from watership.machine.state import MACHINE_VERSION
from watership.messages import StartSaga, WireMessage
from watership.service import Service
from watership.settings import Settings
from watership_orchestrator.backing import PostgresBacking
from watership_orchestrator.database import open_database
from watership_orchestrator.orchestrator import Orchestrator
from watership_orchestrator.reaper import Reaper
from watership_worker import Worker
from watership_worker.consumer import Consumer

WITHIN_S = 20.0
ServiceT = TypeVar("ServiceT", bound=Service)


@dataclasses.dataclass
class Running:
    """One namespace: begin what a test needs; all of it ends with the test."""

    settings: Settings
    database: AsyncEngine
    bus: RabbitBus
    stack: contextlib.AsyncExitStack

    async def orchestrator(self, machine_version: int = MACHINE_VERSION) -> Orchestrator:
        """A running orchestrator."""
        return await self._begin(Orchestrator(self.settings, self._bus(), self._backing(machine_version)))

    async def worker(self, worker: Worker) -> Consumer:
        """A running worker."""
        return await self._begin(Consumer(self.settings, self._bus(), worker))

    async def reaper(self, machine_version: int = MACHINE_VERSION) -> Reaper:
        """A reaper that looks only when it is asked to (`run_once`)."""
        reaper = Reaper(self.settings, self._bus(), self._backing(machine_version))
        await reaper.start()
        self.stack.push_async_callback(reaper.drain)
        return reaper

    def _backing(self, machine_version: int) -> PostgresBacking:
        database = open_database(self.settings.database())
        return PostgresBacking(database, self.settings.namespace, machine_version=machine_version)

    def _bus(self) -> RabbitBus:
        return RabbitBus(self.settings.broker())

    async def _begin(self, service: ServiceT) -> ServiceT:
        await service.start()
        task = asyncio.create_task(service.run())
        self.stack.push_async_callback(_end, service, task)
        return service

    async def send(self, key: str, message: WireMessage, *, reply_to: str | None = None) -> None:
        """Publishes a message as any AMQP client would."""
        await self.send_raw(key, message.to_body(), message.kind, reply_to=reply_to)

    async def send_raw(self, key: str, body: bytes, kind: str, *, reply_to: str | None = None) -> str:
        """Publishes any bytes; the message's id."""
        message = Message(self.settings.namespace, key, body, kind, uuid.uuid4().hex, reply_to=reply_to)
        assert await self.bus.publish([message]) == [Fate.CONFIRMED]
        return message.message_id

    async def start(self, saga: str, context: dict[str, Any], saga_id: uuid.UUID | None = None) -> uuid.UUID:
        """Starts a saga as a foreign client."""
        wanted = saga_id or uuid.uuid4()
        await self.send("start", StartSaga(saga=saga, saga_id=wanted, context=context))
        return wanted

    async def row(self, saga_id: uuid.UUID) -> dict[str, Any] | None:
        """The saga's row."""
        query = sa.text("SELECT * FROM watership_saga WHERE saga_id = :saga_id")
        async with self.database.connect() as connection:
            found = (await connection.execute(query, {"saga_id": saga_id})).mappings().one_or_none()
            return dict(found) if found is not None else None

    async def until(self, saga_id: uuid.UUID, **expected: Any) -> dict[str, Any]:
        """Waits until the saga's row has these values; fails with the row as it is."""
        row: dict[str, Any] | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S):
                while True:
                    row = await self.row(saga_id)
                    if row is not None and all(row[name] == value for name, value in expected.items()):
                        return row
                    await asyncio.sleep(0.02)
        raise AssertionError(f"not {expected} within {WITHIN_S} s: {row}")

    async def dead_letter(self, kind: str) -> str:
        """Why the first message of this kind died, once one is kept."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                query = "SELECT reason FROM watership_dead_letter WHERE kind = :kind ORDER BY id"
                found = await self.sql(query, kind=kind)
                if found:
                    return str(found[0][0])
                await asyncio.sleep(0.02)

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        """Runs a statement; its rows, if it gives any."""
        async with self.database.begin() as connection:
            result = await connection.execute(sa.text(statement), values)
            return list(result.all()) if result.returns_rows else []


async def _end(service: Service, task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await service.drain()


@contextlib.asynccontextmanager
async def running(broker_url: str, database_url: str, namespace: str) -> AsyncIterator[Running]:
    """A `Running` for the block."""
    settings = Settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    async with contextlib.AsyncExitStack() as stack:
        bus = RabbitBus(broker_url)
        await bus.open()
        stack.push_async_callback(bus.close)
        database = open_database(database_url)
        stack.push_async_callback(database.dispose)
        yield Running(settings, database, bus, stack)
