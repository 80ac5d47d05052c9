"""The distributed system alone: more orchestrators, more workers, more on their way."""

from __future__ import annotations

from tests.benchmarks.bench import Bench, Data
from tests.benchmarks.contenders import distributed

TITLE = "Throughput of the distributed system"
IS_LONG = False


def measure(bench: Bench) -> Data:
    """How the rate and each process's CPU for a saga change."""
    contenders = [distributed(), distributed(2, 2)]
    if not bench.is_quick:
        contenders += [distributed(2, 1), distributed(1, 2), distributed(at_once=200), distributed(at_once=10_000)]
    return {"series": bench.interleaved(contenders, rounds=min(bench.rounds, 2))}
