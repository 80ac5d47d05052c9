"""The parts of the benchmarks, in the order of the page."""

from __future__ import annotations

from types import ModuleType

from tests.benchmarks.measures import (
    barrier,
    cost,
    embedded,
    finished,
    growth,
    latency,
    memory,
    peers,
    reaper,
    recovery,
    throughput,
)

PARTS: dict[str, ModuleType] = {
    "peers": peers,
    "embedded": embedded,
    "latency": latency,
    "throughput": throughput,
    "cost": cost,
    "growth": growth,
    "finished": finished,
    "barrier": barrier,
    "recovery": recovery,
    "reaper": reaper,
    "memory": memory,
}
