"""Torture, and handlers behind the barrier on a database in virtual time."""

from __future__ import annotations

import gc

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from watership import Saga
from watership.testing import torture
from watership.testing.torturing.report import Kind, TortureReport

from tests.support import tortured_bank as bank
from tests.support.tortured_bank import Transfer


async def unchecked() -> bank.BankContainer:
    return (await bank.fresh())[0]


def sentences(report: TortureReport) -> str:
    return "\n".join(finding.sentence for finding in report.findings)


async def test_nothing_is_found_in_handlers_whose_whole_effect_is_behind_the_barrier() -> None:
    report = await torture(bank.TransferSaga, Transfer(), fresh=bank.fresh, only="worker Debit")
    assert report.ok, report
    assert report.checked
    points = {cell.name for run in report.runs for cell in run.cells}
    assert {"Debit.act: INSERT watership_barrier", "Debit.act: UPDATE account", "Debit.act: COMMIT"} <= points


async def test_handlers_behind_the_barrier_are_not_suspected_without_a_check() -> None:
    report = await torture(bank.TransferSaga, Transfer(), fresh=unchecked, only="Debit.act")
    assert report.ok, report
    assert not report.checked


async def test_an_effect_that_is_partly_outside_of_the_block_is_found() -> None:
    report = await torture(
        bank.HalfOutsideSaga, Transfer(), fresh=bank.fresh, only="crash worker Debit.act: UPDATE account"
    )
    assert {finding.kind for finding in report.findings} == {Kind.UNBALANCED}
    assert "COMPLETED, but your check says: the accounts are {'ann': 7900, 'ben': 4200}" in sentences(report)
    assert report.findings[0].fault == "crash of the worker in Debit.act, before its UPDATE account (time 2)"


async def test_a_worker_with_a_barrier_of_its_own_is_tortured_as_well() -> None:
    found = await torture(bank.PlainSaga, Transfer(), fresh=bank.fresh, only="crash worker Debit.act has run 1")
    assert not found.ok
    report = await torture(bank.PlainSaga, Transfer(), fresh=bank.fresh, barrier=AsyncSession, only="worker Debit")
    assert report.ok, report


class BeginningDebit(bank.PlainDebit):
    """`sessionmaker.begin()` commits in a task of its own, which dies with its worker as well."""

    async def act(self, context: Transfer) -> None:
        async with async_sessionmaker(self.session.bind).begin() as self.session:
            await super().act(context)


class BeginningSaga(Saga[Transfer]):
    steps = [BeginningDebit]


async def test_what_dead_workers_held_open_is_closed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    report = await torture(BeginningSaga, Transfer(), fresh=unchecked, only="crash worker Debit.act")
    points = {cell.name for run in report.runs for cell in run.cells}
    assert {"Debit.act: UPDATE account", "Debit.act: COMMIT", "Debit.act waits"} <= points
    gc.collect()  # what was left open would be complained of now, which fails the test
    assert not caplog.records
