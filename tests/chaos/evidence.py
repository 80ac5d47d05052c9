"""What a run left behind, read from both databases: for the laws to look at. It judges nothing."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections import defaultdict
from typing import Any

import asyncpg

from watership.machine.changes import Change
from watership.machine.plan import Plan
from watership.saga.storage.rows import changes_from_json

from tests.chaos.books import plain
from tests.chaos.system import Kill


@dataclasses.dataclass(frozen=True, slots=True)
class Effect:
    """A line of the participants' ledger. ``at_s``: seconds since the epoch."""

    effect_id: int
    kind: str
    step: str
    action: str
    attempt: int
    idempotency_key: str
    pid: int
    at_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a saga's log."""

    seq: int
    at_ms: int
    cause: str
    changes: tuple[Change, ...]


@dataclasses.dataclass
class Evidence:
    """``rows``: the sagas' rows by id, columns by name. ``pieces``, ``cents`` and ``till`` by (kind, shelf)."""

    rows: dict[uuid.UUID, dict[str, Any]] = dataclasses.field(default_factory=dict)
    log: dict[uuid.UUID, list[Entry]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    plans: dict[str, Plan] = dataclasses.field(default_factory=dict)
    late_lines: int = 0  # of Watership's own ledger
    intents: dict[uuid.UUID, dict[str, Any]] = dataclasses.field(default_factory=dict)
    acks: dict[uuid.UUID, int] = dataclasses.field(default_factory=dict)
    told: list[tuple[uuid.UUID, str]] = dataclasses.field(default_factory=list)
    effects: dict[uuid.UUID, list[Effect]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    pieces: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    cents: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    till: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    shipped: dict[uuid.UUID, int] = dataclasses.field(default_factory=dict)
    kills: list[Kill] = dataclasses.field(default_factory=list)


async def gather(database_url: str, books_url: str, namespace: str, kills: list[Kill]) -> Evidence:
    """Reads all of it, straight from the servers."""
    found = Evidence(kills=kills)
    connection = await asyncpg.connect(plain(database_url))
    try:
        await _read_sagas(connection, namespace, found)
    finally:
        await connection.close()
    connection = await asyncpg.connect(plain(books_url))
    try:
        await _read_books(connection, found)
    finally:
        await connection.close()
    return found


async def _read_sagas(connection: Any, namespace: str, found: Evidence) -> None:
    for row in await connection.fetch("SELECT * FROM watership_saga WHERE namespace = $1", namespace):
        found.rows[_id(row)] = dict(row)
    for row in await connection.fetch("SELECT * FROM watership_log ORDER BY saga_id, seq"):
        entry = Entry(row["seq"], row["at_ms"], row["cause"], changes_from_json(row["changes"]))
        found.log[_id(row)].append(entry)
    for row in await connection.fetch("SELECT plan_hash, plan FROM watership_plan WHERE namespace = $1", namespace):
        found.plans[row["plan_hash"]] = Plan.from_data(json.loads(row["plan"]))
    found.late_lines = await connection.fetchval(
        "SELECT count(*) FROM watership_ledger WHERE namespace = $1", namespace
    )


async def _read_books(connection: Any, found: Evidence) -> None:
    for row in await connection.fetch("SELECT saga_id, context FROM intent"):
        found.intents[_id(row)] = json.loads(row["context"])
    for row in await connection.fetch("SELECT saga_id, tries FROM ack"):
        found.acks[_id(row)] = row["tries"]
    found.told = [(_id(row), row["status"]) for row in await connection.fetch("SELECT saga_id, status FROM told")]
    columns = (
        "saga_id, effect_id, kind, step, action, attempt, idempotency_key, pid, extract(epoch FROM at)::float8 AS at_s"
    )
    for row in await connection.fetch(f"SELECT {columns} FROM effect ORDER BY effect_id"):
        values = dict(row)
        found.effects[uuid.UUID(bytes=values.pop("saga_id").bytes)].append(Effect(**values))
    for table, column, into in (
        ("stock", "pieces", found.pieces),
        ("account", "cents", found.cents),
        ("till", "cents", found.till),
    ):
        for row in await connection.fetch(f"SELECT kind, shelf, {column} AS amount FROM {table}"):
            into[row["kind"], row["shelf"]] = int(row["amount"])
    for row in await connection.fetch("SELECT saga_id, count(*) AS parcels FROM shipment GROUP BY saga_id"):
        found.shipped[_id(row)] = row["parcels"]


def _id(row: Any) -> uuid.UUID:
    return uuid.UUID(bytes=row["saga_id"].bytes)
