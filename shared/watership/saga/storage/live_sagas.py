"""What code is compared with: the live plans and the sagas in flight of one namespace, read page by page.

It judges nothing: see `watership.saga.compat`.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from watership import codec
from watership.errors import DefinitionError
from watership.machine.plan import Plan
from watership.machine.state import MACHINE_VERSION, SagaState
from watership.saga.compat import (
    EMBEDDED,
    ORCHESTRATOR,
    Announced,
    Code,
    Comparison,
    InFlight,
    LivePlan,
    Report,
    elsewhere,
)
from watership.saga.storage.database import Database
from watership.saga.storage.plan_records import IN_FLIGHT, KnownSaga, known_sagas
from watership.saga.storage.rows import state_from_row
from watership.saga.storage.schema import IS_LOOKED_AT, handler_table, plan_table, saga_table

PAGE_SAGAS = 500
SEEN_WITHIN_MS = 180_000  # a worker announces itself every minute: what was not heard of for three is gone

_ROW = [
    saga_table.c[name]
    for name in (
        "saga_id",
        "driver",
        "name",
        "status",
        "plan_hash",
        "seq",
        "context",
        "state",
        "parked_reason",
        "paused",
        "machine_version",
    )
]


async def compare(database: Database, codes: Sequence[Code], *, only: Collection[str], sample: int) -> Report:
    """Compares code with what is live in the database's namespace.

    ``only``: sagas of these names (none: of all). ``sample``: at most so many sagas are read.
    """
    drivers = (EMBEDDED, ORCHESTRATOR) if any(code.embeds for code in codes) else (ORCHESTRATOR,)
    reading = _Reading(database.namespace, drivers, only)
    known = {
        name: saga
        for name, saga in (
            await database.read(lambda it: known_sagas(it, database.namespace, (EMBEDDED, ORCHESTRATOR)))
        ).items()
        if not only or name in only
    }
    announced = await database.read(lambda it: reading.announced(it, database))
    by_services = bool(announced) or any(not code.embeds for code in codes) or _count(known, ORCHESTRATOR) > 0
    wanted = [one for name, saga in known.items() for one in _wanted(name, saga, codes, by_services)]
    plans, strange = await database.read(lambda it: reading.plans(it, {one.plan_hash for one in wanted}))
    found = [
        LivePlan(plans[one.plan_hash], one.driver, one.in_flight, one.starts)
        for one in wanted
        if one.plan_hash in plans and one.driver in drivers
    ]
    comparison = Comparison(codes, found, elsewhere(announced, codes))
    for sentence in (*strange, *_notes(known, codes, by_services), *_left_out(wanted, plans, drivers)):
        comparison.note(sentence)
    read = 0
    async for page in _pages(database, reading, sample):
        for it in page:
            comparison.saga(it)
        read += len(page)
    every = sum(_count(known, driver) for driver in drivers)
    return comparison.report(complete=read < sample or read >= every)


def _count(known: Mapping[str, KnownSaga], driver: str) -> int:
    return sum(count for saga in known.values() for (_, its, _), count in saga.in_flight.items() if its == driver)


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """A plan that matters: how many sagas are in flight on it, and why new starts get it, if they do."""

    saga: str
    plan_hash: str
    driver: str
    in_flight: int
    starts: str | None


def _wanted(name: str, saga: KnownSaga, codes: Sequence[Code], by_services: bool) -> list[_Wanted]:
    counts: Counter[tuple[str, str]] = Counter()
    for (plan_hash, driver, _), count in saga.in_flight.items():
        if plan_hash is not None:
            counts[plan_hash, driver] += count
    starts = saga.foreign_starts if by_services else None
    if starts is not None and starts.choice is None and _new_plans(saga, codes, name):
        starts = None  # once this code is deployed, they get its own plan
    gets: dict[tuple[str, str], str] = {}
    if starts is not None:
        gets[starts.plan_hash, ORCHESTRATOR] = str(starts.view()["why"])
    return [_Wanted(name, *key, counts[key], gets.get(key)) for key in sorted(counts.keys() | gets.keys())]


def _new_plans(saga: KnownSaga, codes: Sequence[Code], name: str) -> list[str]:
    """The plans of this saga that the code has and nobody has announced yet."""
    known = {plan_hash for plan_hash, _ in saga.plans}
    hashes = {code.definitions[name].plan.hash for code in codes if name in code.definitions}
    return sorted(hashes - known)


def _notes(known: Mapping[str, KnownSaga], codes: Sequence[Code], by_services: bool) -> list[str]:
    notes = []
    for name, saga in known.items():
        for plan_hash in _new_plans(saga, codes, name) if by_services else ():
            starts = saga.foreign_starts
            if starts is not None and starts.choice is not None:
                notes.append(
                    f"{name}: plan {plan_hash} of this code is new; foreign starts go on getting {starts.plan_hash}, "
                    f"which {starts.choice['actor']} chose (`watership plans use {name} --newest` takes that back)"
                )
            else:
                notes.append(f"{name}: plan {plan_hash} of this code is new; foreign starts get it once a worker runs")
        waiting = sum(count for (plan_hash, _, _), count in saga.in_flight.items() if plan_hash is None)
        if waiting:
            notes.append(f"{name}: {waiting:,} sagas wait for a plan of that name")
    return notes


def _left_out(wanted: Sequence[_Wanted], plans: Mapping[str, Plan], drivers: Sequence[str]) -> list[str]:
    notes = [
        f"{one.saga}: {one.in_flight:,} sagas are on plan {one.plan_hash}, which is not known here: they are not compared"
        for one in wanted
        if one.in_flight and one.plan_hash not in plans
    ]
    embedded = sum(one.in_flight for one in wanted if one.driver == EMBEDDED)
    if embedded and EMBEDDED not in drivers:
        notes.append(
            f"{embedded:,} embedded sagas are not compared: a Worker does not run them; name a sagas_mapper too"
        )
    return notes


@dataclasses.dataclass(frozen=True, slots=True)
class _Reading:
    """The statements, for one namespace."""

    namespace: str
    drivers: Sequence[str]
    only: Collection[str]

    async def announced(self, connection: AsyncConnection, database: Database) -> list[Announced]:
        """Handlers that were heard of lately."""
        of, now = handler_table.c, database.queries.now
        query = sa.select(of.step, of.source, of.queue, of.worker, (now - of.seen_at_ms).label("ago"))
        query = query.where(of.namespace == self.namespace, of.seen_at_ms > now - SEEN_WITHIN_MS)
        return [
            Announced(row.step, row.source, row.queue, row.worker, row.ago) for row in await connection.execute(query)
        ]

    async def plans(self, connection: AsyncConnection, hashes: Collection[str]) -> tuple[dict[str, Plan], list[str]]:
        """These plans; and a sentence for each that a newer version wrote."""
        of = plan_table.c
        query = sa.select(of.plan_hash, of.plan).where(of.namespace == self.namespace, of.plan_hash.in_(hashes))
        found: dict[str, Plan] = {}
        strange = []
        for plan_hash, text in await connection.execute(query):
            try:
                found[plan_hash] = Plan.from_data(codec.loads(text))
            except DefinitionError as error:
                strange.append(f"plan {plan_hash} cannot be read by this version: {error}")
        return found, strange

    async def page(self, connection: AsyncConnection, after: uuid.UUID | None, limit: int) -> list[InFlight]:
        """The next sagas in flight, by id."""
        of = saga_table.c
        query = sa.select(*_ROW).where(
            of.namespace == self.namespace,
            of.driver.in_(self.drivers),
            of.status.in_(IN_FLIGHT),
            IS_LOOKED_AT,
            of.plan_hash.is_not(None),
        )
        if self.only:
            query = query.where(of.name.in_(self.only))
        if after is not None:
            query = query.where(of.saga_id > after)
        rows = (await connection.execute(query.order_by(of.saga_id).limit(limit))).mappings()
        return [
            InFlight(row["saga_id"], row["driver"], row["plan_hash"], codec.loads(row["context"]), _state(dict(row)))
            for row in rows
        ]


def _state(row: Mapping[str, Any]) -> SagaState | None:
    return state_from_row(row) if row["machine_version"] <= MACHINE_VERSION else None


async def _pages(database: Database, reading: _Reading, sample: int) -> AsyncIterator[list[InFlight]]:
    after: uuid.UUID | None = None
    left = sample
    while left > 0:
        limit, behind = min(PAGE_SAGAS, left), after
        page = await database.read(lambda it, limit=limit, behind=behind: reading.page(it, behind, limit))  # type: ignore[misc]
        if page:
            yield page
        if len(page) < limit:
            return
        left -= len(page)
        after = page[-1].saga_id
