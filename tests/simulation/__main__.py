"""Replays seeds: `python -m tests.simulation --seed 7 --trace`, or looks for broken laws: `--from 0 --count 10000`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.many import PROCESSES, Sum, replay, run_apart
from tests.simulation.story import Story


def main() -> int:
    """1 if a law is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="with all that happens")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of many seeds")
    parser.add_argument("--count", type=int, default=1_000, help="how many")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="how many at once")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, trace=options.trace)
    return _many(range(options.first, options.first + options.count), options.processes)


def _one(seed: int, *, trace: bool) -> int:
    story = Story(seed, trace=print if trace else None)
    if trace:
        _introduce(story)
    told = story.run()
    print(f"seed {seed}: {told.broken or 'every law holds'}; {told.ends}")
    return 1 if told.broken else 0


def _introduce(story: Story) -> None:
    print(f"seed {story.seed}: {story.weather}")
    print(f"  {story.settings!r}")
    for plan in story.work.plans:
        print(f"  {plan.saga} {plan.hash[:6]} known at {story.work.registered_at_s[plan.hash]} s")
        for node in plan.nodes:
            print(f"    {node}")
    for step, manners in story.work.manners.items():
        print(f"  {step}: {manners}")
    for order in (*story.work.starts, *story.work.operators, *story.work.signals):
        print(f"  {order}")


def _many(seeds: range, processes: int) -> int:
    began_s, whole = time.perf_counter(), Sum()
    for some in run_apart(seeds, processes=processes):
        whole.add(some)
        for seed, words in some.broken.items():
            print(f"seed {seed}: {words[:1_000]}\n  {replay(seed)}", flush=True)
    took_s = time.perf_counter() - began_s
    print(f"{whole.seeds} seeds in {took_s:.0f} s, {len(whole.broken)} broken; sagas: {dict(whole.ends)}")
    return 1 if whole.broken else 0


if __name__ == "__main__":
    sys.exit(main())
