"""mypy --strict and pyright, strict too, over what users read and write: the README, the examples, the public face."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.typing.readme_blocks import NAMED, blocks, programs

BIN = Path(sys.executable).parent
README = ROOT / "README.md"
GUIDE = ROOT / "docs/guide.md"
ONE_PROGRAM_EACH = [ROOT / "docs/flow.md"]
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.py"))
PUBLIC_FACE = ROOT / "tests/typing/public_face.py"
SOURCE_ROOTS = [ROOT, ROOT / "shared", ROOT / "orchestrator", ROOT / "worker"]

TWO_PROGRAMS = '''
```python
import asyncio
await asyncio.sleep(0)
```
and then
```python
async for _ in ():
    pass
```
```sh
make demo
```
```python
"""Another."""
from asyncio import sleep
async def main():
    await sleep(0)
```
'''

Checked = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checked]:
    """One run of each type checker over everything, both at once."""
    directory = tmp_path_factory.mktemp("typing")
    for name, program in programs(README.read_text()).items():
        (directory / name).write_text(program)
    for block in blocks(GUIDE.read_text()):
        if (named := NAMED.match(block)) is not None:  # most are parts of a program, and this is a whole one
            (directory / named[1]).write_text(block)
    for page in ONE_PROGRAM_EACH:
        (directory / f"page_{page.stem}.py").write_text("\n\n".join(blocks(page.read_text())))
    files = [*map(str, sorted(directory.glob("*.py"))), *map(str, EXAMPLES), str(PUBLIC_FACE)]
    with ThreadPoolExecutor() as pool:
        mypy = pool.submit(run_mypy, files, directory)
        pyright = pool.submit(run_pyright, files, directory)
        return {"mypy": mypy.result(), "pyright": pyright.result()}


def run_mypy(files: Sequence[str], directory: Path) -> Checked:
    # A cache of its own: `make check` runs mypy over the repository at the same time.
    options = ["--strict", "--cache-dir", str(ROOT / ".mypy_cache/typing"), "--no-error-summary"]
    return run([str(BIN / "mypy"), *options, *files], ROOT, MYPYPATH=str(directory))


def run_pyright(files: Sequence[str], directory: Path) -> Checked:
    config = {
        "typeCheckingMode": "strict",
        "extraPaths": [str(root) for root in SOURCE_ROOTS],
        # A mark for mypy is none for pyright, and the other way round; one that marks nothing is an error.
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
        # `_generate_step_result` is called by the handlers that inherit it, and unused ends are of this test's making.
        "reportPrivateUsage": "none",
        "reportUnusedFunction": "none",
        # Libraries of the examples ship types in part.
        "reportMissingTypeStubs": "none",
        "reportUnknownMemberType": "none",
    }
    (directory / "pyrightconfig.json").write_text(json.dumps(config))
    return run([str(BIN / "pyright"), "--pythonpath", sys.executable, *files], directory)


def run(command: Sequence[str], cwd: Path, **environment: str) -> Checked:
    # pyright says on standard output that there is a newer one, and asks the network for it.
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1", **environment}
    return subprocess.run(
        command, cwd=cwd, env=env, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_types_hold(checked: dict[str, Checked], checker: str) -> None:
    assert checked[checker].returncode == 0, checked[checker].stdout


def test_the_readme_has_programs() -> None:
    readme = README.read_text()
    if readme.strip():
        assert list(blocks(readme)), "the README shows no Python"
        for name, program in programs(readme).items():
            compile(program, name, "exec")


def test_blocks_become_programs() -> None:
    assert len(list(blocks(TWO_PROGRAMS))) == 3
    found = programs(TWO_PROGRAMS)
    assert list(found) == ["readme_1.py", "readme_2.py"]
    assert "async def _block_1() -> None:\n    await asyncio.sleep(0)\n" in found["readme_1.py"]
    assert "async def _block_2() -> None:\n    async for _ in ():\n        pass\n" in found["readme_1.py"]
    assert found["readme_2.py"].endswith("async def main():\n    await sleep(0)\n")
    for name, program in found.items():
        compile(program, name, "exec")
