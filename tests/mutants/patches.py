"""The mutants as they are kept: a patch each, whose first line says what it breaks and who may catch it.

    Acknowledges before it publishes. Caught by: law_01_durable_before_visible, promise_nothing_is_lost

A catcher is a check of the simulation, or a test (``tests/unit/test_x.py::test_y``) for what the simulation does not reach.
It must never know how a mutant is hunted.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LAWS = range(1, 13)

_NAME = re.compile(r"law-(\d\d)-[a-z0-9-]+")
_HEADER = re.compile(r"(?P<words>.+\.) Caught by: (?P<catchers>\S+(?:, \S+)*)")
_TOUCHED = re.compile(r"^\+\+\+ b/(\S+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One way to break a law. ``touched``: the files that it changes."""

    path: Path
    law: int
    words: str
    catchers: tuple[str, ...]
    touched: tuple[str, ...]

    @property
    def name(self) -> str:
        """The patch's name."""
        return self.path.stem

    @property
    def checks(self) -> tuple[str, ...]:
        """The simulation's checks among its catchers."""
        return tuple(catcher for catcher in self.catchers if "::" not in catcher)

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests among its catchers."""
        return tuple(catcher for catcher in self.catchers if "::" in catcher)

    def apply(self, root: Path, *, check: bool = False) -> str | None:
        """Applies the patch to the sources in ``root``; only tries it if ``check``. Why it cannot be, or None."""
        # As if there were no repository around it: what is staged is no matter.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
        command = ["git", "apply", *(["--check"] if check else []), str(self.path)]
        done = subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)
        return done.stderr.strip() if done.returncode else None


def read(path: Path) -> Mutant:
    """Reads a patch. Raises `ValueError` if its name or its first line does not say what it should."""
    text = path.read_text()
    name, header = _NAME.fullmatch(path.stem), _HEADER.fullmatch(text.partition("\n")[0])
    if name is None:
        raise ValueError(f"{path.name}: a patch is named law-NN-what-it-does.patch")
    if header is None:
        raise ValueError(f"{path.name}: its first line is not 'What it breaks. Caught by: a_check, another'")
    return Mutant(
        path, int(name[1]), header["words"], tuple(header["catchers"].split(", ")), tuple(_TOUCHED.findall(text))
    )


def all_of(folder: Path = HERE) -> Iterator[Mutant]:
    """Every mutant, by law."""
    for path in sorted(folder.glob("*.patch")):
        yield read(path)
