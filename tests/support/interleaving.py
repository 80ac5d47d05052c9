"""Runs of one step's handler that move in an order that a test chooses, each on a connection of its own.

A run is a real `execute` whose handler stops before each move: begin, enter, effect, exit, end (a commit, or an error before
it). A run that waits in the database is known by asking the database, so that the next move never hangs on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from watership import barrier
from watership.errors import error_code
from watership.execution import Execution
from watership.machine.state import Action, Outcome

from tests.support.barred_step import Bench, Order, SoldOut, take_effect

# How many of these connections wait for a lock. MariaDB is asked for all that wait: what it says of single transactions
# is as it was at the last look, for anybody who looks often; so its server must be ours alone.
WAITING = {
    "postgresql": "SELECT COUNT(*) FROM unnest(CAST(:ids AS int[])) AS id WHERE cardinality(pg_blocking_pids(id)) > 0",
    "mysql": "SELECT CAST(variable_value AS INT) FROM information_schema.global_status"
    " WHERE variable_name = 'Innodb_row_lock_current_waits'",
    "sqlite": "SELECT 0",  # with no time to wait, a second writer is refused at once
}
OWN_ID = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()", "sqlite": "SELECT 1"}
WITHIN_S = 30.0
LOOK_AGAIN_S = 0.003


@dataclasses.dataclass(frozen=True)
class Script:
    """What one run is: ``commits`` False: it fails between its block and its commit."""

    action: Action
    commits: bool = True
    attempt: int = 1
    generation: int = 1
    reads_first: bool = False  # its transaction reads before it enters: what a snapshot is made of

    def __repr__(self) -> str:
        return f"{self.action.value}{'' if self.commits else '-rolled-back'}"


class Actor:
    """One run that stops before each of its moves."""

    def __init__(self, name: str, script: Script, bench: Bench) -> None:
        self.name, self.script, self._bench = name, script, bench
        self.connection_id = 0
        self.ended: Execution | None = None
        self.at_gate = asyncio.Event()
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            self.ended = await self._bench.run(
                self.script.action, self._body, attempt=self.script.attempt, generation=self.script.generation
            )
        finally:
            self.at_gate.set()

    async def _body(self, context: Order) -> Any:
        await self._gate()
        async with AsyncSession(self._bench.engine) as session:
            own_id = sa.text(OWN_ID[self._bench.engine.dialect.name])
            self.connection_id = (await session.execute(own_id)).scalar_one()
            if self.script.reads_first:
                await session.execute(sa.text("SELECT COUNT(*) FROM watership_barrier"))
            await self._gate()
            async with barrier(session) as block:
                await self._gate()
                block.response = await take_effect(session, context, self.name)
                await self._gate()
            await self._gate()
            if not self.script.commits:
                raise SoldOut("before the commit")
            await session.commit()
            return block.response

    async def _gate(self) -> None:
        self.at_gate.set()
        await self._go.wait()
        self._go.clear()

    def move(self) -> None:
        """Lets it make its next move."""
        self.at_gate.clear()
        self._go.set()

    @property
    def ready(self) -> bool:
        """It stands at a gate."""
        return self.at_gate.is_set() and self.ended is None


MOVES = 5  # gates of a run that goes through


async def play(
    bench: Bench, scripts: Sequence[Script], schedule: Sequence[int], asks: AsyncConnection
) -> list[tuple[Script, Execution]]:
    """Plays the runs in the order of ``schedule``: whose turn it is. A turn of one that waits or has ended is passed over."""
    actors = [Actor(f"{number}:{script!r}", script, bench) for number, script in enumerate(scripts)]
    try:
        async with asyncio.timeout(WITHIN_S):
            await _settled(actors, asks)
            for turn in schedule:
                await _move(actors, actors[turn], asks)
            while any(actor.ended is None for actor in actors):
                await _settled(actors, asks)
                for actor in actors:
                    await _move(actors, actor, asks)
    finally:
        for actor in actors:
            actor.task.cancel()
        await asyncio.gather(*(actor.task for actor in actors), return_exceptions=True)
    return [(actor.script, actor.ended) for actor in actors if actor.ended is not None]


async def _move(actors: Sequence[Actor], actor: Actor, asks: AsyncConnection) -> None:
    if actor.ready:
        actor.move()
        await _settled(actors, asks)


async def _settled(actors: Sequence[Actor], asks: AsyncConnection) -> None:
    """Waits until each of them stands at a gate, has ended, or waits for another in the database."""
    while True:
        moving = [actor for actor in actors if not actor.at_gate.is_set()]
        if not moving:
            return
        arrivals = [asyncio.ensure_future(actor.at_gate.wait()) for actor in moving]
        await asyncio.wait(arrivals, timeout=LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for arrival in arrivals:
            arrival.cancel()
        moving = [actor for actor in actors if not actor.at_gate.is_set()]
        waiting = await _waiting(moving, asks)
        # If somebody has arrived since, who waited may go on.
        if waiting == len(moving) and moving == [actor for actor in actors if not actor.at_gate.is_set()]:
            return


async def _waiting(actors: Sequence[Actor], asks: AsyncConnection) -> int:
    query = sa.text(WAITING[asks.dialect.name])
    given = {"ids": [actor.connection_id for actor in actors]} if asks.dialect.name == "postgresql" else {}
    return int((await asks.execute(query, given)).scalar_one())


@contextlib.asynccontextmanager
async def asking(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection to ask who waits for whom."""
    async with engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


