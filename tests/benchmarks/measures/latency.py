"""The time from a start to its end: one saga after the other at rest, and at fixed rates where waiting counts."""

from __future__ import annotations

from tests.benchmarks.bench import Bench, Data, spread, without_paths
from tests.benchmarks.contenders import Contender, Ground, awaited, dbos, embedded, load, python_cqrs, services
from tests.benchmarks.running import Failed, Program

TITLE = "The time of one saga"
IS_LONG = False
GOAL_MS_RATIO = 1.0
RATES = (50, 200, 500, 1_000, 1_500)
QUICK_RATES = (50, 200)


def at_rate(rate: int) -> Contender:
    """Starts are due at fixed moments, and timed from there."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        return [*services(ground), load(ground, seconds, rate=rate)]

    return Contender(f"rate-{rate}", f"{rate:,} a second", "open loop", 3, programs)


def by_events() -> Contender:
    """One after the other, whose end is told by the event."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        return [*services(ground), load(ground, seconds, at_once=1)]

    return Contender(
        "watership-event-1", "Watership, distributed, end by its event", "one after the other", 3, programs
    )


def measure(bench: Bench) -> Data:
    """At rest beside the peers; then ours at growing rates."""
    single = [awaited(1), dbos(1, 1), python_cqrs("postgres", 1, 1)]
    if not bench.is_quick:
        single += [by_events(), embedded("postgres", at_once=1), embedded("sqlite", at_once=1)]
    at_rest = bench.interleaved(single)
    ours, theirs = at_rest["watership-run-1"].get("latency_ms"), at_rest["dbos-1-1"].get("latency_ms")
    return {
        "at_rest": at_rest,
        "dbos_ratio": ours["p50"] / theirs["p50"] if ours and theirs else None,
        "goal": GOAL_MS_RATIO,
        "rates": [_at_rate(bench, rate) for rate in (QUICK_RATES if bench.is_quick else RATES)],
    }


def _at_rate(bench: Bench, rate: int) -> Data:
    try:
        runs = [bench.once(at_rate(rate).programs) for _ in range(min(bench.rounds, 2))]
    except Failed as why:
        bench.say(f"  {rate}/s: {why}")
        return {"rate": rate, "failed": without_paths(str(why))}
    found = {name: spread([run.latency_ms[name] for run in runs]) for name in ("p50", "p90", "p99", "p999")}
    bench.say(f"  {rate}/s: p50 {found['p50']['median']:.1f} ms, p99 {found['p99']['median']:.1f} ms")
    return {"rate": rate, "achieved": spread([run.rate for run in runs]), "latency_ms": found}
