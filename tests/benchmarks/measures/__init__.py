"""The parts of the benchmarks, in the order of the page."""

from __future__ import annotations

from types import ModuleType

from tests.benchmarks.measures import peers, throughput

PARTS: dict[str, ModuleType] = {"peers": peers, "throughput": throughput}
