"""`torture` finds what is planted, in handlers and in the engine, and finds nothing in a saga that is right."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest

from watership import ConfigurationError, DefinitionError, Remote, Response, Saga, SagaStepHandler, Wait
from watership.testing import succeeds, torture, torture_sync, unknown
from watership.testing.torturing.report import Kind, TortureReport, Verdict
from watership_orchestrator.engine import Engine
from watership_orchestrator.orchestrator import Orchestrator
from watership_worker import consumer
from watership_worker.replier import Replier

from tests.support import tortured_shop as shop
from tests.support.tortured_shop import Order


def kinds(report: TortureReport) -> set[Kind]:
    return {finding.kind for finding in report.findings}


def sentences(report: TortureReport) -> str:
    return "\n".join(finding.sentence for finding in report.findings)


# --- a saga that is right


async def test_nothing_is_found_in_a_saga_that_is_right() -> None:
    report = await torture(shop.OrderSaga, Order(), fresh=shop.fresh, pairs=20)
    assert report.ok, report
    assert {run.verdict for run in report.runs} == {Verdict.RIGHT}
    assert {run.status for run in report.runs} == {"COMPLETED", "COMPENSATED"}
    assert report.plain == "COMPLETED"
    harms = {cell.harm for run in report.runs for cell in run.cells}
    assert harms == {"crash", "stop", "cut", "lost", "untold", "twice", "late"}
    stages = {cell.stage for run in report.runs for cell in run.cells}
    assert stages == {
        "start",
        "ReserveStock.act",
        "ChargeCard.act",
        "completed",
        "ChargeCard.compensate",
        "ReserveStock.compensate",
        "compensated",
    }
    hurt = {cell.role for run in report.runs for cell in run.cells}
    assert hurt == {"client", "orchestrator", "worker", "reaper"}
    assert "Nothing was found." in str(report)


async def test_the_same_seed_gives_the_same_runs() -> None:
    one = await torture(shop.OrderSaga, Order(), fresh=shop.fresh, only="ChargeCard fails", seed=3)
    other = await torture(shop.OrderSaga, Order(), fresh=shop.fresh, only="ChargeCard fails", seed=3)
    assert one.runs == other.runs
    assert one.trace == other.trace
    assert one.trace


async def test_a_step_that_idempotency_keys_guard_is_not_suspected() -> None:
    report = await torture(shop.OrderSaga, Order(), container=shop.ShopContainer(shop.Books()), only="worker")
    assert report.ok, report
    assert not report.checked


# --- what is wrong in handlers


async def test_a_handler_that_is_not_idempotent_is_found_by_the_books() -> None:
    report = await torture(shop.CarelessSaga, Order(), fresh=shop.fresh, only="worker ChargeCard.act")
    assert Kind.UNBALANCED in kinds(report)
    assert "COMPLETED, but your check says: {'ReserveStock': 1, 'ChargeCard': 2}" in sentences(report)


async def test_a_handler_that_is_not_idempotent_is_suspected_without_a_check() -> None:
    container = shop.ShopContainer(shop.Books())
    report = await torture(
        shop.CarelessSaga, Order(), container=container, only="crash worker ChargeCard.act has run 1"
    )
    (finding,) = report.findings
    assert finding.kind is Kind.SUSPICIOUS
    assert finding.sentence.startswith("ChargeCard.act ran twice to its end: make it idempotent by current_step()")
    assert finding.fault == "crash of the worker after ChargeCard.act has run to its end, before its reply is sent"


async def test_a_compensation_that_undoes_what_never_was_is_found() -> None:
    report = await torture(shop.PlusOneSaga, Order(), fresh=shop.fresh, only="ReserveStock unknown and did not act")
    assert "COMPENSATED, but your check says: {'ReserveStock': -1, 'ChargeCard': 0}" in sentences(report)


async def test_a_compensation_for_an_act_that_never_ran_is_suspected_without_a_check() -> None:
    class Careless(SagaStepHandler[Order, Response]):
        async def act(self, context: Order) -> None:
            pass

        async def compensate(self, context: Order) -> None:
            pass

    class CarelessSaga(Saga[Order]):
        steps = [Careless]

    report = await torture(CarelessSaga, Order(), only="Careless unknown and did not act")
    assert kinds(report) == {Kind.SUSPICIOUS}
    assert "Careless.compensate ran to its end, though its act never ran" in sentences(report)


async def test_a_compensation_that_assumes_that_its_act_ran_is_found() -> None:
    report = await torture(shop.TrustingSaga, Order(), fresh=shop.fresh, only="ChargeCard unknown and did not act")
    (finding,) = report.findings
    assert finding.kind is Kind.PARKED
    assert "there is no payment to give back" in finding.sentence
    assert {run.verdict for run in report.runs} == {Verdict.PARKED}


async def test_a_compensation_that_reads_what_a_later_step_writes_is_found() -> None:
    report = await torture(shop.ForesightedSaga, Order(), fresh=shop.fresh, only="ChargeCard fails")
    assert kinds(report) == {Kind.PARKED}
    assert "which payment was it?" in sentences(report)


async def test_a_compensation_that_always_fails_parks_the_saga() -> None:
    report = await torture(shop.StubbornSaga, Order(), fresh=shop.fresh, only="ChargeCard fails")
    assert kinds(report) == {Kind.PARKED}
    assert len(report.parked) == 1
    assert "P ChargeCard fails" in str(report)


async def test_a_saga_that_is_wrong_without_any_fault_is_not_tortured_further() -> None:
    unknown_charge = {"ChargeCard": unknown()}
    report = await torture(shop.OrderSaga, Order(), fresh=shop.fresh, steps=unknown_charge, only="ChargeCard fails")
    assert report.plain.startswith("COMPENSATED: ChargeCard"), "that is no fault of the saga"
    assert len(report.runs) == 1
    assert report.ok

    def check(_: object) -> str:
        return "never content"

    report = await torture(shop.OrderSaga, Order(), container=shop.ShopContainer(shop.Books()), check=check)
    assert [run.key for run in report.runs] == ["no fault"]
    assert "never content" in sentences(report)


# --- what is wrong in the engine


async def test_an_orchestrator_that_acknowledges_before_it_publishes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, send = Orchestrator._batch, Engine._send

    async def remembering(self: Orchestrator, deliveries: Any) -> None:
        monkeypatch.setattr(self._engine, "in_hand", deliveries, raising=False)
        await batch(self, deliveries)

    async def hasty(self: Any, *arguments: Any) -> Any:
        await self._bus.ack(getattr(self, "in_hand", ()))
        return await send(self, *arguments)

    monkeypatch.setattr(Orchestrator, "_batch", remembering)
    monkeypatch.setattr(Engine, "_send", hasty)
    report = await torture(shop.OrderSaga, Order(), fresh=shop.fresh)
    assert kinds(report) == {Kind.ENGINE}
    assert (
        "the orchestrator acknowledged the start, and the broker had not confirmed the command ReserveStock.act that "
        "follows from it"
    ) in sentences(report)


async def test_an_orchestrator_that_acknowledges_before_it_commits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Orchestrator._batch

    async def hasty(self: Orchestrator, deliveries: Any) -> None:
        await self._bus.ack(deliveries)
        await batch(self, deliveries)

    monkeypatch.setattr(Orchestrator, "_batch", hasty)
    report = await torture(shop.OrderSaga, Order(), fresh=shop.fresh)
    assert Kind.ENGINE in kinds(report)
    assert "the orchestrator acknowledged the start, and neither log nor ledger has it" in sentences(report)


async def test_a_worker_that_acknowledges_before_it_replies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Replier.send

    async def hasty(self: Replier, message: Any, command: Any) -> None:
        await self._bus.ack([command])
        await send(self, message, command)

    monkeypatch.setattr(Replier, "send", hasty)
    report = await torture(shop.OrderSaga, Order(), fresh=shop.fresh)
    assert "acknowledged the command ReserveStock.act, and the broker had not confirmed its reply" in sentences(report)
    assert [run.key for run in report.runs] == ["no fault"], "it is seen at once, and every other run would show it"


async def test_a_worker_that_forgets_that_a_command_came_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = consumer._reply

    def forgetful(*arguments: Any) -> Any:
        return reply(*arguments).model_copy(update={"redelivered": False})

    only = "crash worker ChargeCard.act has run 1"
    assert (await torture(shop.StrictSaga, Order(), fresh=shop.fresh, only=only)).ok
    monkeypatch.setattr(consumer, "_reply", forgetful)
    report = await torture(shop.StrictSaga, Order(), fresh=shop.fresh, only=only)
    assert "COMPENSATED, but your check says: {'ReserveStock': 0, 'ChargeCard': 1}" in sentences(report)


async def test_an_engine_that_never_looks_again_leaves_sagas_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    async def blind(_: object) -> int:
        return 0

    monkeypatch.setattr("watership_orchestrator.reaper.Reaper.run_once", blind)
    report = await torture(
        shop.OrderSaga, Order(), fresh=shop.fresh, only="lost orchestrator sends the command ChargeCard"
    )
    assert Kind.STUCK in kinds(report)
    assert "the saga is RUNNING at ChargeCard" in sentences(report)


async def test_what_the_product_logs_as_an_error_is_a_finding_and_nothing_else_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def shouting(*arguments: Any) -> Any:
        logging.getLogger("watership.worker").error("this should not be")
        return reply(*arguments)

    reply = consumer._reply
    assert (await torture(shop.OrderSaga, Order(), fresh=shop.fresh, only="crash orchestrator commit")).ok
    monkeypatch.setattr(consumer, "_reply", shouting)
    report = await torture(shop.OrderSaga, Order(), fresh=shop.fresh)
    assert (Kind.ENGINE, "this should not be") in {(finding.kind, finding.sentence) for finding in report.findings}
    assert not [record for record in caplog.records if record.name.startswith("watership")]


# --- how it is asked


def test_it_is_held_without_an_event_loop_as_well() -> None:
    told: list[tuple[int, int]] = []
    report = torture_sync(
        shop.OrderSaga, Order(), fresh=shop.fresh, only="crash worker ack", progress=lambda *each: told.append(each)
    )
    assert report.ok
    assert told == [(number, len(report.runs)) for number in range(1, len(report.runs) + 1)]


async def test_fresh_and_check_may_be_async() -> None:
    seen = []

    async def fresh() -> shop.ShopContainer:
        await asyncio.sleep(3600)  # in virtual time
        return shop.ShopContainer(shop.Books())

    async def check(saga: Any) -> None:
        await asyncio.sleep(0)
        seen.append((saga.status, saga.context.payment_id, len(saga.history) > 0))
        raise AssertionError("as planned")

    report = await torture(shop.OrderSaga, Order(), fresh=fresh, check=check, only="no fault")
    assert "COMPLETED, but your check says: as planned" in sentences(report)
    assert seen == [("COMPLETED", "payment of A-1", True)]


async def test_a_key_that_names_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a key is like 'crash|a key is like 'lost"):
        await torture(shop.OrderSaga, Order(), fresh=shop.fresh, only="the worker sneezes")


async def test_a_pair_of_faults_can_be_asked_for() -> None:
    key = "crash orchestrator commit 1 & crash worker ChargeCard.act has run 1"
    report = await torture(shop.CarelessSaga, Order(), fresh=shop.fresh, only=key)
    assert [run.key for run in report.runs] == [key]
    assert "'ChargeCard': 2" in sentences(report)


async def test_a_handler_that_wants_a_socket_is_told_what_to_do() -> None:
    class Dials(SagaStepHandler[Order, Response]):
        async def act(self, context: Order) -> None:
            await asyncio.get_running_loop().getaddrinfo("example.org", 80, type=socket.SOCK_STREAM)

    class DialingSaga(Saga[Order]):
        steps = [Dials]

    with pytest.raises(ConfigurationError, match=r"step Dials asked for a socket.*steps=\{'Dials': succeeds\(\)\}"):
        await torture(DialingSaga, Order())


async def test_a_remote_step_needs_a_stand_in() -> None:
    class RemoteSaga(Saga[Order]):
        steps = [Remote("ShipParcel", queue="shipping")]

    with pytest.raises(ConfigurationError, match="ShipParcel of RemoteSaga is Remote"):
        await torture(RemoteSaga, Order())
    report = await torture(RemoteSaga, Order(), steps={"ShipParcel": succeeds(patch={"parcel_id": "P-1"})})
    assert report.ok, report
    assert any(run.status == "COMPENSATED" for run in report.runs)


class Approved(Saga[Order]):
    steps = [shop.ReserveStock, Wait("approval", into="payment_id"), shop.ChargeCard]


async def test_signals_are_sent_and_stay_away() -> None:
    report = await torture(Approved, Order(), fresh=shop.fresh, signals={"approval": "yes"}, only="signal")
    assert report.ok, report
    assert {run.status for run in report.runs if run.key == "no signal approval"} == {"COMPENSATED"}
    assert "twice client sends the signal approval 1" in {run.key for run in report.runs}
    with pytest.raises(DefinitionError, match="Approved waits for no signal approvel; it waits for: approval"):
        await torture(Approved, Order(), fresh=shop.fresh, signals={"approvel": "yes"})
