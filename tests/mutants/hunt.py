"""Runs seeds of the simulation until one breaks a law, on the sources that are told; says what came of it, as JSON.

`tests.mutants.run` starts it beside a mutant, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from watership.testing import virtual_loop

from tests.simulation.many import run_here
from tests.simulation.regressions import REGRESSIONS
from tests.simulation.test_simulation import BASE

WORDS_CHARS_MAX = 300
TURNS_MAX = 200_000  # a seed takes a few thousand; a mutant that turns for ever should not take minutes to say so


def hunt(seeds: Iterable[int]) -> dict[str, object]:
    """``seeds`` that were run; ``seed`` that broke a ``law``, and its ``words``: or none did."""
    begun: list[int] = []

    def begin() -> Iterator[int]:
        for seed in seeds:
            begun.append(seed)
            yield seed

    try:
        broken = run_here(begin(), until_broken=True).broken
    except Exception as error:  # noqa: BLE001 - a mutant may break the simulation itself: that is no law
        broken = {begun[-1]: f"{type(error).__name__}: {error}"}
    for seed, words in broken.items():
        law, _, what = words.partition(": ")
        return {"seeds": len(begun), "seed": seed, "law": law, "words": what[:WORDS_CHARS_MAX]}
    return {"seeds": len(begun), "seed": None, "law": None}


def main() -> int:
    """2 if the product that is imported is not the one that was meant."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.hunt", description=__doc__)
    parser.add_argument("root", type=Path, help="where the sources are")
    parser.add_argument("--seeds", type=int, nargs="*", help="these; else those of `make test`")
    parser.add_argument("--seeds-max", type=int, default=2_000, help="how many of those of `make test`")
    options = parser.parse_args()
    for name in ("watership", "watership_orchestrator", "watership_worker"):
        found = Path(importlib.import_module(name).__file__ or "").resolve()
        if not found.is_relative_to(options.root.resolve()):
            print(f"{name} is imported from {found}, not from {options.root}", file=sys.stderr)
            return 2
    virtual_loop.TURNS_MAX = TURNS_MAX
    seeds = options.seeds or [*REGRESSIONS, *range(BASE, BASE + options.seeds_max)][: options.seeds_max]
    print(json.dumps(hunt(seeds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
