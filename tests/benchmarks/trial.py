"""One driver, by hand: `python -m tests.benchmarks.trial relay`. To be removed."""
import sys, tempfile
from pathlib import Path
from tests.benchmarks import contenders as c
from tests.benchmarks.running import run_once
from tests.support.servers import open_session
session = open_session(print)
try:
    for expr in sys.argv[1:]:
        contender = eval("c." + expr)
        ground = c.Ground(session, Path(tempfile.mkdtemp()))
        try:
            run = run_once(contender.programs(ground, 4.0), 4.0)
            print(contender.name, f"{run.rate:.0f}/s", {k: round(v, 2) for k, v in run.latency_ms.items()}, {k: round(v, 2) for k, v in run.cpu_ms.items()}, flush=True)
        except Exception as e:
            print(contender.name, "FAILED", e, flush=True)
        finally:
            ground.clear()
finally:
    session.close()
