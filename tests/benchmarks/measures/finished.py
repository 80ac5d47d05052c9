"""Ten million finished sagas in the tables, against none: do they cost the running ones anything?

They are what our clients leave in thirty days: one real saga's rows, its whole log too, are copied on the server by
generate_series, in the order of their starts, each copy with an id of its own that tells its moment, as `new_saga_id` makes it.
Indexes are built after the rows, then the tables are analyzed. Each run begins at a checkpoint, so that both write whole
pages into the write-ahead log where they touch one for the first time.
"""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks.bench import Bench, Data, checkpoint, ratio, spread
from tests.benchmarks.contenders import Ground, distributed, load, services
from tests.benchmarks.running import Run, run_once
from tests.support.endpoints import connect_postgresql, run

TITLE = "Ten million finished sagas"
IS_LONG = True
GOAL = 0.97
COUNT, QUICK_COUNT = 10_000_000, 200_000
AT_ONCE = 500_000
SHORT_S = 1.0
PAST_MS = 30 * 24 * 3600 * 1000

# The saga that is copied, and what it left in its log.
_TEMPLATES = {
    "watership_saga": "SELECT * FROM watership_saga WHERE status = 'COMPLETED' LIMIT 1",
    "watership_log": "SELECT * FROM watership_log WHERE saga_id = (SELECT saga_id FROM bench_watership_saga)",
}
_MOMENTS = {"watership_saga": ("created_at_ms", "updated_at_ms"), "watership_log": ("at_ms",)}

# A random UUID (version 4) whose first 48 bits become the milliseconds, and whose version becomes 7.
_IDS = """
INSERT INTO bench_id
SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing substring(int8send(at_ms) from 3) from 1 for 6),
    52, 1), 53, 1), 'hex')::uuid, at_ms
FROM (SELECT $1::bigint + n * $2::bigint / $3 AS at_ms FROM generate_series($4::bigint, $5::bigint) AS n) AS moments
"""


def measure(bench: Bench) -> Data:
    """Fills one database, then runs on it and on an empty one in turn."""
    count = QUICK_COUNT if bench.is_quick else COUNT
    with bench.ground() as full:
        run_once([*services(full), load(full, SHORT_S)], SHORT_S)  # one saga to copy, and all tables in use
        began_s = time.monotonic()
        size_bytes = run(fill(full, count))
        filled_s = time.monotonic() - began_s
        bench.say(f"  {count:,} finished sagas, {size_bytes / 2**30:.1f} GiB, filled in {filled_s:.0f} s")
        runs: dict[str, list[Run]] = {"empty": [], "full": []}
        for _ in range(bench.rounds):
            runs["empty"].append(bench.once(distributed().programs))
            run(checkpoint(full.database_url))
            runs["full"].append(run_once(distributed().programs(full, bench.seconds), bench.seconds))
            bench.say(f"  empty {runs['empty'][-1].rate:,.0f}, full {runs['full'][-1].rate:,.0f} sagas/s")
    series = {name: {"rate": spread([one.rate for one in found])} for name, found in runs.items()}
    return {
        "count": count,
        "bytes": size_bytes,
        "filled_s": filled_s,
        "series": series,
        "ratio": ratio(series["full"], series["empty"]),
        "goal": GOAL,
    }


async def fill(ground: Ground, count: int, ids: str = _IDS) -> int:
    """Copies; how many bytes the database has then."""
    connection = await connect_postgresql(ground.database_url)
    try:
        for table, template in _TEMPLATES.items():
            await connection.execute(f"CREATE TABLE bench_{table} AS {template}")
            assert await connection.fetchval(f"SELECT count(*) FROM bench_{table}"), "no saga has ended here"
        indexes = await _drop_indexes(connection)
        await connection.execute("SET synchronous_commit = off; SET maintenance_work_mem = '512MB'")
        await connection.execute("CREATE UNLOGGED TABLE bench_id (saga_id uuid, at_ms bigint)")
        first_ms = int(time.time() * 1000) - PAST_MS
        for first in range(0, count, AT_ONCE):
            await connection.execute("TRUNCATE bench_id")
            last = min(first + AT_ONCE, count) - 1
            await connection.execute(ids, first_ms, PAST_MS, count, first, last, timeout=300)
            for table in _TEMPLATES:
                await _copy(connection, table)
        for name in ("bench_id", *(f"bench_{table}" for table in _TEMPLATES)):
            await connection.execute(f"DROP TABLE {name}")
        for index in indexes:
            await connection.execute(index, timeout=900)
        for table in _TEMPLATES:
            await connection.execute(f"VACUUM (ANALYZE) {table}", timeout=900)
        await connection.execute("CHECKPOINT", timeout=300)
        return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
    finally:
        await connection.close()


async def _copy(connection: Any, table: str) -> None:
    """Its rows for each id, their moments moved to where the copy began."""
    columns = await connection.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped", table
    )
    names = [one[0] for one in columns]
    began = "(SELECT created_at_ms FROM bench_watership_saga)"
    moved = {"saga_id": "i.saga_id", **{name: f"i.at_ms + t.{name} - {began}" for name in _MOMENTS[table]}}
    values = ", ".join(moved.get(name, f"t.{name}") for name in names)
    copy = f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM bench_id AS i CROSS JOIN bench_{table} AS t"
    await connection.execute(copy, timeout=300)


async def _drop_indexes(connection: Any) -> list[str]:
    """Drops the indexes and keys of both tables; the statements that make them again."""
    again = []
    for table in _TEMPLATES:
        keys = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::regclass AND contype = 'p'"
        for name, definition in await connection.fetch(keys, table):
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
            again.append(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        for name, definition in await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = $1", table
        ):
            await connection.execute(f"DROP INDEX {name}")
            again.append(definition)
    return again