def interleavings(moves: int, *, mirrored: bool) -> Iterator[tuple[int, ...]]:
    """Every order in which two runs of so many moves can go; ``mirrored``: also with the second run first."""
    for first in itertools.combinations(range(2 * moves), moves):
        if mirrored or first[0] == 0:
            yield tuple(0 if turn in first else 1 for turn in range(2 * moves))


async def check(bench: Bench, ended: Sequence[tuple[Script, Execution]], *, contended: bool = False) -> None:
    """What holds after any interleaving; ``contended``: the database may have refused a run for another's sake."""
    effects = await bench.effects()
    acts = [run for action, run, _ in effects if action == "act"]
    undone = [(run, saw) for action, run, saw in effects if action == "compensate"]
    assert len(acts) <= 1, f"an act had its effect twice: {effects}"
    assert len(undone) <= len(acts), f"what never happened was undone, or twice: {effects}"
    assert not undone or undone[0][1] == acts[0], "a compensation that was not told what it undoes"
    compensated = False
    for script, run in ended:
        if script.action is Action.COMPENSATE and run.outcome is Outcome.DONE:
            compensated = True
            if undone:
                assert run.patch is not None and run.patch["released"], "a duplicate answers what was stored"
        if script.action is Action.ACT and run.outcome is Outcome.DONE:
            assert acts, "done, and there is no effect"
            assert run.patch == {"reservation": acts[0]}, "a duplicate answers what was stored"
            assert run.response == {"reservation": acts[0]}
        if run.outcome is Outcome.FAILED:
            assert run.error is not None
            code = error_code(type(run.error))
            known = {"barred_sold_out", "act_refused"}
            assert code in known or contended, f"{script}: {run.error!r}"
            assert run.certain == (code == "act_refused")
            assert not run.certain or len(acts) == len(undone), "refused, but an effect of it stands"
        assert run.outcome is not Outcome.UNKNOWN, f"{script}: {run.error!r}"
    assert not compensated or len(acts) == len(undone), f"an effect stands after its compensation: {effects}"


async def check_end(bench: Bench) -> None:
    """Whatever went before: once a compensation is done, nothing stands, and no act that is still to come has an effect."""
    assert (await bench.compensate(attempt=9)).outcome is Outcome.DONE
    late = await bench.act(attempt=9)
    assert (late.outcome, late.certain) == (Outcome.FAILED, True)
    actions = await bench.actions()
    assert actions in ([], ["act", "compensate"]), actions
