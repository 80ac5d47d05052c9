"""The house rules that a program can check. Each test reads the repository, and then sees that it would catch an offence."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support import tidy
from tests.support.tidy import ROOT, Source

MACHINE_FILE = "shared/watership/machine/react.py"


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return list(tidy.repository())


def assert_none(offences: Sequence[str], rule: str) -> None:
    assert not offences, f"{rule}:\n  " + "\n  ".join(offences)


def assert_catches(rule: Callable[[list[Source]], list[str]], path: str, text: str) -> None:
    """A rule that cannot fail is no rule."""
    assert rule([Source(path, text)]), f"{rule.__name__} did not see the planted offence"


def assert_lets_pass(rule: Callable[[list[Source]], list[str]], path: str, text: str) -> None:
    assert not rule([Source(path, text)])


def test_the_repository_is_seen(sources: list[Source]) -> None:
    paths = {source.path for source in sources}
    assert {"pyproject.toml", "tests/test_tidy.py", "shared/watership/__init__.py"} <= paths
    assert not [path for path in paths if path.startswith(".venv")]


def test_functions_are_short(sources: list[Source]) -> None:
    assert_none(tidy.long_functions(tidy.python(sources)), f"functions over {tidy.FUNCTION_LINES_MAX} lines")
    assert_catches(tidy.long_functions, "a.py", "def f():\n" + "    pass\n" * tidy.FUNCTION_LINES_MAX)
    assert_lets_pass(tidy.long_functions, "a.py", "def f():\n" + "    pass\n" * (tidy.FUNCTION_LINES_MAX - 1))


def test_files_are_short(sources: list[Source]) -> None:
    assert_none(tidy.long_files(tidy.python(sources)), f"files over {tidy.FILE_LINES_MAX} lines")
    assert_catches(tidy.long_files, "a.py", "pass\n" * (tidy.FILE_LINES_MAX + 1))
    assert_lets_pass(tidy.long_files, "a/migrations/versions/0001.py", "pass\n" * 999)


def test_names_of_files_say_something(sources: list[Source]) -> None:
    assert_none(tidy.empty_names(tidy.python(sources)), "names that say nothing")
    assert_catches(tidy.empty_names, "shared/watership/saga/_helpers.py", "")
    assert_catches(tidy.empty_names, "shared/watership/common/time.py", "")
    assert_lets_pass(tidy.empty_names, "shared/watership/database.py", "")


def test_a_library_has_one_importer(sources: list[Source]) -> None:
    assert_none(tidy.strange_importers(tidy.product(sources)), "libraries imported where they should not be")
    for library in tidy.ONE_IMPORTER:
        assert_catches(tidy.strange_importers, "shared/watership/client.py", f"def f():\n    import {library}.x")
    assert_catches(tidy.strange_importers, "worker/watership_worker/worker.py", "from aio_pika import abc")
    assert_lets_pass(tidy.strange_importers, "shared/watership/codec.py", "import orjson")
    assert_lets_pass(tidy.strange_importers, "shared/watership/bus/rabbit/link.py", "import aio_pika")
    two = [Source("shared/a.py", "import jsonschema_rs"), Source("shared/b.py", "import jsonschema_rs")]
    assert tidy.strange_importers(two)
    assert not tidy.strange_importers(two[:1])


def test_modules_say_what_they_are(sources: list[Source]) -> None:
    assert_none(tidy.modules_without_docstring(tidy.product(sources)), "modules without a docstring")
    assert_catches(tidy.modules_without_docstring, "shared/watership/x.py", "import enum")


def test_the_public_face_is_documented() -> None:
    import watership  # here, so that a product that cannot be imported does not hide the other rules

    face = {name: getattr(watership, name) for name in watership.__all__}
    assert face, "watership.__all__ is empty"
    assert_none(tidy.faces_without_docstring(face), "public names without a docstring")

    class Silent(Path):
        pass

    assert tidy.faces_without_docstring({"Silent": Silent}) == ["Silent"]
    assert not tidy.faces_without_docstring({"Path": Path, "answer": 42})


def test_the_library_prints_nothing(sources: list[Source]) -> None:
    assert_none(tidy.prints(tidy.product(sources)), "print() in a library")
    assert_catches(tidy.prints, "shared/watership/saga/driver.py", "print('driving')")
    assert_lets_pass(tidy.prints, "shared/watership/demo/show.py", "print('a demo')")


def test_the_machine_asks_no_clock_and_throws_no_dice(sources: list[Source]) -> None:
    assert tidy.in_machine(sources), "the machine is not where this test looks for it"
    assert_none(tidy.clocks_and_dice(tidy.in_machine(sources)), "time or chance in the machine")
    for call in ("datetime.now(UTC)", "datetime.datetime.utcnow()", "time.time()", "random.random()", "uuid.uuid4()"):
        assert_catches(tidy.clocks_and_dice, MACHINE_FILE, call)
    assert_lets_pass(tidy.clocks_and_dice, MACHINE_FILE, "event.now()")


def test_the_machine_imports_only_what_is_pure(sources: list[Source]) -> None:
    assert_none(tidy.impure_imports(tidy.in_machine(sources)), "impure imports of the machine")
    for module in ("asyncio", "time", "pydantic", "watership.saga.saga", "watership.machinery"):
        assert_catches(tidy.impure_imports, MACHINE_FILE, f"import {module}")
    assert_lets_pass(tidy.impure_imports, MACHINE_FILE, "import enum\nfrom watership.machine.plan import Plan")


def test_nothing_is_left_undone(sources: list[Source]) -> None:
    # A lock file's hashes and a recording's frames are not written by people.
    written = [
        source for source in sources if source.path.endswith((".py", ".md", ".toml", ".yml", ".yaml", "Makefile"))
    ]
    assert_none(tidy.left_undone(written), "marks of unfinished work")
    assert_catches(tidy.left_undone, "a.py", "# TO" + "DO: later")


def test_no_machine_path_is_mentioned(sources: list[Source]) -> None:
    assert_none(tidy.machine_paths(sources), "paths of somebody's machine")
    assert_catches(tidy.machine_paths, "a.md", "see /wo" + "rk/main/README.md")
    assert_catches(tidy.machine_paths, "a.py", '"/ro' + 'ot/.cache"')
    assert_lets_pass(tidy.machine_paths, "a.md", "https://example.org/wo" + "rk/list and saga/ro" + "ot/x")


def test_links_lead_somewhere(sources: list[Source]) -> None:
    assert_none(tidy.broken_links(sources), "links to files that are not there")
    assert_catches(tidy.broken_links, "docs/a.md", "[gone](gone.md#part)")
    assert_catches(tidy.broken_links, "README.md", '<img src="docs/gone.svg">')
    assert_lets_pass(tidy.broken_links, "docs/a.md", "[up](../README.md) [web](https://x.org) [here](#a)")
    assert_lets_pass(tidy.broken_links, "docs/a.md", "```\n[gone](gone.md)\n```\n")


def test_one_version_everywhere() -> None:
    import watership

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert_none(tidy.version_mismatch(version, (ROOT / "CHANGELOG.md").read_text()), "versions that differ")
    assert watership.__version__ == version == importlib.metadata.version("watership")
    assert tidy.version_mismatch("1.0.0", "## [Unreleased]\n## [0.9.0] - 2026-01-01\n")
    assert not tidy.version_mismatch("1.0.0", "## [Unreleased]\n## [1.0.0] - 2026-01-01\n")
