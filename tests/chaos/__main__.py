"""`make chaos`: the long run. `make chaos ARGS="--minutes 5 --seed 7 --only broker"`.

Exit code 0: every law held, and nothing was left after the drain. 1: not so. 2: it could not be run at all.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.ground import private_ground
from tests.chaos.guardian import Guardian
from tests.chaos.run import Options, Outcome, run
from tests.support.endpoints import Unavailable

GROUPS = ("processes", "links", "broker", "database", "disk")
CAST = {"orchestrator": 3, "reaper": 2, "worker": 3, "client": 1}


def say(line: str) -> None:
    """One line for people."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description="All faults at once, on private servers.")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long faults are made (20)")
    parser.add_argument("--sagas", type=int, help="how many are started in that time (1,050 a minute)")
    parser.add_argument("--seed", type=int, help="of the load and the strikes; another one each time")
    parser.add_argument("--only", action="append", choices=GROUPS, default=[], help="these groups of faults only")
    parser.add_argument("--keep", type=Path, help="a directory for the processes' logs")
    return parser.parse_args(arguments)


async def chaos(given: argparse.Namespace, guardian: Guardian) -> Outcome:
    """Brings the servers up, and runs."""
    seed = given.seed if given.seed is not None else secrets.randbelow(1_000_000)
    options = Options(
        seed=seed,
        faults_s=given.minutes * 60,
        sagas=given.sagas or round(given.minutes * 1_050),
        cast=CAST,
        only=tuple(given.only),
        drain_within_s=180.0,
        # Longer than the backlog of a loaded machine: else all that waits is sent again and again, and waits longer.
        queue_within_s=45.0,
    )
    directory = given.keep or Path(tempfile.mkdtemp(prefix="watership-chaos-logs-"))
    directory.mkdir(parents=True, exist_ok=True)
    if given.keep is None:
        guardian.made(directory)
    say("chaos: starting RabbitMQ and two PostgreSQL of its own")
    async with private_ground(guardian, small_disk=not given.only or "disk" in given.only) as ground:
        return await run(options, ground, guardian, directory, say)


def main(arguments: list[str]) -> int:
    """Runs; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a Ctrl-C: cleans up
    given, guardian = parse(arguments), Guardian()
    try:
        outcome = asyncio.run(chaos(given, guardian))
    except Unavailable as why:
        say(f"chaos: {why}")
        return 2
    finally:
        guardian.close()
    say(outcome.text)
    for fallen in outcome.fallen:
        say(fallen)
    return 1 if outcome.breaches or outcome.fallen or outcome.drained_s is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
