"""`watership torture`, on the guide's own program: what it shows, what it finds, and that the guide's remedy mends it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import ROOT, Command

GUIDE = (ROOT / "docs/guide.md").read_text()
PROGRAM = re.compile(r"```python\n(# parcels\.py\n.*?)```", re.DOTALL)
SHOWN = re.compile(r"```\n(ParcelSaga: .*?)\n…\n```", re.DOTALL)
CONTEXT = '{"order_id": "A-1", "pieces": 3}'
TWICE = "crash worker ReserveStock.act has run 1"


@pytest.fixture
def guide(tmp_path: Path) -> Iterator[Command]:
    """A directory with the program as the guide has it."""
    found = PROGRAM.search(GUIDE)
    assert found is not None, "the guide has no parcels.py"
    (tmp_path / "parcels.py").write_text(found[1])
    yield Command(tmp_path)
    sys.modules.pop("parcels", None)


def mend(directory: Path) -> None:
    """What the guide says to do."""
    program = directory / "parcels.py"
    text = program.read_text()
    mended = text.replace("self.sessions.begin() as session:", "self.sessions.begin() as session, barrier(session):")
    assert mended.count("barrier(session)") == 2
    program.write_text(mended.replace("import BarrierBase,", "import barrier, BarrierBase,"))


def torture(*arguments: str) -> tuple[str, ...]:
    return ("torture", "parcels:ParcelSaga", "--context", CONTEXT, "--fresh", "parcels:fresh", *arguments)


def test_the_guides_saga_is_tortured_and_what_is_wrong_is_shown(guide: Command) -> None:
    ran = guide.run(*torture(), columns=100)
    assert ran.code == 1
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert max(len(line) for line in lines) <= 100
    shown = SHOWN.search(GUIDE)
    assert shown is not None, "the guide shows no output"
    for line in shown[1].splitlines()[1:]:  # the first says how long it took
        assert line in lines, "the guide shows what is no longer so"


def test_one_finding_is_replayed_line_by_line(guide: Command) -> None:
    ran = guide.run(*torture("--only", TWICE), columns=100)
    assert ran.code == 1
    told = re.sub(r"(?m)^ +\d+\.\d+ +", "", ran.out)
    story = [
        "worker           ReserveStock.act: COMMIT",
        "worker           ReserveStock.act ran to its end",
        "worker           dies",
        "worker#2         gets the command ReserveStock.act again",
        "worker#2         ReserveStock.act: COMMIT",
    ]
    places = [told.find(line) for line in story]
    places[-1] = told.rfind(story[-1])
    assert -1 not in places and places == sorted(places)


def test_the_guides_remedy_mends_it(guide: Command) -> None:
    mend(guide.cwd)
    program = guide.cwd / "parcels.py"  # what it prints is no part of the report
    program.write_text(
        program.read_text().replace("barrier(session):", "barrier(session):\n            print('chatter')")
    )
    ran = guide.good(*torture("--pairs", "10", "--json"))
    report = ran.json
    assert report["ok"] and report["findings"] == []
    assert report["runs"] > 300


def test_mistakes_are_a_sentence_each(guide: Command) -> None:
    assert "no MODULE:NAME" in guide.bad("torture", "parcels", "--context", CONTEXT)
    assert "there is no module nowhere" in guide.bad("torture", "nowhere:Saga", "--context", CONTEXT)
    assert "parcels:Shop is a type, no Saga class" in guide.bad("torture", "parcels:Shop", "--context", CONTEXT)
    assert "pieces" in guide.bad("torture", "parcels:ParcelSaga", "--context", "{}")
    assert "a key is like" in guide.bad(*torture("--only", "sneeze"))
    wrong = guide.bad("torture", "parcels:ParcelSaga", "--context", CONTEXT)
    assert "step ReserveStock cannot run here" in wrong and "__init__ needs 'sessions'" in wrong


def test_without_the_services_it_says_what_to_install(guide: Command) -> None:
    bare = "import sys; sys.modules['jsonschema_rs'] = None; from watership.cli import main; main()"
    apart = dataclasses.replace(guide, apart=(sys.executable, "-c", bare))
    told = apart.bad(*torture())
    assert "torture runs the services, which need jsonschema_rs: pip install 'watership[server]'" in told
