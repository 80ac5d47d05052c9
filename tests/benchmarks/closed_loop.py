"""What every measured program does alike: it says that it is ready, waits for the word, runs, and prints one line of JSON.

It stands on the standard library alone: the peers' programs use it in their environment, where watership is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable

WARM_S = 1.5


@dataclasses.dataclass
class Ends:
    """Sagas that ended while it was measured."""

    seconds: float
    ended: int = 0
    latencies_s: list[float] = dataclasses.field(default_factory=list)
    from_s: float = 0.0
    until_s: float = float("inf")

    def begin(self) -> None:
        """From now on, after the warm-up, for so many seconds."""
        self.from_s = time.perf_counter() + WARM_S
        self.until_s = self.from_s + self.seconds

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() >= self.until_s

    def add(self, began_s: float | None = None, count: int = 1) -> None:
        """So many ended now. ``began_s``: when the one began, or should have begun."""
        now_s = time.perf_counter()
        if self.from_s <= now_s < self.until_s:
            self.ended += count
            if began_s is not None:
                self.latencies_s.append(now_s - began_s)

    def add_due(self, due_s: float) -> None:
        """One ended now that was due then. It counts if it was due while it was measured, however late it ends."""
        if self.from_s <= due_s < self.until_s:
            self.ended += 1
            self.latencies_s.append(time.perf_counter() - due_s)

    def report(self) -> None:
        """The line of JSON."""
        found = sorted(self.latencies_s)
        percentiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        latencies = {name: _at(found, share) * 1000 for name, share in percentiles.items()} if found else {}
        say({"ended": self.ended, "seconds": self.seconds, "latency_ms": latencies})
        sys.stdin.readline()  # it stays until the runner has read the accounts, in which it must not be missing


def _at(sorted_values: list[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


def say(what: dict[str, object]) -> None:
    """One line for the runner."""
    print(json.dumps(what), flush=True)


def ready() -> None:
    """Says so, and waits for the word to begin. Whoever is told nothing any more ends."""
    logging.getLogger().setLevel(logging.WARNING)
    say({"ready": True})
    if not sys.stdin.readline():
        sys.exit(1)


async def closed_loop(run_one: Callable[[], Awaitable[object]], at_once: int, seconds: float) -> None:
    """Runs sagas, so many at once, each after the other, and reports."""
    await asyncio.gather(*(run_one() for _ in range(min(at_once, 4))))  # connections are open, caches are filled
    ready()
    ends = Ends(seconds)
    ends.begin()

    async def lane() -> None:
        while not ends.is_over:
            began_s = time.perf_counter()
            await run_one()
            ends.add(began_s)

    await asyncio.gather(*(lane() for _ in range(at_once)))
    ends.report()


def arguments(*names: str) -> argparse.Namespace:
    """``--at-once`` and ``--seconds``, and the program's own, which are all strings."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    for name in names:
        parser.add_argument(f"--{name}", default="")
    return parser.parse_args()
