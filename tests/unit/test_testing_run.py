"""`watership.testing.run`: whole sagas, with stand-ins, in no time."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest

import watership.testing
from watership import (
    AioBreakerAdapter,
    ConfigurationError,
    DefinitionError,
    Fallback,
    OutcomeUnknown,
    Remote,
    Response,
    RetryPolicy,
    Saga,
    SagaContext,
    SagaParked,
    SagaStepHandler,
    StepError,
    current_step,
)
from watership.machine.state import Status
from watership.testing import compensation_fails, fails, real, run, succeeds, unknown


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str
    reservation_id: str | None = None
    charge_id: str | None = None


class CardDeclined(StepError):
    code = "run_card_declined"


class NeedsAmount(StepError):
    def __init__(self, amount: int) -> None:
        super().__init__(str(amount))


class Charged(Response):
    charge_id: str


class ReserveStock(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None:
        context.reservation_id = "real"

    async def compensate(self, context: Order) -> None:
        context.reservation_id = None


class ChargeCard(SagaStepHandler[Order, Charged]):
    retry = RetryPolicy(max_attempts=3, delay_s=3600, backoff=2, jitter=0)

    def __init__(self, bank: str = "real bank") -> None:
        self.bank = bank

    async def act(self, context: Order) -> Charged:
        context.charge_id = self.bank
        return Charged(charge_id=self.bank)

    async def compensate(self, context: Order) -> None: ...


class Ship(SagaStepHandler[Order, None]):
    def __init__(self, carrier: str) -> None:
        self.carrier = carrier

    async def act(self, context: Order) -> None: ...


class OrderSaga(Saga[Order]):
    steps = [ReserveStock, ChargeCard, Ship]


COVERED = {"ReserveStock": succeeds(), "ChargeCard": succeeds(), "Ship": succeeds()}


async def test_everything_acts() -> None:
    before = Order("o-1")
    patch = {"charge_id": "c-1"}
    steps = {"ChargeCard": succeeds(Charged(charge_id="c-1"), patch=patch), "Ship": succeeds()}
    result = await run(OrderSaga, before, steps=steps)
    assert result.status is Status.COMPLETED
    assert list(result.acted) == ["ReserveStock", "ChargeCard", "Ship"]
    assert result.context == Order("o-1", "real", "c-1")
    assert before == Order("o-1")
    assert result.error is None
    assert result.parked_reason is None
    assert result.elapsed_ms == 0


async def test_a_failure_undoes_in_reverse_order() -> None:
    failure = CardDeclined("no money")
    result = await run(OrderSaga, Order("o-1"), steps={**COVERED, "Ship": fails(failure)})
    assert result.status is Status.COMPENSATED
    assert list(result.compensated) == ["ChargeCard", "ReserveStock"]
    assert result.error is failure
    assert result.failed_step == "Ship"
    assert [line.step_name for line in result.history if line.action == "compensate"] == [
        "ChargeCard",
        "ChargeCard",
        "ReserveStock",
        "ReserveStock",
    ]


async def test_hours_of_retries_pass_at_once() -> None:
    started = time.monotonic()
    result = await run(OrderSaga, Order("o-1"), steps={**COVERED, "ChargeCard": fails(CardDeclined, times=2)})
    assert result.status is Status.COMPLETED
    assert result.attempts == {"ReserveStock": 1, "ChargeCard": 3, "Ship": 1}
    assert result.elapsed_ms == 300_000 * 2  # an hour and two: each capped by max_delay_s
    assert time.monotonic() - started < 2


async def test_then_the_real_handler_acts_and_undoes() -> None:
    steps = {"ReserveStock": real(), "ChargeCard": fails(times=1, then=real()), "Ship": fails(CardDeclined)}
    result = await run(OrderSaga, Order("o-1"), steps=steps)
    assert result.context == Order("o-1", None, "real bank")
    assert list(result.compensated) == ["ChargeCard", "ReserveStock"]


async def test_an_unknown_act_is_retried_then_undone_itself() -> None:
    result = await run(OrderSaga, Order("o-1"), steps={**COVERED, "ChargeCard": unknown(times=1)})
    assert result.status is Status.COMPLETED
    result = await run(OrderSaga, Order("o-1"), steps={**COVERED, "ChargeCard": unknown()})
    assert list(result.compensated) == ["ChargeCard", "ReserveStock"]
    assert isinstance(result.error, OutcomeUnknown)
    assert result.attempts["ChargeCard"] == 3


async def test_a_compensation_that_fails_is_retried_then_parks() -> None:
    steps = {**COVERED, "ReserveStock": compensation_fails(CardDeclined, times=2), "Ship": fails(CardDeclined)}
    result = await run(OrderSaga, Order("o-1"), steps=steps)
    assert result.status is Status.COMPENSATED
    assert result.compensation_attempts == {"ChargeCard": 1, "ReserveStock": 3}
    assert result.elapsed_ms == 3_000
    steps["ReserveStock"] = compensation_fails(CardDeclined("shop is closed"))
    result = await run(OrderSaga, Order("o-1"), steps=steps)
    assert result.status is Status.COMPENSATING
    assert result.parked_reason is not None
    assert "ReserveStock" in result.parked_reason
    assert "shop is closed" in result.parked_reason
    assert isinstance(result.error, SagaParked)
    assert list(result.compensated) == ["ChargeCard"]


async def test_an_async_function_stands_in() -> None:
    async def charge(context: Order) -> Charged:
        await asyncio.sleep(0)
        context.charge_id = current_step().idempotency_key
        return Charged(charge_id="x")

    result = await run(OrderSaga, Order("o-1"), steps={**COVERED, "ChargeCard": charge})
    assert result.context.charge_id == f"{result.saga_id}:ChargeCard:act:1"


async def test_steps_that_are_not_named_come_from_the_container() -> None:
    class Resolver:
        def resolve(self, handler: type[Any]) -> Any:
            return handler("from the container")

    steps = {"ReserveStock": succeeds()}
    result = await run(OrderSaga, Order("o-1"), steps=steps, container=Resolver())
    assert result.context.charge_id == "from the container"


async def test_what_is_wrong_with_the_test_is_raised() -> None:
    order = Order("o-1")
    with pytest.raises(DefinitionError, match="OrderSaga has no step Refund; its steps are ReserveStock, ChargeCard"):
        await run(OrderSaga, order, steps={"Refund": succeeds()})
    with pytest.raises(ConfigurationError, match="Ship cannot be built"):
        await run(OrderSaga, order)
    with pytest.raises(DefinitionError, match="no field 'colour'"):
        await run(OrderSaga, order, steps={**COVERED, "Ship": succeeds(patch={"colour": "red"})})
    with pytest.raises(DefinitionError, match="give it an instance"):
        await run(OrderSaga, order, steps={**COVERED, "Ship": fails(NeedsAmount)})
    with pytest.raises(DefinitionError, match=r"steps\['Ship'\] is 42"):
        await run(OrderSaga, order, steps={**COVERED, "Ship": 42})  # type: ignore[dict-item]  # the mistake


async def test_a_remote_step_needs_a_stand_in() -> None:
    class FarSaga(Saga[Order]):
        steps = [Remote("FarAway")]

    with pytest.raises(ConfigurationError, match="FarAway of FarSaga is Remote"):
        await run(FarSaga, Order("o-1"))
    assert (await run(FarSaga, Order("o-1"), steps={"FarAway": succeeds()})).status is Status.COMPLETED


async def test_a_run_has_circuit_breakers_of_its_own() -> None:
    class PlanB(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> None: ...

    class Guarded(Saga[Order]):
        steps = [Fallback(ReserveStock, PlanB, circuit_breaker=AioBreakerAdapter(fail_max=1))]

    for _ in range(3):
        failed = await run(Guarded, Order("o-1"), steps={"ReserveStock": fails(CardDeclined)})
        assert list(failed.acted) == ["PlanB"]
        assert any("CardDeclined" in (line.details or "") for line in failed.history)
    assert list((await run(Guarded, Order("o-1"))).acted) == ["ReserveStock"]


def test_the_face_is_documented() -> None:
    for name in watership.testing.__all__:
        assert getattr(watership.testing, name).__doc__, name
