"""`make check`: everything that needs no server, side by side; each one's output comes whole, when it has ended."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
# The slow ones first: they decide how long it takes.
CHECKS = {
    # Programs as processes (tests/acceptance) and thousands of seeds are for `make test`: they take minutes.
    "pytest": [
        "pytest",
        "-m",
        "not servers",
        "-q",
        "--durations=5",
        "--ignore=tests/acceptance",
        "--ignore=tests/simulation",
    ],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports", "--no-logo"],
    "ruff": ["ruff", "check"],
    "ruff format": ["ruff", "format", "--check"],
}


def check(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run one; its output, both streams together, and how long it took."""
    began_s = time.monotonic()
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done, time.monotonic() - began_s


def main() -> int:
    """Run all; 1 if any of them is not content."""
    failed = []
    with concurrent.futures.ThreadPoolExecutor(len(CHECKS)) as pool:
        running = {pool.submit(check, command): name for name, command in CHECKS.items()}
        for future in concurrent.futures.as_completed(running):
            name, (done, took_s) = running[future], future.result()
            content = done.returncode == 0
            failed += [] if content else [name]
            print(
                f"--- {name}: {'ok' if content else 'FAILED'} ({took_s:.1f} s)",
                done.stdout.strip(),
                sep="\n",
                flush=True,
            )
    print(f"=== check: {'FAILED: ' + ', '.join(failed) if failed else 'all ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
