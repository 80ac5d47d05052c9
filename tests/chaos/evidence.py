"""What a run left behind, read from both databases: for the laws to look at. It judges nothing."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import asyncpg

from watership.machine.changes import Change
from watership.machine.plan import Plan
from watership.saga.storage.rows import changes_from_json

from tests.chaos.books import plain
from tests.chaos.orders import Kind
from tests.chaos.system import Kill

ACCEPTED = "accepted"


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
class Said:
    """A signal that a client sent. ``told``: `ACCEPTED`, or why it was refused; None: it never heard."""

    number: int
    signal_id: str
    data: dict[str, Any]
    told: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a saga's log."""

    seq: int
    at_ms: int
    cause: str
    changes: tuple[Change, ...]


@dataclasses.dataclass
class Evidence:
    """``rows``: the sagas' rows by id, columns by name. ``pieces`` and what holds money by (kind, shelf).

    ``barred``: the states of the barrier's rows by (saga, step, action). ``called_off``: what clients were told, as in `Said`.
    """

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
    vault: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    shipped: dict[uuid.UUID, int] = dataclasses.field(default_factory=dict)
    barred: dict[tuple[uuid.UUID, str, str], str] = dataclasses.field(default_factory=dict)
    said: dict[uuid.UUID, list[Said]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    called_off: dict[uuid.UUID, str | None] = dataclasses.field(default_factory=dict)
    kills: list[Kill] = dataclasses.field(default_factory=list)

    def histories(self) -> Iterator[tuple[uuid.UUID, list[Change]]]:
        """Each saga with all changes of its log."""
        for saga_id in self.rows:
            yield saga_id, [change for entry in self.log[saga_id] for change in entry.changes]

    def sagas_of(self, *kinds: Kind) -> Iterator[tuple[uuid.UUID, dict[str, Any], list[Effect]]]:
        """Each saga of these kinds with its row and its effects."""
        for saga_id, row in self.rows.items():
            if self.intents.get(saga_id, {}).get("kind") in kinds:
                yield saga_id, row, self.effects.get(saga_id, [])

    def plan_of(self, saga_id: uuid.UUID) -> Plan | None:
        """The plan that a saga runs on."""
        return self.plans.get(self.rows[saga_id]["plan_hash"] or "")


def end_of(row: Mapping[str, Any]) -> str:
    """How a saga stands, in one word."""
    if row["parked_reason"] is not None:
        return "parked"
    return str(row["status"])


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
        await _read_clients(connection, found)
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
        ("vault", "cents", found.vault),
    ):
        for row in await connection.fetch(f"SELECT kind, shelf, {column} AS amount FROM {table}"):
            into[row["kind"], row["shelf"]] = int(row["amount"])
    for row in await connection.fetch("SELECT saga_id, count(*) AS parcels FROM shipment GROUP BY saga_id"):
        found.shipped[_id(row)] = row["parcels"]
    for row in await connection.fetch("SELECT saga_id, step, action, state FROM watership_barrier"):
        found.barred[_id(row), row["step"], row["action"]] = row["state"]


async def _read_clients(connection: Any, found: Evidence) -> None:
    for row in await connection.fetch("SELECT saga_id, context FROM intent"):
        found.intents[_id(row)] = json.loads(row["context"])
    for row in await connection.fetch("SELECT saga_id, tries FROM ack"):
        found.acks[_id(row)] = row["tries"]
    found.told = [(_id(row), row["status"]) for row in await connection.fetch("SELECT saga_id, status FROM told")]
    for row in await connection.fetch("SELECT saga_id, number, signal_id, data, told FROM signal ORDER BY 1, 2"):
        said = Said(row["number"], row["signal_id"], json.loads(row["data"]), row["told"])
        found.said[_id(row)].append(said)
    for row in await connection.fetch("SELECT saga_id, told FROM cancel"):
        found.called_off[_id(row)] = row["told"]


def _id(row: Any) -> uuid.UUID:
    return uuid.UUID(bytes=row["saga_id"].bytes)
