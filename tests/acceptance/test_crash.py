"""`os._exit` inside any act or compensation of an embedded saga, then `recover_saga`: on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.support.crash_program import CRASH_CODE
from tests.support.processes import ROOT

STEPS = ["Reserve", "Charge", "Ship"]
FORWARD = [f"act:{step}" for step in STEPS]
BACKWARD = ["compensate:Charge", "compensate:Reserve"]


class Program:
    """The crashing program, and the journal of its steps."""

    def __init__(self, database_url: str, journal: Path) -> None:
        self.saga_id = uuid.uuid4()
        self._journal = journal
        self._environment = {**os.environ, "DATABASE_URL": database_url, "JOURNAL": str(journal)}

    async def run(self, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        """Runs the program once; its exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.crash_program",
            arguments[0],
            str(self.saga_id),
            *arguments[1:],
            cwd=ROOT,
            env={**self._environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        assert process.returncode in (0, CRASH_CODE), err.decode()
        return process.returncode, out.decode().split()

    def lines(self) -> list[str]:
        """What the steps wrote."""
        return self._journal.read_text().splitlines()


def check_never_side_by_side(lines: Sequence[str], crashed_at: str) -> None:
    """Between a begin and its end, nothing else begins; only the crash leaves one open."""
    open_place: str | None = None
    for line in lines:
        word, place = line.split()
        if word == "begin":
            assert open_place in (None, crashed_at), f"{place} began while {open_place} ran: {lines}"
            open_place = place
        else:
            assert place == open_place, lines
            open_place = None
    assert open_place is None, lines


def ended(lines: Sequence[str]) -> list[str]:
    """The places that ran to their end, in order."""
    return [line.removeprefix("end ") for line in lines if line.startswith("end ")]


# Every case waits for the dead process's lease to run out, so all cases of a test wait side by side.
RECOVERIES = {"four in one process": ("4",), "two processes": ("2", "2")}


async def test_a_crash_in_any_act(saga_database: str, tmp_path: Path) -> None:
    async def case(place: str, recoveries: Sequence[str]) -> None:
        program = Program(saga_database, tmp_path / uuid.uuid4().hex)
        assert (await program.run("run", CRASH_AT=place))[0] == CRASH_CODE
        answers = await asyncio.gather(*(program.run("recover", times) for times in recoveries))
        assert {answer for _, printed in answers for answer in printed} == {"recovered"}
        assert ended(program.lines()) == FORWARD, "what was done is not run again, the rest once"
        check_never_side_by_side(program.lines(), place)

    await asyncio.gather(*(case(place, recoveries) for place in FORWARD for recoveries in RECOVERIES.values()))


async def test_a_crash_in_any_compensation(saga_database: str, tmp_path: Path) -> None:
    async def case(place: str, recoveries: Sequence[str]) -> None:
        program = Program(saga_database, tmp_path / uuid.uuid4().hex)
        assert (await program.run("run", CRASH_AT=place, FAIL="1"))[0] == CRASH_CODE
        before = len(program.lines())
        # Without FAIL now: going forward again would complete it. It must not.
        answers = await asyncio.gather(*(program.run("recover", times) for times in recoveries))
        assert {answer for _, printed in answers for answer in printed} == {"SagaCompensated"}
        assert not [line for line in program.lines()[before:] if " act:" in line]
        assert ended(program.lines()) == [*FORWARD, *BACKWARD]
        check_never_side_by_side(program.lines(), place)

    await asyncio.gather(*(case(place, recoveries) for place in BACKWARD for recoveries in RECOVERIES.values()))


async def test_a_crash_in_the_failing_act_undoes_it_too(saga_database: str, tmp_path: Path) -> None:
    """Its first run may have had an effect: the second one's failure speaks only for itself."""
    program = Program(saga_database, tmp_path / "journal")
    await program.run("run", CRASH_AT="act:Ship", FAIL="1")
    _, printed = await program.run("recover", FAIL="1")
    assert printed == ["RuntimeError"]
    assert ended(program.lines()) == [*FORWARD, "compensate:Ship", *BACKWARD]
