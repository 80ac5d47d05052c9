"""Thousands of seeds of the whole system: no fault that we can make breaks a law, loses a saga or leaves one stuck.

``WATERSHIP_SIMULATION_SEEDS=20000`` runs more; ``=random`` begins at any seed, which a failure names.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib

import pytest

from tests.simulation.many import Sum, replay, run_apart
from tests.simulation.regressions import REGRESSIONS
from tests.simulation.story import Story
from tests.support.tidy import ROOT

SEEDS = 2_000
BASE = 1_000_000
SHOWN_CHARS = 1_500


def seeds_wanted(given: str) -> list[int]:
    """The regressions, and a row of others."""
    first, count = BASE, SEEDS
    if given == "random":
        first = random.SystemRandom().randrange(10**9)
    elif given:
        count = int(given)
    return [*REGRESSIONS, *range(first, first + count)]


@pytest.mark.timeout(1_800)
def test_every_law_holds_whatever_goes_wrong() -> None:
    seeds = seeds_wanted(os.environ.get("WATERSHIP_SIMULATION_SEEDS", ""))
    whole = Sum()
    for some in run_apart(seeds):
        whole.add(some)
    told = "\n".join(
        f"seed {seed}: {words[:SHOWN_CHARS]}\n  {replay(seed)}" for seed, words in sorted(whole.broken.items())
    )
    first, last = seeds[len(REGRESSIONS)], seeds[-1]
    assert not whole.broken, f"seeds {first} to {last}: {len(whole.broken)} break a law:\n{told}"
    assert whole.seeds == len(seeds)
    # A world in which nothing happens keeps every law.
    assert min(whole.ends["COMPLETED"], whole.ends["COMPENSATED"]) > whole.seeds // 4
    assert set(whole.ends) == {"COMPLETED", "COMPENSATED"}, "in calm weather every saga ends"


def digest(seed: int) -> int:
    """A checksum of all that happens in a seed."""
    lines: list[str] = []
    Story(seed, trace=lines.append).run()
    return zlib.crc32("\n".join(lines).encode())


def test_a_seed_is_the_same_everywhere() -> None:
    """Else a failure could not be replayed: in another process, with other hashes of strings."""
    seeds = range(BASE, BASE + 6)
    here = [digest(seed) for seed in seeds]
    program = f"from tests.simulation.test_simulation import digest; print([digest(s) for s in {list(seeds)}])"
    for hash_seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        there = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
        assert there.strip() == str(here)
    assert len(set(here)) == len(here)
