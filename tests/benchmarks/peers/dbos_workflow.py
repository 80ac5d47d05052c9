"""The saga as a DBOS workflow of three steps, on Postgres, run in this process."""

from __future__ import annotations

import asyncio
import os

from dbos import DBOS, DBOSConfig

from tests.benchmarks.closed_loop import arguments, closed_loop

CONTEXT = {"order_id": "o-1", "padding": "x" * 220, "reservation_id": None, "payment_id": None}


@DBOS.step()
async def reserve(context: dict[str, object]) -> None:
    """Nothing."""


@DBOS.step()
async def charge(context: dict[str, object]) -> None:
    """Nothing."""


@DBOS.step()
async def ship(context: dict[str, object]) -> None:
    """Nothing."""


@DBOS.workflow()
async def order(context: dict[str, object]) -> None:
    """Three steps that do nothing."""
    await reserve(context)
    await charge(context)
    await ship(context)


async def main() -> None:
    """Runs them."""
    given = arguments("database-url")
    config = DBOSConfig(
        name="bench",
        system_database_url=given.database_url,
        sys_db_pool_size=max(10, given.at_once),
        log_level="WARNING",
        executor_id=f"bench-{os.getpid()}",
    )
    DBOS(config=config)
    DBOS.launch()
    await closed_loop(lambda: order(CONTEXT), given.at_once, given.seconds)
    os._exit(0)  # its threads are of no interest any more


asyncio.run(main())
