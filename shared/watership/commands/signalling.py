"""`watership signal`: tells a saga what it waits for."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from watership.commands.options import BrokerUrl, DatabaseUrl, Namespace, SagaId
from watership.commands.reach import by_broker, connected, existing_database
from watership.commands.screen import clean, output
from watership.errors import SagaNotFound, SignalRefused
from watership.saga.signals import make_signal
from watership.saga.storage.protocol import EarlySignal
from watership.settings import Settings, load_settings

Name = Annotated[str, typer.Argument(help="The name of the Wait.", show_default=False)]
Data = Annotated[str, typer.Option("--data", metavar="JSON", help="What the signal carries.")]
SignalId = Annotated[
    str | None,
    typer.Option("--id", metavar="TEXT", help="The same id is the same signal: sent twice, it is taken once."),
]


def signal(
    saga_id: SagaId,
    name: Name,
    data: Data = "null",
    signal_id: SignalId = None,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Send a signal to a saga that waits, or will: one that comes early is kept.

    Example: watership signal 6f1c… approval --data '{"by": "ann", "ok": true}'
    """
    settings = load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    made = make_signal(saga_id, name, _read(data), signal_id)
    if by_broker(settings, broker_url, database_url, "to send the signal"):
        asyncio.run(_send(settings, made))
        told = "an orchestrator has it"
    else:
        asyncio.run(_keep(settings, made))
        told = "it is kept; the program that runs the saga takes it within seconds"
    output().print(f"signal {clean(name)} to saga {saga_id}: {told}")


def _read(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="'--data'") from error


async def _send(settings: Settings, made: EarlySignal) -> None:
    async with connected(settings) as wire:
        await wire.signal(made)


async def _keep(settings: Settings, made: EarlySignal) -> None:
    from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

    url = settings.database()
    where = existing_database(url)
    storage = SqlAlchemySagaStorage(url, namespace=settings.namespace)
    try:
        record = await storage.load(made.saga_id)
        if record is None:
            raise SagaNotFound(f"no saga has the id {made.saga_id} in {where}, namespace {settings.namespace}")
        if record.state.status.terminal:
            raise SignalRefused(
                f"saga {record.state.name} {made.saga_id} waits for nothing: it is {record.state.status}"
            )
        await storage.keep_signal(made)
    finally:
        await storage.close()
