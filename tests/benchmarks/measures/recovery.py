"""All our processes are killed, with SIGKILL, while tens of thousands of sagas are on their way; then they are begun again.

An undisturbed run of as many sagas, before it, says how long they would have taken.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from tests.benchmarks.bench import Bench, Data
from tests.benchmarks.contenders import Ground, load, services
from tests.benchmarks.ours.saga import WARMING
from tests.benchmarks.running import END_WITHIN_S, READY_WITHIN_S, Stage, stage
from tests.support.endpoints import connect_postgresql, run

TITLE = "Recovery: everything is killed"
IS_LONG = False
GOALS = {"back_s": 15.0, "time_ratio": 1.2}
RUN_IN = 0.2  # of all sagas have ended when the others are hit
BACK = 0.9  # of the rate before
WINDOW_S = 1.0
Progress = list[tuple[float, int]]


def measure(bench: Bench) -> Data:
    """Undisturbed, then hit."""
    in_flight = 4_000 if bench.is_quick else 50_000
    count = round(in_flight / (1 - RUN_IN))
    undisturbed, _, _ = _run(bench, count, in_flight=None)
    hit, killed, statuses = _run(bench, count, in_flight)
    assert killed is not None
    killed_s, left = killed
    before = rate_between(hit, 0.0, killed_s)
    back_s = next(
        (at_s - killed_s for at_s, rate in rates(hit) if at_s > killed_s + WINDOW_S and rate >= BACK * before), None
    )
    found = {
        "count": count,
        "in_flight": left,
        "undisturbed_s": undisturbed[-1][0],
        "hit_s": hit[-1][0],
        "killed_at_s": killed_s,
        "rate_before": before,
        "back_s": back_s,
        "time_ratio": hit[-1][0] / undisturbed[-1][0],
        "lost": count + WARMING + 1 - statuses.get("COMPLETED", 0),
        "statuses": statuses,
        "ended": [[at_s, ended] for at_s, ended in hit],
        "goals": GOALS,
    }
    bench.say(f"  {left} in flight, back after {back_s} s, {found['time_ratio']:.2f}× the time, {found['lost']} lost")
    return found


def _run(bench: Bench, count: int, in_flight: int | None) -> tuple[Progress, tuple[float, int] | None, dict[str, int]]:
    with bench.ground() as ground, stage() as on_stage:
        _begin(on_stage, ground)
        driver = on_stage.begin(load(ground, 1, count=count, at_once=count, unique="yes"))
        driver.answer(READY_WITHIN_S)
        driver.go()
        progress: Progress = [(0.0, 0)]
        killed: tuple[float, int] | None = None
        while "ended" not in (answer := driver.answer(END_WITHIN_S)):
            progress.append((answer["at_s"], answer["so_far"]))
            if in_flight is not None and killed is None and count - answer["so_far"] <= in_flight:
                killed = progress[-1][0], count - progress[-1][1]
                on_stage.kill({"orchestrator", "worker", "reaper"})
                _begin(on_stage, ground)
        progress.append((answer["seconds"], answer["ended"]))
        return progress, killed, run(_statuses(ground))


def _begin(on_stage: Stage, ground: Ground) -> None:
    for program in services(ground):
        on_stage.begin(program)


async def _statuses(ground: Ground) -> dict[str, int]:
    connection = await connect_postgresql(ground.database_url)
    try:
        rows: list[Any] = await connection.fetch("SELECT status, count(*) FROM watership_saga GROUP BY status")
    finally:
        await connection.close()
    return {row[0]: row[1] for row in rows}


def rate_between(progress: Progress, from_s: float, until_s: float) -> float:
    """The median rate of the windows in between."""
    found = [rate for at_s, rate in rates(progress) if from_s < at_s <= until_s and rate > 0]
    return statistics.median(found) if found else 0.0


def rates(progress: Progress) -> list[tuple[float, float]]:
    """Ends a second over the last window, at each moment."""
    found = []
    for (at_s, ended), number in zip(progress, itertools.count(), strict=False):
        first = next(one for one in progress[: number + 1] if one[0] >= at_s - WINDOW_S)
        if at_s > first[0]:
            found.append((at_s, (ended - first[1]) / (at_s - first[0])))
    return found
