"""The process that outlives a chaos run: `python -m tests.chaos.guardian`. It ends what the run leaves behind.

Line by line on its standard input it is told what there is: ``+PID`` and ``-PID`` for a process that leads a group of
its own, ``mount PATH``, ``directory PATH``. When the input closes, and that happens however the run ends, `kill -9`
included, it kills what is left, and removes the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Guardian:
    """The run's end of it. ``close`` returns when all is gone."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.guardian"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def began(self, pid: int) -> None:
        """A process runs that leads a group of its own."""
        self._tell(f"+{pid}")

    def ended(self, pid: int) -> None:
        """It is gone: its number may be another's soon."""
        self._tell(f"-{pid}")

    def mounted(self, path: Path) -> None:
        """A file system is to be unmounted."""
        self._tell(f"mount {path}")

    def made(self, path: Path) -> None:
        """A directory is to be removed."""
        self._tell(f"directory {path}")

    def close(self) -> None:
        """Nothing is left after this."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


def main() -> None:
    """Listens until the run has ended, and cleans up after it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, None] = {}
    mounts: list[str] = []
    directories: list[str] = []
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "mount":
            mounts.append(rest)
        elif word == "directory":
            directories.append(rest)
        elif word.startswith("+"):
            groups[int(word)] = None
        else:
            groups.pop(-int(word), None)
    for group in reversed(groups):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for path in mounts:
        subprocess.run(["umount", "--lazy", path], check=False)
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
