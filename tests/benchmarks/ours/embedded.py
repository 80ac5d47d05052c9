"""Sagas in this process by `bootstrap`: on Postgres, on SQLite, or in memory. ``--broker-url``: distributed, each awaited."""

from __future__ import annotations

import asyncio
import logging

from watership import bootstrap
from watership.saga.storage import migrations

from tests.benchmarks.closed_loop import arguments, closed_loop
from tests.benchmarks.ours.saga import BenchContext, sagas


async def main() -> None:
    """Runs them."""
    logging.getLogger("watership").setLevel(logging.ERROR)
    given = arguments("database-url", "broker-url", "namespace")
    if given.database_url.startswith("sqlite"):
        await migrations.upgrade(given.database_url)
    mediator = bootstrap(
        sagas_mapper=sagas,
        database_url=given.database_url or None,
        broker_url=given.broker_url or None,
        namespace=given.namespace or "watership",
    )

    async def run_one() -> None:
        result = await mediator.run(BenchContext())
        assert result.status == "COMPLETED", result

    async with mediator:
        await closed_loop(run_one, given.at_once, given.seconds)


asyncio.run(main())
