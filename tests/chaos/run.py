"""One chaos run from beginning to end: servers, processes and load up; faults; drain; evidence, laws, report."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from tests.chaos import books
from tests.chaos.evidence import Evidence, gather
from tests.chaos.ground import Ground, PrivateGround
from tests.chaos.guardian import Guardian
from tests.chaos.laws import Breach, breaches
from tests.chaos.nemeses import Nemesis, all_nemeses
from tests.chaos.report import Figures, report, stories
from tests.chaos.schedule import Season, plan
from tests.chaos.system import System

# What our services say of it, in their logs.
WORDS = {
    "redelivered commands that were run again": "is run again: it was delivered before",
    "batches that were dropped as too old": "it comes again",
    "replies that had to be sent again": "replies are not confirmed",
    "batches that waited for the database": "messages wait",
}
# Little in hand, so that a queue can be full while its consumers are stopped.
SETTINGS = {"WATERSHIP_PREFETCH": "25", "WATERSHIP_CONCURRENCY": "8", "WATERSHIP_REAP_EVERY_S": "0.5"}
SETTLED = "status IN ('COMPLETED', 'COMPENSATED') AND NOT owed OR parked_reason IS NOT NULL AND NOT owed"


@dataclasses.dataclass(frozen=True)
class Options:
    """What a run is. ``only``: groups of nemeses, none for all; ``adjust`` chooses among them, or changes their pace."""

    seed: int
    faults_s: float
    sagas: int
    cast: dict[str, int]
    drain_within_s: float = 60.0
    only: tuple[str, ...] = ()
    queue_within_s: float = 5.0  # of the steps: with their time and a grace, when a lost command is due
    adjust: Callable[[Sequence[Nemesis]], Sequence[Nemesis]] = lambda nemeses: nemeses


@dataclasses.dataclass
class Outcome:
    """What came of it. ``fallen``: processes of ours that ended by themselves."""

    evidence: Evidence
    breaches: list[Breach]
    fallen: list[str]
    drained_s: float | None
    text: str


async def run(
    options: Options, ground: Ground, guardian: Guardian, directory: Path, say: Callable[[str], None]
) -> Outcome:
    """The run. Raises only what is wrong with the run itself: what the system does wrong is in the outcome."""
    say(f"chaos: seed {options.seed}; {ground.description}")
    load = (options.seed, options.sagas, options.sagas / options.faults_s)
    settings = {**SETTINGS, "CHAOS_QUEUE_WITHIN_S": str(options.queue_within_s)}
    system = System(ground, guardian, directory, load, settings)
    async with system.running(options.cast):
        nemeses, out_of_reach = all_nemeses(system)
        for sentence in out_of_reach:
            say(f"not struck: {sentence}")
        chosen = options.adjust([nemesis for nemesis in nemeses if not options.only or nemesis.group in options.only])
        season = Season(options.seed, chosen, say)
        system.began_s = time.time()
        for actor in system.of("client"):
            system.start(actor)
        await season.run(plan(options.seed, chosen, options.faults_s), options.faults_s)
        say(f"{options.faults_s:6.1f} s  all is healed; {await _standing(ground)}")
        drained_s = await _drained(system, options)
        say(f"drained after {drained_s:.1f} s" if drained_s is not None else "NOT drained in time")
        if drained_s is None and isinstance(ground, PrivateGround):
            say(await ground.broker.control("list_policies"))
            say(await ground.broker.control("list_queues", "name", "policy", "messages_ready", "messages", "consumers"))
        await _heard(system)
        evidence = await gather(ground.database_url, ground.books_url, ground.namespace, system.kills)
        words = dict(zip(WORDS, system.lines(*WORDS.values()).values(), strict=True))
        fallen = system.fallen()
    found = breaches(evidence)
    if found:
        (directory / "breaches.txt").write_text(stories(evidence, found))
    figures = Figures(options.seed, options.faults_s, drained_s, words)
    return Outcome(evidence, found, fallen, drained_s, report(evidence, season.struck, figures, found))


async def _drained(system: System, options: Options) -> float | None:
    """Seconds until all orders are placed and their sagas are settled; None: not within the time."""
    began_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(options.drain_within_s):
            while True:
                standing = await _standing(system.ground)
                if standing is not None and standing.confirmed == standing.settled == options.sagas:
                    return time.monotonic() - began_s
                await asyncio.sleep(0.25)
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How far the load is."""

    confirmed: int
    sagas: int
    settled: int

    def __str__(self) -> str:
        return f"{self.confirmed} starts confirmed, {self.sagas} sagas there, {self.settled} of them settled"


async def _standing(ground: Ground) -> Standing | None:
    ledger: Any = None
    rows: Any = None
    try:
        ledger = await asyncpg.connect(books.plain(ground.books_url), timeout=5)
        confirmed = await ledger.fetchval("SELECT count(*) FROM ack")
        rows = await asyncpg.connect(books.plain(ground.database_url), timeout=5)
        query = f"SELECT count(*), count(*) FILTER (WHERE {SETTLED}) FROM watership_saga WHERE namespace = $1"
        return Standing(confirmed, *await rows.fetchrow(query, ground.namespace))
    except (OSError, asyncpg.PostgresError):
        return None  # a server is still starting
    finally:
        for connection in (ledger, rows):
            if connection is not None:
                await connection.close()


async def _heard(system: System) -> None:
    """Lets the clients hear of the ends: those that are late ask again by themselves."""
    for actor in system.of("client"):
        if actor.process is not None:
            with contextlib.suppress(AssertionError):
                await actor.process.line("heard of all", timeout_s=20)
