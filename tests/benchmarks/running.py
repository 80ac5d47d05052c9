"""Runs one contender once: its services in the background, its drivers in front, and the accounts of all.

A driver says that it is ready, is told to go, and answers with a line of JSON (`closed_loop`). What a program wrote on
its standard error is shown if it fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from tests.benchmarks.accounts import Accounts
from tests.benchmarks.closed_loop import WARM_S
from tests.support.servers import ROOT

READY_WITHIN_S = 60.0
END_WITHIN_S = 90.0
STOP_WITHIN_S = 20.0


class Failed(Exception):
    """A run that gave no result; the message says what its program said last."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A process of a run: its group in the accounts, its command line, and what it finds in its environment."""

    group: str
    command: tuple[str, ...]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    is_driver: bool = False


@dataclasses.dataclass
class Run:
    """What came of it. ``cpu_ms``: of each group, for each saga that ended."""

    rate: float
    latency_ms: dict[str, float]
    cpu_ms: dict[str, float]
    resident_bytes: dict[str, int]


class _Process:
    def __init__(self, program: Program) -> None:
        self.program = program
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in end()
        self.popen = subprocess.Popen(
            program.command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **program.environment},
            stdin=subprocess.PIPE if program.is_driver else subprocess.DEVNULL,
            stdout=subprocess.PIPE if program.is_driver else subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        if self.popen.stdout is not None:
            threading.Thread(target=self._read, args=(self.popen.stdout,), daemon=True).start()

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def answer(self, within_s: float) -> dict[str, Any]:
        """Its next line of JSON; other lines are passed over. Raises Failed."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline_s - time.monotonic()))
            except queue.Empty:
                raise self._failed(f"said nothing for {within_s:.0f} s") from None
            if not line:
                raise self._failed("ended")
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict):
                    return said

    def go(self) -> None:
        """Tells it to begin."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"go\n")
        self.popen.stdin.flush()

    def _failed(self, what: str) -> Failed:
        return Failed(f"{self.program.group} {what}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what it wrote on standard error."""
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace").strip()
        return text[-600:] or "no word of why"

    def send(self, number: signal.Signals) -> None:
        """To the process and all that it began."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def end(self) -> None:
        """Stops it, kindly at first."""
        try:
            self.popen.wait(timeout=STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Stage:
    """The processes of one run."""

    def __init__(self) -> None:
        self.accounts = Accounts()
        self._processes: list[_Process] = []

    def begin(self, program: Program) -> _Process:
        """Starts one."""
        process = _Process(program)
        self._processes.append(process)
        self.accounts.add(program.group, process.popen.pid)
        return process

    def kill(self, groups: set[str]) -> None:
        """SIGKILL to all of these groups, at once."""
        for process in self._processes:
            if process.program.group in groups:
                process.send(signal.SIGKILL)

    def close(self) -> None:
        """Ends them all."""
        for process in self._processes:
            process.send(signal.SIGTERM)
        for process in self._processes:
            process.end()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """The processes of one run, ended whatever happens."""
    made = Stage()
    try:
        yield made
    finally:
        made.close()


def run_once(programs: list[Program], seconds: float) -> Run:
    """Starts all, waits until the drivers are ready, lets them go, and reads the accounts while they run.

    Raises Failed.
    """
    with stage() as on_stage:
        for program in programs:
            if not program.is_driver:
                on_stage.begin(program)
        drivers = []
        for program in programs:
            if program.is_driver:  # one after the other: the first makes the tables
                drivers.append(on_stage.begin(program))
                drivers[-1].answer(READY_WITHIN_S)
        for driver in drivers:
            driver.go()
        time.sleep(WARM_S)
        before = on_stage.accounts.read()
        time.sleep(seconds)
        spent_s = on_stage.accounts.read().since(before)
        resident_bytes = on_stage.accounts.resident_bytes()
        answers = [driver.answer(END_WITHIN_S) for driver in drivers]
    return _run_of(answers, spent_s, resident_bytes)


def _run_of(answers: list[dict[str, Any]], spent_s: dict[str, float], resident_bytes: dict[str, int]) -> Run:
    ended = sum(answer["ended"] for answer in answers)
    latencies = [answer["latency_ms"] for answer in answers if answer["latency_ms"]]
    latency_ms = {name: max(one[name] for one in latencies) for name in latencies[0]} if latencies else {}
    return Run(
        rate=sum(answer["ended"] / answer["seconds"] for answer in answers),
        latency_ms=latency_ms,
        cpu_ms={group: cpu_s * 1000 / ended for group, cpu_s in spent_s.items()} if ended else {},
        resident_bytes=resident_bytes,
    )


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """For what a contender keeps in files."""
    return tempfile.TemporaryDirectory(prefix="watership-bench-", ignore_cleanup_errors=True)
