"""What every measurement has in hand: the servers, how long and how often it runs, and how runs are interleaved.

Ours, a peer, ours, a peer: what slows the machine for a minute slows all alike, and the ratios stand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import Contender, Ground
from tests.benchmarks.running import Program, Run, run_once, temporary_folder
from tests.support.endpoints import connect_postgresql, run
from tests.support.servers import Session

Data = dict[str, Any]


@dataclasses.dataclass
class Bench:
    """One call of the benchmarks. ``seconds`` and ``rounds`` are of one run and of each contender."""

    session: Session
    is_quick: bool
    say: Callable[[str], None]

    @property
    def seconds(self) -> float:
        """How long one run is measured."""
        return 3.0 if self.is_quick else 5.0

    @property
    def rounds(self) -> int:
        """How often each contender runs."""
        return 1 if self.is_quick else 3

    @contextlib.contextmanager
    def ground(self) -> Iterator[Ground]:
        """What one run stands on, with nothing of the one before left to be written to disk."""
        with temporary_folder() as folder:
            made = Ground(self.session, Path(folder))
            try:
                run(checkpoint(self.session.servers.database_url))
                yield made
            finally:
                made.clear()

    def once(self, programs: Callable[[Ground, float], list[Program]]) -> Run:
        """One run on a ground of its own. Raises Failed."""
        with self.ground() as ground:
            return run_once(programs(ground, self.seconds), self.seconds)

    def interleaved(self, contenders: Sequence[Contender], rounds: int | None = None) -> dict[str, Data]:
        """Each in turn, and so several times. One that fails says so in its place, and the others go on."""
        runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
        assert len(runs) == len(contenders), "two of them have one name"
        failed: dict[str, str] = {c.name: c.missing for c in contenders if c.missing is not None}
        for _ in range(rounds or self.rounds):
            for contender in contenders:
                if contender.name in failed:
                    continue
                began_s = time.monotonic()
                try:
                    runs[contender.name].append(self.once(contender.programs))
                except Exception as why:  # noqa: BLE001  # whatever it was, the others go on
                    failed[contender.name] = without_paths(str(why))
                    self.say(f"  {contender.name}: failed: {why!r}")
                else:
                    rate = runs[contender.name][-1].rate
                    self.say(f"  {contender.name}: {rate:,.0f} sagas/s ({time.monotonic() - began_s:.0f} s)")
        return {c.name: _series(c, runs[c.name], failed.get(c.name)) for c in contenders}


def _series(contender: Contender, runs: list[Run], failed: str | None) -> Data:
    about: Data = {"title": contender.title, "settings": contender.settings, "processes": contender.processes}
    if failed is not None or not runs:
        return about | {"failed": failed or "it did not run"}
    return about | {
        "rate": spread([one.rate for one in runs]),
        "latency_ms": medians([one.latency_ms for one in runs]),
        "cpu_ms": medians([one.cpu_ms for one in runs]),
        "resident_bytes": medians([one.resident_bytes for one in runs]),
    }


def without_paths(words: str) -> str:
    """The last line of an error as the results may keep it: nothing in it tells whose machine this was."""
    return re.sub(r"(/[\w.@+-]+)+/", "", words.strip().rpartition("\n")[2])[:200]


def spread(values: Sequence[float]) -> Data:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def medians(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median of each name."""
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: statistics.median([one[name] for one in found]) for name in names}


def ratio(ours: Data, theirs: Data) -> float | None:
    """How many times as many sagas a second; None if one of them did not run."""
    if "rate" not in ours or "rate" not in theirs:
        return None
    return float(ours["rate"]["median"] / theirs["rate"]["median"])


async def checkpoint(database_url: str) -> None:
    """Nothing of what came before is left to be written to disk."""
    connection = await connect_postgresql(database_url)
    try:
        with contextlib.suppress(Exception):  # who may not ask for one measures without
            await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
