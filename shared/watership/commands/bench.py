"""`watership bench`: how fast the user's own broker, database and sagas are, and what limits them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import uuid
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from watership.benching.findings import BrokerFindings, Findings
from watership.benching.saga import STEPS
from watership.bus.topology import Topology
from watership.client import rabbit_bus
from watership.commands.options import AsJson, BrokerUrl, DatabaseUrl
from watership.commands.reach import by_broker, existing_database
from watership.commands.screen import output, print_json, say
from watership.errors import ConfigurationError
from watership.settings import Settings, load_settings

Seconds = Annotated[
    float, typer.Option("--seconds", min=0.2, max=300, help="How long each of the three measurements takes.")
]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, max=5_000, help="Sagas at once.")]


def bench(
    seconds: Seconds = 5.0,
    at_once: AtOnce = 200,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Measure your installation: messages, commits and sagas a second, and what limits them.

    With a broker, an orchestrator, a worker and a reaper run as processes on this machine, on your broker and your
    database; with a database alone, the sagas run in this process. The sagas do nothing, in a namespace of their own:
    its queues and rows are removed, and no other namespace is touched. It is a load: not for a busy hour.
    """
    settings = load_settings(broker_url=broker_url, database_url=database_url)
    is_distributed = by_broker(settings, broker_url, database_url, "to measure")
    where = existing_database(settings.database())
    namespace = f"bench-{uuid.uuid4().hex[:12]}"
    findings = asyncio.run(_measure(settings, where, namespace, seconds, at_once, is_distributed=is_distributed))
    if as_json:
        print_json({**dataclasses.asdict(findings), "limit": findings.limit()})
    else:
        _show(findings)


async def _measure(
    settings: Settings, where: str, namespace: str, seconds: float, at_once: int, *, is_distributed: bool
) -> Findings:
    from watership.benching.running import measure_distributed, measure_embedded
    from watership.benching.servers import measure_database

    database_url = settings.database()
    async with _database(database_url, namespace) as engine, contextlib.AsyncExitStack() as stack:
        say(f"measuring {'the broker and ' if is_distributed else ''}{where}, in the namespace {namespace}")
        broker = await stack.enter_async_context(_broker(settings, namespace, seconds)) if is_distributed else None
        commits = await measure_database(engine, namespace, seconds)
        if is_distributed:
            found = await measure_distributed(
                settings.broker(), database_url, namespace, at_once=at_once, seconds=seconds
            )
        else:
            found = await measure_embedded(database_url, namespace, at_once=at_once, seconds=seconds)
    return Findings(commits, found, broker, os.cpu_count() or 1)


@contextlib.asynccontextmanager
async def _database(url: str, namespace: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the database, if its tables are this version's. The namespace's rows are removed on leaving."""
    from watership.benching.servers import remove_rows
    from watership.saga.storage import migrations
    from watership.saga.storage.engines import make_engine, parse_url

    differences = list(await migrations.check(url))
    if differences:
        raise ConfigurationError(f"the database is not ready: {differences[0]} (`watership db check` tells all)")
    engine = make_engine(parse_url(url))
    try:
        yield engine
    finally:
        try:
            await remove_rows(engine, namespace)
        finally:
            await engine.dispose()


@contextlib.asynccontextmanager
async def _broker(settings: Settings, namespace: str, seconds: float) -> AsyncIterator[BrokerFindings]:
    """What the broker does alone. The namespace's queues and exchanges are removed on leaving."""
    from watership.benching.servers import QUEUE, measure_broker
    from watership.bus.rabbit.removal import remove

    topology = Topology(namespace)
    bus = rabbit_bus(settings.broker(), name="watership bench")
    await bus.open()
    try:
        try:
            findings = await measure_broker(bus, topology, seconds)
        finally:
            await bus.close()
        yield findings
    finally:
        await remove(settings.broker(), topology, [QUEUE, *STEPS])


def _show(findings: Findings) -> None:
    table = Table("", "a second", "one alone, p50", "p99", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    if findings.broker is not None:
        broker = findings.broker
        rate = f"{broker.messages_per_s:,.0f}"
        table.add_row("messages, confirmed and consumed", rate, _ms(broker.alone_p50_ms), _ms(broker.alone_p99_ms))
    commits = findings.database
    table.add_row("commits of one row", "", _ms(commits.commit_p50_ms), _ms(commits.commit_p99_ms))
    sagas = findings.sagas
    rate = f"{sagas.sagas_per_s:,.0f}"
    title = f"sagas of three steps, {sagas.at_once} at once"
    table.add_row(title, rate, _ms(sagas.alone_p50_ms), _ms(sagas.alone_p99_ms))
    console = output()
    console.print(table)
    if sagas.busy:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in sagas.busy.items())
        cores = "" if sagas.machine_busy is None else f"; all {findings.cores} cores together {sagas.machine_busy:.0%}"
        console.print(Text(f"\nbusy, of a core: {shares}{cores}"))
    sentence = findings.limit()
    console.print(Text(sentence[0].upper() + sentence[1:] + ".", style="bold"))


def _ms(value: float) -> str:
    return f"{value:.1f} ms"
