"""That the mutants stand: a change of the sources keeps them, or makes them anew. `make mutants` is the whole run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.mutants.patches import HERE, LAWS, ROOT, Mutant, all_of, read
from tests.mutants.run import Told, hunt, table

PRODUCT = ("shared/watership/", "orchestrator/", "worker/")
SOURCES_OF_CHECKS = "".join(path.read_text() for path in (ROOT / "tests" / "simulation").glob("*.py"))
HARMLESS = """\
Nothing. Caught by: law_01_durable_before_visible

diff --git a/worker/watership_worker/replier.py b/worker/watership_worker/replier.py
--- a/worker/watership_worker/replier.py
+++ b/worker/watership_worker/replier.py
@@ -3,2 +3,3 @@
+Nothing else.
 A single reply at rest is sent at once; under load one message, one confirm and one acknowledgement carry many.
 \"\"\"
"""


@pytest.fixture(scope="module")
def mutants() -> list[Mutant]:
    return list(all_of())


def planted(folder: Path, text: str, name: str = "law-01-planted") -> Mutant:
    path = folder / f"{name}.patch"
    path.write_text(text)
    return read(path)


def test_every_patch_applies(mutants: list[Mutant], tmp_path: Path) -> None:
    stale = [f"{mutant.name}: {why}" for mutant in mutants if (why := mutant.apply(ROOT, check=True))]
    assert not stale, "make these patches anew:\n" + "\n".join(stale)
    assert planted(tmp_path, HARMLESS).apply(ROOT, check=True) is None
    other = HARMLESS.replace("A single reply", "No reply")
    assert planted(tmp_path, other).apply(ROOT, check=True) is not None


def test_every_law_has_a_mutant(mutants: list[Mutant]) -> None:
    assert {mutant.law for mutant in mutants} == set(LAWS)


def test_mutants_change_the_product_and_nothing_that_judges_it(mutants: list[Mutant]) -> None:
    for mutant in mutants:
        assert mutant.touched, mutant.name
        for path in mutant.touched:
            assert path.startswith(PRODUCT) and not path.startswith("shared/watership/testing/"), (
                f"{mutant.name}: {path}"
            )


def test_catchers_exist(mutants: list[Mutant]) -> None:
    for mutant in mutants:
        for check in mutant.checks:
            assert f'"{check}"' in SOURCES_OF_CHECKS, f"{mutant.name}: the simulation has no check {check}"
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), f"{mutant.name}: there is no test {test}"


def test_the_readme_has_every_mutant(mutants: list[Mutant]) -> None:
    told = (HERE / "README.md").read_text()
    assert not [mutant.name for mutant in mutants if f"| {mutant.name} |" not in told], "make mutants ARGS=--readme"


@pytest.mark.parametrize(
    ("name", "first_line"),
    [
        ("law-1-x", "It breaks. Caught by: law_01_durable_before_visible"),
        ("law-01-x", "It breaks, and nobody is named."),
        ("law-01-x", "It breaks. Caught by: one and another"),
    ],
)
def test_a_patch_says_what_it_breaks_and_who_catches_it(tmp_path: Path, name: str, first_line: str) -> None:
    with pytest.raises(ValueError, match="law-"):
        planted(tmp_path, HARMLESS.replace(HARMLESS.partition("\n")[0], first_line), name)


def test_a_mutant_is_caught_by_whom_it_names_or_not_at_all(mutants: list[Mutant], tmp_path: Path) -> None:
    """The hunt itself: a mutant, the same one that names somebody else, and one that breaks nothing."""
    early = next(mutant for mutant in mutants if mutant.name == "law-01-worker-acknowledges-first")
    caught = hunt(early, seeds_max=20)
    assert caught.content and caught.catcher == "law_01_durable_before_visible" and caught.seed is not None
    misnamed = hunt(dataclasses.replace(early, catchers=("law_07_pinned",)), seeds_max=20)
    assert not misnamed.content and "caught by law_01_durable_before_visible alone" in misnamed.verdict
    survivor = hunt(planted(tmp_path, HARMLESS), seeds_max=2)
    assert not survivor.content and survivor.verdict == "SURVIVED" and survivor.seeds == 2
    stale = hunt(planted(tmp_path, HARMLESS.replace("A single reply", "No reply")), seeds_max=2)
    assert not stale.content and "does not apply" in stale.verdict


def test_the_table_says_who_caught_what(mutants: list[Mutant]) -> None:
    first, second = mutants[:2]
    lines = table(
        [
            Told(first, "law_02_nothing_is_stuck", 7, 1_000_005, seconds=1.25),
            Told(second, "tests/unit/test_x.py::test_y"),
        ]
    ).splitlines()
    assert lines[2] == f"| {first.name} | {first.words} | `law_02_nothing_is_stuck` | 7 | 1.2 |"
    assert lines[3] == f"| {second.name} | {second.words} | `test_x.py::test_y` |  | 0.0 |"
