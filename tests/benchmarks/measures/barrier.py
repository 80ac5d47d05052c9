"""What the barrier costs: handlers that do nothing, that write a row each, and that write it behind the barrier."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from watership import BarrierBase

from tests.benchmarks.bench import Bench, Data, ratio
from tests.benchmarks.contenders import Contender, Ground, distributed, load, services
from tests.benchmarks.running import Program
from tests.support.endpoints import run

TITLE = "The barrier"
IS_LONG = False
GOAL = 0.7
AT_ONCE = 300
TABLE = "CREATE TABLE IF NOT EXISTS bench_effect (order_id text NOT NULL, step text NOT NULL)"


def business(barrier: str) -> Contender:
    """Each handler writes a row and commits; behind the barrier or not."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        run(_make_tables(ground.database_url))
        environment = {"PARTICIPANT_URL": ground.database_url, "BARRIER": barrier}
        return [*services(ground, worker="barred", more=environment), load(ground, seconds, at_once=AT_ONCE)]

    words = "behind the barrier" if barrier == "on" else "without a barrier"
    title = f"each step writes a row, {words}"
    return Contender(
        f"barrier-{barrier}", title, f"in the database that the orchestrator has; {AT_ONCE} on their way", 3, programs
    )


async def _make_tables(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(BarrierBase.metadata.create_all)
        await connection.execute(sa.text(TABLE))
    await engine.dispose()


def measure(bench: Bench) -> Data:
    """The three in turn."""
    plain = distributed(at_once=AT_ONCE)
    series = bench.interleaved([plain, business("off"), business("on")])
    return {
        "series": series,
        "ratio": ratio(series["barrier-on"], series["barrier-off"]),
        "ratio_to_nothing": ratio(series["barrier-on"], series[plain.name]),
        "goal": GOAL,
    }
