"""`watership orchestrator` and `watership reaper`: the services as processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from watership.bus.protocol import Bus
from watership.bus.rabbit import RabbitBus
from watership.commands.options import BrokerUrl, DatabaseUrl, Namespace
from watership.service import Service, look_for_cycles, serve
from watership.settings import Settings, load_settings
from watership_orchestrator.backing import PostgresBacking
from watership_orchestrator.database import open_database
from watership_orchestrator.orchestrator import Orchestrator
from watership_orchestrator.ports import Backing
from watership_orchestrator.reaper import Reaper

# A batch makes tens of thousands of objects, and hardly one is in a cycle: looking for them at every 700 new objects was an
# eighth of all that an orchestrator did.
LOOK_FOR_CYCLES_EVERY = 50_000


def orchestrator(broker_url: BrokerUrl = None, database_url: DatabaseUrl = None, namespace: Namespace = None) -> None:
    """Run an orchestrator: it decides what happens next. Run as many as you like."""
    settings = load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    asyncio.run(_serve(settings, lambda bus, backing: Orchestrator(settings, bus, backing)))


def reaper(broker_url: BrokerUrl = None, database_url: DatabaseUrl = None, namespace: Namespace = None) -> None:
    """Run a reaper: it re-drives what timed out or was interrupted. Run as many as you like."""
    settings = load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace)
    asyncio.run(_serve(settings, lambda bus, backing: Reaper(settings, bus, backing)))


async def _serve(settings: Settings, make: Callable[[Bus, Backing], Service]) -> None:
    backing = PostgresBacking(open_database(settings.database()), settings.namespace)
    service = make(RabbitBus(settings.broker()), backing)
    look_for_cycles(every=LOOK_FOR_CYCLES_EVERY)
    await serve(service, drain_s=settings.drain_s)
