"""What one saga costs, from rest to rest: CPU of each part, messages, bytes of log; and what follows for many."""

from __future__ import annotations

import re
import shutil
import subprocess

from tests.benchmarks.bench import Bench, Data
from tests.benchmarks.contenders import Ground, load, services
from tests.benchmarks.running import END_WITHIN_S, READY_WITHIN_S, stage
from tests.support.endpoints import connect_postgresql, run

TITLE = "What one saga costs"
IS_LONG = False
RATES = (1_000, 10_000, 100_000)
BUSY = 0.7  # of a core: what runs at more has no room for a bad minute
DAY_S = 86_400


def measure(bench: Bench) -> Data:
    """One run of so many sagas with one orchestrator, and one with two: CPU for each saga."""
    count = 4_000 if bench.is_quick else 30_000
    found = {f"{number}": _measured(bench, count, number) for number in ((1,) if bench.is_quick else (1, 2))}
    return {"count": count, "by_orchestrators": found, "projection": projection(found["1"])}


def _measured(bench: Bench, count: int, orchestrators: int) -> Data:
    with bench.ground() as ground, stage() as on_stage:
        for program in services(ground, orchestrators):
            on_stage.begin(program)
        driver = on_stage.begin(load(ground, 1, count=count, at_once=2_000))
        driver.answer(READY_WITHIN_S)
        written, messages = run(_written(ground)), _messages()
        before = on_stage.accounts.read()
        driver.go()
        answer = driver.answer(END_WITHIN_S)
        while "ended" not in answer:
            answer = driver.answer(END_WITHIN_S)
        spent_s = on_stage.accounts.read().since(before)
        ended = answer["ended"]
        found = {name: (after - written[name]) / ended for name, after in run(_written(ground)).items()}
        messages_after = _messages()
        sent = (messages_after - messages) / ended if messages is not None and messages_after is not None else None
    return {
        "rate": ended / answer["seconds"],
        "cpu_ms": {name: cpu_s * 1000 / ended for name, cpu_s in spent_s.items()},
        "written_bytes": found,
        "messages": sent,
    }


async def _written(ground: Ground) -> dict[str, float]:
    """Bytes of write-ahead log so far, of all databases of the server; bytes that our two large tables have."""
    connection = await connect_postgresql(ground.database_url)
    try:
        log = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8")
        sizes = (
            "SELECT pg_total_relation_size('watership_saga')::float8, pg_total_relation_size('watership_log')::float8"
        )
        saga, entries = await connection.fetchrow(sizes) or (0.0, 0.0)
    finally:
        await connection.close()
    return {"write-ahead log": log, "watership_saga": saga, "watership_log": entries}


def _messages() -> int | None:
    """How many messages the broker has been sent so far, if it is on this host and we may ask."""
    if not shutil.which("rabbitmqctl"):
        return None
    command = ["rabbitmqctl", "eval", "rabbit_global_counters:overview()."]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    found = re.findall(r"\bmessages_received_total => (\d+)", done.stdout)
    return sum(map(int, found)) if found else None


def projection(one: Data) -> list[Data]:
    """Cores, disk and messages for so many sagas a second, if a saga costs what it cost here."""
    cpu_ms, written = one["cpu_ms"], one["written_bytes"]
    kept_bytes = written["watership_saga"] + written["watership_log"]
    return [
        {
            "rate": rate,
            "cores": {name: rate * spent / 1000 / BUSY for name, spent in cpu_ms.items()},
            "wal_bytes_a_second": rate * written["write-ahead log"],
            "kept_bytes_a_day": rate * kept_bytes * DAY_S,
            "messages_a_second": None if one["messages"] is None else rate * one["messages"],
        }
        for rate in RATES
    ]
