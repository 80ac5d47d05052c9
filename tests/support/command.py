"""The command `watership` as a user runs it: a process, with settings from the test alone."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """Runs `watership …` in ``cwd``, with ``env`` and nothing of the developer's own settings."""

    cwd: Path
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: tuple[str, ...] = (sys.executable, "-m", "watership.cli")

    def run(self, *arguments: str, stdin: str = "", columns: int = 100) -> Ran:
        """Runs it to its end."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("WATERSHIP_")}
        env = {**own, "COLUMNS": str(columns), "NO_COLOR": "1", "PYTHONPATH": str(ROOT), **self.env}
        done = subprocess.run(
            [*self.prefix, *arguments],
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

    def good(self, *arguments: str, stdin: str = "") -> Ran:
        """Runs it, and it succeeds."""
        ran = self.run(*arguments, stdin=stdin)
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
