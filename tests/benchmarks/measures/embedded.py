"""Sagas in one process, beside python-cqrs: on Postgres and in memory; on SQLite, alone."""

from __future__ import annotations

from tests.benchmarks.bench import Bench, Data, ratio
from tests.benchmarks.contenders import embedded, python_cqrs

TITLE = "Sagas in one process"
IS_LONG = False
GOALS = {
    "embedded-postgres-2-40": ("cqrs-postgres-2-16", 3.0),
    "embedded-memory-1-16": ("cqrs-memory-1-16", 1.2),
}


def measure(bench: Bench) -> Data:
    """Each kind of storage; on Postgres with one process and with two."""
    contenders = [
        embedded("postgres", 2),
        python_cqrs("postgres", 2, 16),
        embedded("memory", at_once=16),  # as many as its peer: quicker than 40
        python_cqrs("memory", 1, 16),
        embedded("sqlite"),
    ]
    series = bench.interleaved(contenders)
    if not bench.is_quick:
        series |= bench.interleaved([embedded("postgres", 1), python_cqrs("postgres", 1, 16)], rounds=1)
    ratios = {name: ratio(series[name], series[theirs]) for name, (theirs, _) in GOALS.items()}
    return {"series": series, "ratios": ratios, "goals": {name: goal for name, (_, goal) in GOALS.items()}}
