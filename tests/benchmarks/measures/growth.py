"""How the rate changes with the size of a saga's context."""

from __future__ import annotations

from tests.benchmarks.bench import Bench, Data
from tests.benchmarks.contenders import Contender, Ground, load, services
from tests.benchmarks.running import Program

TITLE = "Larger contexts"
IS_LONG = True
FRAME_BYTES = 80  # of the context beside its padding
SIZES = (300, 3_000, 30_000)


def with_context_of(size_bytes: int) -> Contender:
    """A context of so many bytes of JSON."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        at_once = 2_000 if size_bytes < 10_000 else 200
        return [*services(ground), load(ground, seconds, at_once=at_once, padding=size_bytes - FRAME_BYTES)]

    return Contender(f"context-{size_bytes}", f"{size_bytes:,} bytes", "distributed", 3, programs)


def measure(bench: Bench) -> Data:
    """Each size in turn."""
    return {"series": bench.interleaved([with_context_of(size) for size in SIZES], rounds=1 if bench.is_quick else 2)}
