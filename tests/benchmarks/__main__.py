"""`python -m tests.benchmarks`: measures us and our peers on this machine, and writes what came of it.

``--quick`` runs each once, for a few seconds, and leaves out what takes long. ``--only peers,latency`` runs some parts.
A part that fails says so, and the others go on. Unless it is quick, it writes ``docs/benchmarks/results.json`` and draws
``docs/benchmarks.md`` and the plots from it; ``--write`` does so in any case, ``--draw`` draws without measuring.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.contenders import PEERS_PYTHON
from tests.benchmarks.machine import describe, installed_peers
from tests.benchmarks.measures import PARTS
from tests.benchmarks.page import draw
from tests.benchmarks.results import RESULTS, Results
from tests.benchmarks.tables import MAKERS
from tests.support.servers import open_session


def main() -> int:
    """Measures, and says how it went: 1 if a part failed."""
    given = _arguments()
    if given.list:
        print("\n".join(f"{name:12} {part.TITLE}" for name, part in PARTS.items()))
        return 0
    results_path = Path(given.results)
    if given.draw:
        draw(Results.read(results_path))
        return 0
    names = (
        given.only.split(",") if given.only else [name for name in PARTS if not (given.quick and PARTS[name].IS_LONG)]
    )
    if unknown := [name for name in names if name not in PARTS]:
        print(f"there is no part {', '.join(unknown)}: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was begun is ended all the same
    session = open_session(print)
    try:
        return _run(Bench(session, given.quick, lambda line: print(line, flush=True)), names, results_path, given)
    finally:
        session.close()


def _run(bench: Bench, names: list[str], path: Path, given: argparse.Namespace) -> int:
    results = Results(describe(bench.session), installed_peers(PEERS_PYTHON))
    is_kept = given.write or not given.quick
    if is_kept and path.exists() and (before := Results.read(path)).machine == results.machine:
        results.parts = before.parts
    status = 0
    for name in names:
        bench.say(f"{name}: {PARTS[name].TITLE}")
        began_s = time.monotonic()
        try:
            found = PARTS[name].measure(bench)
            lines = MAKERS[name](found)
        except Exception:  # noqa: BLE001  # whatever it was, the other parts go on
            status = 1
            bench.say(f"{name} failed:\n{traceback.format_exc()}")
            continue
        found |= {"on": time.strftime("%Y-%m-%d"), "took_s": time.monotonic() - began_s, "quick": given.quick}
        results.parts[name] = found
        if is_kept:
            results.write(path)
        for line in lines:
            bench.say(line)
    if is_kept and path == RESULTS:
        draw(results)
    return status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="parts, by commas")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--draw", action="store_true", help="draw the page from the results, and measure nothing")
    parser.add_argument("--write", action="store_true", help="write the results of a quick run too")
    parser.add_argument("--results", default=str(RESULTS))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
