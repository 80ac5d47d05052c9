"""`watership topology`: the exchanges and queues of a namespace, declared and checked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import typer

from watership.bus.protocol import Bus
from watership.bus.topology import Queue, Topology
from watership.client import rabbit_bus
from watership.commands.options import AsJson, BrokerUrl, Namespace
from watership.commands.screen import clean, print_json, say, say_error
from watership.settings import Settings, load_settings

NAME_BYTES_MAX = 255

app = typer.Typer(no_args_is_help=True, help="The broker: declare and check exchanges and queues.")

StepQueues = Annotated[
    list[str] | None,
    typer.Option(
        "--queue",
        metavar="NAME",
        help="A step's queue too, by the step's name or its own `queue`. Repeat it for more.",
        show_default=False,
    ),
]


@app.command()
def declare(queue: StepQueues = None, broker_url: BrokerUrl = None, namespace: Namespace = None) -> None:
    """Declare the exchanges and the orchestrator's queues. Harmless when they are there.

    Workers declare their steps' queues when they start; --queue declares one before.
    """
    settings = load_settings(broker_url=broker_url, namespace=namespace)
    topology = Topology(settings.namespace)
    queues = _queues(topology, queue)
    asyncio.run(_declare(settings, topology, queues))
    say(
        f"the namespace {settings.namespace} has its {len(topology.exchanges())} exchanges and "
        f"{len(queues)} queues on the broker"
    )


@app.command()
def check(
    queue: StepQueues = None, as_json: AsJson = False, broker_url: BrokerUrl = None, namespace: Namespace = None
) -> None:
    """Look whether the exchanges and queues are there; exit 1 and say what is missing. It changes nothing."""
    settings = load_settings(broker_url=broker_url, namespace=namespace)
    topology = Topology(settings.namespace)
    missing = asyncio.run(_missing(settings, topology, _queues(topology, queue)))
    if as_json:
        print_json(missing)
    elif missing:
        for sentence in missing:
            typer.echo(clean(sentence))
        say_error(f"the namespace {settings.namespace} is not complete: run `watership topology declare`")
    else:
        say(f"the namespace {settings.namespace} has all its exchanges and queues on the broker")
    if missing:
        raise typer.Exit(1)


def _queues(topology: Topology, steps: list[str] | None) -> list[Queue]:
    queues = topology.orchestrator_queues()
    for name in steps or []:
        found = topology.step_queue(name)
        if not name or len(found.name.encode()) > NAME_BYTES_MAX:
            reason = f"a queue's name has 1 to {NAME_BYTES_MAX} bytes, its namespace included"
            raise typer.BadParameter(reason, param_hint="'--queue'")
        queues.append(found)
    return queues


@contextlib.asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[Bus]:
    bus = rabbit_bus(settings.broker(), name="watership command")
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()


async def _declare(settings: Settings, topology: Topology, queues: list[Queue]) -> None:
    async with _open(settings) as bus:
        await bus.declare(topology.exchanges(), queues)


async def _missing(settings: Settings, topology: Topology, queues: list[Queue]) -> list[str]:
    async with _open(settings) as bus:
        return await bus.missing(topology.exchanges(), queues)
