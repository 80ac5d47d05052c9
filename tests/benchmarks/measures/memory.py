"""The memory of our processes under load, and whether it grows."""

from __future__ import annotations

import time

from tests.benchmarks.bench import Bench, Data
from tests.benchmarks.closed_loop import WARM_S
from tests.benchmarks.contenders import OUR_PROCESSES, load, services
from tests.benchmarks.running import READY_WITHIN_S, stage

TITLE = "Memory over time"
IS_LONG = True
SAMPLE_EVERY_S = 1.0


def measure(bench: Bench) -> Data:
    """A minute of full load, sampled each second."""
    seconds = 6.0 if bench.is_quick else 60.0
    samples: list[Data] = []
    with bench.ground() as ground, stage() as on_stage:
        for program in services(ground):
            on_stage.begin(program)
        driver = on_stage.begin(load(ground, seconds, at_once=2_000))
        driver.answer(READY_WITHIN_S)
        driver.go()
        began_s = time.monotonic()
        while (at_s := time.monotonic() - began_s) < seconds + WARM_S:
            resident = on_stage.accounts.resident_bytes()
            samples.append({"at_s": at_s, **{name: resident[name] for name in OUR_PROCESSES}})
            time.sleep(SAMPLE_EVERY_S)
        ended = driver.answer(READY_WITHIN_S)["ended"]
    return {"samples": samples, "ended": ended}
