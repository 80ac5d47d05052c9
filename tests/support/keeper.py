"""The process that owns the servers which a test run brings up: `python -m tests.support.keeper docker rabbitmq`.

It ends them when its standard input closes, and that happens however the run ends, `kill -9` included. On its standard
output it writes one JSON object a line: `{"say": …}` for people, then `{"ready": {server: {url, where}}}` or `{"failed": …}`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import signal
import sys
from collections.abc import Sequence

from tests.support.endpoints import Endpoint, Unavailable


def tell(**line: object) -> None:
    """Write one line of the protocol."""
    # Nobody reads any more when the run was killed; the servers must be ended all the same.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def keep(way: str, wanted: Sequence[str]) -> None:
    """Bring the servers up, hand over their addresses, wait for the end of input, and take everything down."""
    running = importlib.import_module(f"tests.support.{way}_servers").running
    endpoints: dict[str, Endpoint]
    with running(wanted, lambda text: tell(say=text)) as endpoints:
        tell(ready={server: dataclasses.asdict(endpoint) for server, endpoint in endpoints.items()})
        sys.stdin.read()


def leave_signals_to_the_run() -> None:
    """Ctrl-C and its like are for the test run: it cleans up while we are still here, and then closes our input.

    By a handler that does nothing, because the servers would inherit SIG_IGN and never end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def main(way: str, wanted: Sequence[str]) -> int:
    """The exit code says whether the servers came up."""
    leave_signals_to_the_run()
    try:
        keep(way, wanted)
    except Unavailable as why:
        tell(failed=str(why))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
