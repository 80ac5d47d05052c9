"""Ten million finished sagas in the tables, against none: do they cost the running ones anything?

One real saga's rows are copied on the server by generate_series: each copy with an id of its own, and with the newest
entry of its log. Indexes are built after the rows, then the tables are analyzed.
"""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks.bench import Bench, Data, ratio, spread
from tests.benchmarks.contenders import Ground, distributed, load, services
from tests.benchmarks.running import Run, run_once
from tests.support.endpoints import connect_postgresql, run

TITLE = "Ten million finished sagas"
IS_LONG = True
GOAL = 0.97
COUNT, QUICK_COUNT = 10_000_000, 200_000
AT_ONCE = 500_000
SHORT_S = 1.0

_TEMPLATES = {
    "watership_saga": "SELECT * FROM watership_saga WHERE status = 'COMPLETED' LIMIT 1",
    "watership_log": "SELECT * FROM watership_log WHERE saga_id = $1 ORDER BY seq DESC LIMIT 1",
}


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


async def fill(ground: Ground, count: int) -> int:
    """Copies; how many bytes the database has then."""
    connection = await connect_postgresql(ground.database_url)
    try:
        saga = await connection.fetchrow(_TEMPLATES["watership_saga"])
        assert saga is not None, "no saga has ended here"
        entry = await connection.fetchrow(_TEMPLATES["watership_log"], saga["saga_id"])
        assert entry is not None
        indexes = await _drop_indexes(connection)
        await connection.execute("SET synchronous_commit = off; SET maintenance_work_mem = '512MB'")
        await connection.execute(
            "CREATE UNLOGGED TABLE bench_id AS SELECT saga_id, 0::bigint AS n FROM watership_saga LIMIT 0"
        )
        for first in range(0, count, AT_ONCE):
            await connection.execute("TRUNCATE bench_id")
            ids = "INSERT INTO bench_id SELECT gen_random_uuid(), $1 + n FROM generate_series(1, $2::bigint) AS n"
            await connection.execute(ids, first, min(AT_ONCE, count - first), timeout=300)
            await _copy(connection, "watership_saga", dict(saga), "created_at_ms", "updated_at_ms")
            await _copy(connection, "watership_log", dict(entry), "at_ms")
        await connection.execute("DROP TABLE bench_id")
        for index in indexes:
            await connection.execute(index, timeout=900)
        for table in _TEMPLATES:
            await connection.execute(f"VACUUM (ANALYZE) {table}", timeout=900)
        await connection.execute("CHECKPOINT", timeout=300)
        return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
    finally:
        await connection.close()


async def _copy(connection: Any, table: str, row: dict[str, Any], *moments: str) -> None:
    """The row for each id, its moments spread over the past."""
    others = [name for name in row if name != "saga_id" and name not in moments]
    past = ", ".join(f"{row[name]} - n" for name in moments)
    columns = ", ".join(["saga_id", *moments, *others])
    types = await connection.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0",
        table,
    )
    kinds = {one[0]: one[1] for one in types}
    values = ", ".join(f"${number}::{kinds[name]}" for number, name in enumerate(others, start=1))
    statement = f"INSERT INTO {table} ({columns}) SELECT saga_id, {past}, {values} FROM bench_id"
    await connection.execute(statement, *[row[name] for name in others], timeout=300)


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
