"""Ours and the peers in turn: sagas a second, each filling the machine with its processes."""

from __future__ import annotations

from tests.benchmarks.bench import Bench, Data, ratio
from tests.benchmarks.contenders import FILLING, celery, dbos, python_cqrs, relay, restate

TITLE = "Throughput, beside the peers"
IS_LONG = False
GOALS = {"cqrs-postgres-2-16": 7.0, "dbos-2-16": 9.0, "restate-2-32": 5.0, "celery-2": 5.0, "relay": 2.5}


def measure(bench: Bench) -> Data:
    """Every peer as it fills the machine; in a full run as one process too, and with more at once."""
    contenders = [
        FILLING,
        python_cqrs("postgres", 2, 16),
        dbos(2, 16),
        restate(2, 32),
        celery(2),
        celery(2, is_safe=False),
        relay(),
    ]
    series = bench.interleaved(contenders)
    if not bench.is_quick:
        others = [python_cqrs("postgres", 1, 16), python_cqrs("postgres", 3, 16), dbos(1, 16), restate(2, 16)]
        series |= bench.interleaved(others, rounds=1)
    ratios = {name: ratio(series[FILLING.name], series[name]) for name in GOALS}
    return {"series": series, "ratios": ratios, "goals": GOALS}
