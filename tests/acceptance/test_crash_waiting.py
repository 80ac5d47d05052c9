"""`kill -9` while an embedded saga waits for a signal: another process takes the signal, or the time-out, and ends it."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

from tests.support.command import Command
from tests.support.processes import ROOT

PATIENCE_S = 60


class Program:
    """The waiting program, and the journal of its steps."""

    def __init__(self, database_url: str, journal: Path, wait_s: float) -> None:
        self.saga_id = uuid.uuid4()
        self.journal = journal
        self._environment = {**os.environ, "DATABASE_URL": database_url, "JOURNAL": str(journal), "WAIT_S": str(wait_s)}

    async def start(self, mode: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.waiting_program",
            mode,
            str(self.saga_id),
            cwd=ROOT,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
        )

    async def first_line(self, process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        return (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().strip()

    async def killed_while_it_waits(self) -> None:
        process = await self.start("wait")
        assert await self.first_line(process) == "waits"
        process.kill()
        await process.communicate()

    async def told(self, mode: str) -> str:
        """What another process sees of the saga's end."""
        process = await self.start(mode)
        line = await self.first_line(process)
        await process.communicate()
        return line


async def test_a_signal_to_another_process_ends_it(saga_database: str, tmp_path: Path) -> None:
    program = Program(saga_database, tmp_path / "journal", wait_s=3600)
    await program.killed_while_it_waits()
    assert await program.told("signal") == "COMPLETED"
    assert program.journal.read_text().splitlines() == ["act:Ask", "act:Ship for ann"]


async def test_a_signal_from_the_command_line_ends_it(saga_database: str, tmp_path: Path) -> None:
    program = Program(saga_database, tmp_path / "journal", wait_s=3600)
    await program.killed_while_it_waits()
    command = Command(tmp_path, {"WATERSHIP_DATABASE_URL": saga_database})
    signal = ("signal", str(program.saga_id), "approval")
    sent = await asyncio.to_thread(command.good, *signal, "--data", '{"by": "bob"}')
    assert "takes it within seconds" in sent.out
    assert await program.told("watch") == "COMPLETED"
    assert program.journal.read_text().splitlines() == ["act:Ask", "act:Ship for bob"]
    refused = await asyncio.to_thread(command.run, *signal)
    assert refused.code == 1
    assert "waits for nothing: it is COMPLETED" in refused.err


async def test_its_time_out_is_kept_by_another_process(saga_database: str, tmp_path: Path) -> None:
    program = Program(saga_database, tmp_path / "journal", wait_s=2)
    await program.killed_while_it_waits()
    assert await program.told("watch") == "COMPENSATED"
    assert program.journal.read_text().splitlines() == ["act:Ask", "compensate:Ask"]
