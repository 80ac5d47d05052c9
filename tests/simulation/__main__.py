"""Replays seeds: `python -m tests.simulation --seed 7 --trace`, or looks for broken laws: `--from 0 --count 10000`."""

from __future__ import annotations

import argparse
import collections
import gc
import sys
import time

from tests.simulation.story import Story


def main() -> int:
    """1 if a law is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="with all that happens")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of many seeds")
    parser.add_argument("--count", type=int, default=1_000, help="how many")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first broken law")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, trace=options.trace)
    return _many(options.first, options.count, keep_going=options.keep_going)


def _one(seed: int, *, trace: bool) -> int:
    story = Story(seed, trace=print if trace else None)
    if trace:
        _introduce(story)
    told = story.run()
    print(f"seed {seed}: {told.broken or 'every law holds'}; {told.ends}")
    return 1 if told.broken else 0


def _introduce(story: Story) -> None:
    print(f"seed {story.seed}: {story.weather}")
    for plan in story.work.plans:
        print(f"  {plan.saga} {plan.hash[:6]} known at {story.work.registered_at_s[plan.hash]} s")
        for node in plan.nodes:
            print(f"    {node}")
    for step, manners in story.work.manners.items():
        print(f"  {step}: {manners}")
    for order in (*story.work.starts, *story.work.operators):
        print(f"  {order}")


def _many(first: int, count: int, *, keep_going: bool) -> int:
    began_s, ends, broken = time.perf_counter(), collections.Counter[str](), []
    gc.freeze()
    gc.disable()
    for seed in range(first, first + count):
        told = Story(seed).run()
        ends.update(told.ends)
        if told.broken is not None:
            broken.append(seed)
            print(f"seed {seed}: {str(told.broken)[:600]}\n  replay: python -m tests.simulation --seed {seed} --trace")
            if not keep_going:
                break
        gc.collect()
    took_s = time.perf_counter() - began_s
    print(f"{count} seeds, {len(broken)} broken {broken}, {took_s / max(1, count) * 1000:.1f} ms each; {dict(ends)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
