"""Many seeds in processes of their own: what `make test` and the command line run."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import gc
import multiprocessing
from collections.abc import Iterable, Iterator

from tests.simulation.story import Story

PROCESSES = 2
SEEDS_AT_ONCE = 25


@dataclasses.dataclass
class Sum:
    """What came of several seeds. ``broken``: by seed, in words. ``ends``: sagas by status."""

    seeds: int = 0
    broken: dict[int, str] = dataclasses.field(default_factory=dict)
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Sum) -> None:
        """Adds another sum to this one."""
        self.seeds += other.seeds
        self.broken.update(other.broken)
        self.ends.update(other.ends)


def run_here(seeds: Iterable[int]) -> Sum:
    """Runs seeds in this process. Memory is tidied between them only: a run must not depend on when that happens."""
    whole = Sum()
    collects = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for seed in seeds:
            told = Story(seed).run()
            gc.collect()
            whole.seeds += 1
            whole.ends.update(told.ends)
            if told.broken is not None:
                whole.broken[seed] = str(told.broken)
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()
    return whole


def run_apart(seeds: Iterable[int], *, processes: int = PROCESSES) -> Iterator[Sum]:
    """Runs seeds in several processes; a sum for each handful, as they are done."""
    wanted = list(seeds)
    handfuls = [wanted[at : at + SEEDS_AT_ONCE] for at in range(0, len(wanted), SEEDS_AT_ONCE)]
    # Spawned, not forked: a fresh process has nothing of the one that began it.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(run_here, handfuls)


def replay(seed: int) -> str:
    """The command that shows all that happens in a seed."""
    return f"python -m tests.simulation --seed {seed} --trace"
