"""Every interleaving of act, compensate and duplicates on real servers: at most one effect, and none after its undoing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from watership.machine.state import Action

from tests.support.barred_step import Bench, create_tables
from tests.support.interleaving import MOVES, Script, asking, check, check_end, interleavings, play

ACT, COMPENSATE = Action.ACT, Action.COMPENSATE
FAST = {"server_settings": {"synchronous_commit": "off"}}  # nobody cuts the power here
PAIRS = [(ACT, ACT), (ACT, COMPENSATE), (COMPENSATE, COMPENSATE)]
# Two runs of one command are alike: which of them is rolled back makes no difference.
CASES = [
    (Script(one, commits=first), Script(other, commits=second))
    for one, other in PAIRS
    for first, second in itertools.product([True, False], repeat=2)
    if one is not other or first >= second
]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=6, connect_args=FAST)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
async def asks(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with asking(engine) as connection:
        yield connection


@pytest.mark.parametrize("scripts", CASES, ids=str)
@pytest.mark.parametrize("acted_before", [False, True])
async def test_all_interleavings_of_two_runs(
    engine: AsyncEngine, asks: AsyncConnection, acted_before: bool, scripts: tuple[Script, Script]
) -> None:
    # The first move, begin, only opens a transaction: on READ COMMITTED it sees nothing, so it is played with the second.
    for schedule in interleavings(MOVES - 1, mirrored=scripts[0] != scripts[1]):
        bench = Bench(engine)
        if acted_before:
            await bench.act(run="before")
        ended = await play(bench, scripts, [0, 1, *schedule], asks)
        await check(bench, ended)
        await check_end(bench)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(action.value for action in pair))
async def test_a_stricter_isolation_refuses_and_never_lies(
    database_url: str, level: str, pair: tuple[Action, Action]
) -> None:
    engine = create_async_engine(database_url, pool_size=6, connect_args=FAST, isolation_level=level)
    await create_tables(engine)
    scripts = [Script(action, reads_first=True) for action in pair]
    async with asking(engine) as asks:
        for schedule in list(interleavings(MOVES, mirrored=True))[::7]:
            bench = Bench(engine)
            ended = await play(bench, scripts, schedule, asks)
            await check(bench, ended, contended=True)
            await check_end(bench)
    await engine.dispose()


scripts_of_three = st.lists(
    st.builds(
        Script,
        action=st.sampled_from([ACT, COMPENSATE]),
        commits=st.sampled_from([True, True, False]),
        attempt=st.integers(1, 2),
        generation=st.integers(1, 2),
        reads_first=st.booleans(),
    ),
    min_size=3,
    max_size=3,
)
schedules = st.lists(st.integers(0, 2), max_size=3 * MOVES)


def generation_of_acts(scripts: list[Script]) -> list[Script]:
    """An act has one generation."""
    return [
        Script(ACT, script.commits, script.attempt, 1, script.reads_first) if script.action is ACT else script
        for script in scripts
    ]


@given(scripts=scripts_of_three.map(generation_of_acts), schedule=schedules)
@settings(max_examples=150, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_three_runs_in_any_order(
    three: tuple[asyncio.Runner, AsyncEngine, AsyncConnection], scripts: list[Script], schedule: list[int]
) -> None:
    runner, engine, asks = three
    note(f"{scripts} in the order {schedule}")

    async def one() -> None:
        bench = Bench(engine)
        await check(bench, await play(bench, scripts, schedule, asks))
        await check_end(bench)

    runner.run(one())


@pytest.fixture
def three(database_url: str) -> Iterator[tuple[asyncio.Runner, AsyncEngine, AsyncConnection]]:
    """A loop that all examples share, with warm connections."""
    with asyncio.Runner() as runner:
        engine = create_async_engine(database_url, pool_size=8, connect_args=FAST)

        async def opened() -> AsyncConnection:
            await create_tables(engine)
            return await (await engine.connect().start()).execution_options(isolation_level="AUTOCOMMIT")

        connection = runner.run(opened())
        yield runner, engine, connection
        runner.run(connection.close())
        runner.run(engine.dispose())
