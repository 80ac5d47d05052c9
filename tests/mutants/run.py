"""`make mutants`: breaks each law on purpose, in a copy of the sources, and sees that the simulation catches it.

Exit code 1 if a mutant survives, if its patch does not apply, if something else catches it than its first line says, or if
what caught it also complains of the sources as they are. ``--readme`` writes the table of tests/mutants/README.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutants.patches import HERE, ROOT, Mutant, all_of

SOURCES = ("shared", "orchestrator", "worker", "tests")
PATHS = ("shared", "orchestrator", "worker", ".")
AT_ONCE = 2
LIMIT_S = 400.0  # of one mutant: one that never ends is not caught
TABLE = re.compile(r"(?<=<!-- table -->\n).*(?=<!-- end -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Told:
    """What came of a mutant. ``catcher``: who caught it; ``seed``: where, in the simulation; ``trouble``: what is wrong."""

    mutant: Mutant
    catcher: str | None = None
    seeds: int = 0
    seed: int | None = None
    words: str = ""
    trouble: str | None = None
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.trouble is not None:
            return f"FAILED: {self.trouble}"
        return f"caught by {self.catcher}" if self.catcher is not None else "SURVIVED"

    @property
    def content(self) -> bool:
        """It was caught by one of those who should."""
        return self.trouble is None and self.catcher in self.mutant.catchers


def copy_sources(to: Path) -> Path:
    """The sources as they are, in a folder of their own."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, to / name, symlinks=True)
    shutil.copy2(ROOT / "pyproject.toml", to / "pyproject.toml")
    return to


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on the sources in ``root``, and on no others."""
    paths = os.pathsep.join(str(root / path) for path in PATHS)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def hunt(mutant: Mutant, seeds_max: int) -> Told:
    """Copies, mutates, and looks who complains."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = copy_sources(Path(folder).resolve())
        refused = mutant.apply(root)
        if refused is not None:
            told = Told(mutant, trouble=f"its patch does not apply: {refused}")
        else:
            try:
                told = _hunt_in(root, mutant, seeds_max)
            except subprocess.TimeoutExpired:
                told = Told(mutant, trouble=f"no end after {LIMIT_S:g} s")
    return dataclasses.replace(told, seconds=time.monotonic() - began_s)


def _hunt_in(root: Path, mutant: Mutant, seeds_max: int) -> Told:
    """The simulation first; then, if it sees nothing, the tests that the mutant names."""
    seeds = 0
    if mutant.checks:
        done = python(root, "-m", "tests.mutants.hunt", str(root), "--seeds-max", str(seeds_max))
        if done.returncode:
            return Told(mutant, trouble=_last_line(done))
        found = json.loads(done.stdout)
        seeds, law = found["seeds"], found["law"]
        if law is not None:
            trouble = None if law in mutant.checks else f"caught by {law} alone, which it does not name"
            return Told(mutant, law, seeds, found["seed"], found["words"], trouble)
    for test in mutant.tests:
        done = _pytest(root, [test])
        if done.returncode > 1:
            return Told(mutant, trouble=_last_line(done))
        if done.returncode:
            return Told(mutant, test, seeds, words=_last_line(done))
    return Told(mutant, seeds=seeds)


def _pytest(root: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def complaints(all_told: Sequence[Told]) -> list[str]:
    """What the catchers say of the sources as they are: nothing, or they prove nothing."""
    seeds = sorted({str(told.seed) for told in all_told if told.seed is not None})
    tests = sorted({told.catcher for told in all_told if told.catcher is not None and "::" in told.catcher})
    found = []
    if seeds:
        done = python(ROOT, "-m", "tests.mutants.hunt", str(ROOT), "--seeds", *seeds)
        if done.returncode or json.loads(done.stdout)["seed"] is not None:
            found.append(f"seeds: {_last_line(done)}")
    if tests:
        done = _pytest(ROOT, tests)
        if done.returncode:
            found.append(f"tests: {_last_line(done)}")
    return found


def table(all_told: Iterable[Told]) -> str:
    """Markdown."""
    lines = ["| mutant | what it breaks | caught by | seeds | seconds |", "|---|---|---|---|---|"]
    for told in all_told:
        seeds = str(told.seeds) if told.seeds else ""
        catcher = (told.catcher or told.verdict).rpartition("::")
        who = f"`{catcher[0].rpartition('/')[2]}::{catcher[2]}`" if catcher[0] else f"`{catcher[2]}`"
        lines.append(f"| {told.mutant.name} | {told.mutant.words} | {who} | {seeds} | {told.seconds:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose name has one of these in it")
    parser.add_argument("--seeds-max", type=int, default=2_000, help="as many as `make test` runs")
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    parser.add_argument("--readme", action="store_true", help="write the table of the README anew")
    options = parser.parse_args()
    mutants = [one for one in all_of() if not options.names or any(name in one.name for name in options.names)]
    began_s, all_told = time.monotonic(), list[Told]()
    with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:
        hunts = [pool.submit(hunt, mutant, options.seeds_max) for mutant in mutants]
        for future in concurrent.futures.as_completed(hunts):
            told = future.result()
            all_told.append(told)
            after = f" after {told.seeds} seeds" if told.seeds else ""
            print(f"{told.mutant.name}: {told.verdict}{after}, {told.seconds:.1f} s", flush=True)
            if told.words:
                print(f"    {told.words.splitlines()[0]}", flush=True)
    all_told.sort(key=lambda told: told.mutant.name)
    complaining = complaints(all_told)
    for complaint in complaining:
        print(f"the sources as they are do not pass either: {complaint}")
    bad = [told for told in all_told if not told.content]
    print(f"{len(all_told)} mutants in {time.monotonic() - began_s:.0f} s, {len(bad)} not caught as they should be")
    if options.readme and not options.names:
        readme = HERE / "README.md"
        readme.write_text(TABLE.sub(lambda _: table(all_told), readme.read_text()))
    return 1 if bad or complaining else 0


if __name__ == "__main__":
    sys.exit(main())
