"""The command `watership` as a user runs it, with settings from the test alone: in this process, or in one of its own.

Most runs are in this process, because a new one takes a second to import what it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from watership.cli import main

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """Runs `watership …` in ``cwd`` with ``env``. ``apart``: how to start it as a process; None: in this one."""

    cwd: Path
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    apart: tuple[str, ...] | None = None

    def run(self, *arguments: str, stdin: str = "", columns: int = 100) -> Ran:
        """Runs it to its end. An error that it does not expect fails the test."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("WATERSHIP_")}
        env = {**own, "COLUMNS": str(columns), "NO_COLOR": "1", "PYTHONPATH": str(ROOT), **self.env}
        if self.apart is None:
            return self._run_here(arguments, env, stdin)
        done = subprocess.run(
            [*self.apart, *arguments],
            cwd=self.cwd,
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=ENDS_WITHIN_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def _run_here(self, arguments: tuple[str, ...], env: Mapping[str, str], stdin: str) -> Ran:
        with self._here(arguments, env, stdin) as (out, err):
            try:
                main()
                code: Any = 0
            except SystemExit as end:
                code = end.code or 0
        return Ran(code, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def _here(
        self, arguments: tuple[str, ...], env: Mapping[str, str], stdin: str
    ) -> Iterator[tuple[io.StringIO, io.StringIO]]:
        out, err = io.StringIO(), io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        with (
            mock.patch.dict(os.environ, env, clear=True),
            mock.patch.object(sys, "argv", ["watership", *arguments]),
            mock.patch.object(sys, "stdin", given),
            contextlib.chdir(self.cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            yield out, err

    def good(self, *arguments: str, stdin: str = "", columns: int = 100) -> Ran:
        """Runs it, and it succeeds."""
        ran = self.run(*arguments, stdin=stdin, columns=columns)
        assert ran.code == 0, f"{arguments}: {ran}"
        return ran

    def bad(self, *arguments: str, stdin: str = "", code: int = 1) -> str:
        """Runs it, and it fails with one sentence on standard error, which is the answer."""
        ran = self.run(*arguments, stdin=stdin)
        assert ran.code == code, f"{arguments}: {ran}"
        if code == 1:
            assert ran.err.startswith("error: "), ran
            assert ran.err.count("\n") == 1, ran
        return ran.err


def installed() -> tuple[str, ...]:
    """The command as it is installed, for ``apart``."""
    return (str(Path(sys.executable).with_name("watership")),)
