"""The participants' database: stock, money, shipments, and the ledger of intents, acknowledgements and effects.

It knows nothing of sagas: what is here is what really happened, whatever their own rows say. Of Watership it has the
barrier's table alone, which is the participants' business.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from watership.barrier_table import barrier_table

from tests.chaos.orders import CENTS_AT_FIRST, SHELVES, STOCK_AT_FIRST, Kind

SCHEMA = [
    "CREATE TABLE stock (kind text, shelf int, pieces bigint NOT NULL, PRIMARY KEY (kind, shelf))",
    "CREATE TABLE account (kind text, shelf int, cents bigint NOT NULL, PRIMARY KEY (kind, shelf))",
    "CREATE TABLE till (kind text, shelf int, cents bigint NOT NULL, PRIMARY KEY (kind, shelf))",
    "CREATE TABLE vault (kind text, shelf int, cents bigint NOT NULL, PRIMARY KEY (kind, shelf))",
    "CREATE TABLE shipment (saga_id uuid, pieces int NOT NULL, kind text NOT NULL)",
    "CREATE INDEX ON shipment (saga_id)",
    # One line for each effect, in the transaction that has it.
    """CREATE TABLE effect (effect_id bigserial PRIMARY KEY, saga_id uuid NOT NULL, kind text NOT NULL,
    step text NOT NULL, action text NOT NULL, attempt int NOT NULL, idempotency_key text NOT NULL, pid int NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp())""",
    "CREATE INDEX ON effect (saga_id)",
    str(CreateTable(barrier_table).compile(dialect=postgresql.dialect())),  # type: ignore[no-untyped-call]
    # The clients': what they were about to start, to signal and to call off, and what they were told of it.
    "CREATE TABLE intent (saga_id uuid PRIMARY KEY, context text NOT NULL, at timestamptz DEFAULT clock_timestamp())",
    "CREATE TABLE ack (saga_id uuid PRIMARY KEY, tries int NOT NULL, at timestamptz DEFAULT clock_timestamp())",
    """CREATE TABLE signal (saga_id uuid, number int, signal_id text NOT NULL, data text NOT NULL, told text,
    PRIMARY KEY (saga_id, number))""",
    "CREATE TABLE cancel (saga_id uuid PRIMARY KEY, told text)",
    "CREATE TABLE told (saga_id uuid, status text NOT NULL, at timestamptz DEFAULT clock_timestamp())",
    *(
        f"INSERT INTO {table} SELECT '{kind}', shelf, {first} FROM generate_series(0, {SHELVES - 1}) AS shelf"
        for kind in Kind
        for table, first in (("stock", STOCK_AT_FIRST), ("account", CENTS_AT_FIRST), ("till", 0), ("vault", 0))
    ),
]


def plain(url: str) -> str:
    """The URL as asyncpg reads it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
