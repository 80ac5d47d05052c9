"""The worker's subcommand."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from watership.bus.rabbit import RabbitBus
from watership.commands.loading import load_object
from watership.commands.options import BrokerUrl, Namespace
from watership.errors import ConfigurationError
from watership.service import look_for_cycles, serve
from watership.settings import Settings, load_settings
from watership_worker.consumer import Consumer
from watership_worker.worker import Worker

# A tenth of what a worker did. Its handlers are not ours, and may make cycles that hold much: so not as seldom as it could be.
LOOK_FOR_CYCLES_EVERY = 10_000


def register(app: typer.Typer) -> None:
    """Adds it to the command."""
    app.command("worker")(worker)


def worker(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="Where your Worker is, e.g. orders.app:worker")],
    broker_url: BrokerUrl = None,
    namespace: Namespace = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Handlers at once [WATERSHIP_CONCURRENCY]", show_default=False)
    ] = None,
) -> None:
    """Run a worker: it does the steps of your sagas. Run as many as you like."""
    settings = load_settings(broker_url=broker_url, namespace=namespace, concurrency=concurrency)
    found = load_worker(target)
    asyncio.run(_serve(settings, found))


async def _serve(settings: Settings, found: Worker) -> None:
    look_for_cycles(every=LOOK_FOR_CYCLES_EVERY)
    service = Consumer(settings, RabbitBus(settings.broker()), found)
    await serve(service, drain_s=settings.drain_s)


def load_worker(target: str) -> Worker:
    """Imports ``MODULE:NAME``. Raises `ConfigurationError` that says what is wrong with it."""
    found = load_object(target, what="a worker", example="orders.app:worker")
    if not isinstance(found, Worker):
        raise ConfigurationError(f"{target} is not a watership_worker.Worker, it is {type(found).__name__}")
    return found
