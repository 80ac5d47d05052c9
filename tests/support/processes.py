"""Services as processes of their own, as a test needs them: started, read line by line, killed, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINE_WITHIN_S = 20.0
STOP_WITHIN_S = 20.0


class Process:
    """One process. Its output, standard error included, is in ``output_path``, and in ``lines`` as it comes."""

    def __init__(
        self, name: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], output_path: Path
    ) -> None:
        self.name = name
        self.output_path = output_path
        self.lines: list[str] = []
        self._read_to_the_end = False
        self._news = threading.Condition()
        self._popen = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its own children can be ended with it
        )
        self._reader = threading.Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; the negative signal number if a signal ended it."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """Everything that it has written so far."""
        with self._news:
            return "".join(self.lines)

    def wait_for_line(self, pattern: str, timeout_s: float = LINE_WITHIN_S, *, after: int = 0) -> re.Match[str]:
        """Wait for the first line, from the line ``after`` on, in which the pattern is found.

        Raises AssertionError with the output when the time is up, or when the process ends without that line.
        """
        deadline, index = time.monotonic() + timeout_s, after
        with self._news:
            while True:
                for line in self.lines[index:]:
                    if found := re.search(pattern, line):
                        return found
                index = max(index, len(self.lines))
                left_s = deadline - time.monotonic()
                if self._read_to_the_end or left_s <= 0:
                    what = "ended" if self._read_to_the_end else f"ran for {timeout_s:g} s"
                    raise AssertionError(f"{self.name} {what} without a line like {pattern!r}:\n{''.join(self.lines)}")
                self._news.wait(left_s)

    async def line(self, pattern: str, timeout_s: float = LINE_WITHIN_S, *, after: int = 0) -> re.Match[str]:
        """`wait_for_line` for a test whose event loop has work to do meanwhile."""
        return await asyncio.to_thread(self.wait_for_line, pattern, timeout_s, after=after)

    def wait(self, timeout_s: float = STOP_WITHIN_S) -> int:
        """Wait until it ends by itself; its exit code. Raises subprocess.TimeoutExpired."""
        code = self._popen.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT make it a process that was only thought dead."""
        self._popen.send_signal(number)

    def kill9(self) -> None:
        """Kill it where it stands, and see it dead."""
        self._popen.kill()
        self.wait()

    def stop(self, timeout_s: float = STOP_WITHIN_S) -> int:
        """Ask it to end; its exit code. One that does not listen is killed, which the code then shows (-9)."""
        self._popen.terminate()
        try:
            return self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill9()
            return self.wait()

    def end(self) -> None:
        """Take down what is left of it, and its children: cleaning up, whatever the test did."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as source, self.output_path.open("w") as output:
            for line in source:
                output.write(line)
                output.flush()
                with self._news:
                    self.lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._read_to_the_end = True
            self._news.notify_all()


class Processes:
    """The processes of one test. The fixture `processes` is one of these, and ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.all: list[Process] = []

    def watership(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, name: str = ""
    ) -> Process:
        """Start the command `watership …`, as installed."""
        command = str(Path(sys.executable).with_name("watership"))
        return self._start([command, *arguments], env, cwd, name or f"watership {arguments[0] if arguments else ''}")

    def python(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, name: str = ""
    ) -> Process:
        """Start this Python with arguments: ``python("-m", "some.module")`` or ``python("some/script.py")``."""
        return self._start([sys.executable, *arguments], env, cwd, name or f"python {' '.join(arguments[:2])}")

    def end(self) -> None:
        """End all, the youngest first."""
        for process in reversed(self.all):
            process.end()

    def _start(self, command: Sequence[str], env: Mapping[str, str] | None, cwd: Path | None, name: str) -> Process:
        # Settings come from the test alone: not from the developer's shell, nor from a .env in the repository, so a
        # directory of its own is where a process runs. The repository is on the path for `examples.…` and `tests.…`.
        own = {key: value for key, value in os.environ.items() if not key.startswith("WATERSHIP_")}
        path = os.pathsep.join(filter(None, [str(ROOT), own.get("PYTHONPATH")]))
        environment = {
            **own,
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **(env or {}),
        }
        output_path = self._directory / f"{len(self.all)}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.log"
        process = Process(name, command, cwd=cwd or self._directory, env=environment, output_path=output_path)
        self.all.append(process)
        return process
