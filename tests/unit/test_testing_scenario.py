"""The given/when/expect story itself: it reads as the specification, and says what is so where it is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from watership import Saga, SagaContext, SagaStepHandler, StepError
from watership.testing import given


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str
    reservation_id: str | None = None


class CardDeclined(StepError):
    code = "scenario_card_declined"


class ReserveStock(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None: ...
    async def compensate(self, context: Order) -> None: ...


class ChargeCard(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None: ...
    async def compensate(self, context: Order) -> None: ...


class OrderSaga(Saga[Order]):
    steps = [ReserveStock, ChargeCard]


def test_a_story_of_failure() -> None:
    (
        given(OrderSaga)
        .started(Order("o-1"))
        .expect_act("ReserveStock", attempt=1)
        .expect_no_command()
        .when_done("ReserveStock", patch={"reservation_id": "r-1"})
        .expect_context(order_id="o-1", reservation_id="r-1")
        .expect_act("ChargeCard")
        .when_failed("ChargeCard", CardDeclined("no money"))
        .expect_compensate("ReserveStock")
        .when_done("ReserveStock")
        .expect_no_command()
        .expect_status("COMPENSATED")
    )


def test_a_story_of_success_and_of_pending() -> None:
    story = given(OrderSaga).started({"order_id": "o-1"}, plan_known=False).expect_status("PENDING")
    assert story.after(3600).state.due_at_ms is not None  # a plan is looked for by whoever has plans, not by time
    given(OrderSaga).started().when_done("ReserveStock").when_done("ChargeCard").expect_status("COMPLETED")


def test_an_expectation_that_fails_says_what_is_so() -> None:
    story = given(OrderSaga).started()
    with pytest.raises(
        AssertionError, match=r"expected act ChargeCard; what was sent is: act ReserveStock \(attempt 1"
    ):
        story.expect_act("ChargeCard")
    with pytest.raises(AssertionError, match="expected no command"):
        story.expect_no_command()
    with pytest.raises(AssertionError, match="expected the status COMPLETED, it is RUNNING"):
        story.expect_status("COMPLETED")
    with pytest.raises(AssertionError, match="reason is None"):
        story.expect_parked("ReserveStock")
    with pytest.raises(AssertionError, match="expected the context"):
        story.expect_context(order_id="o-2")
    with pytest.raises(AssertionError, match="it is None"):
        story.expect_refused("moved")
    with pytest.raises(AssertionError, match="has no step Ship"):
        story.when_done("Ship")


def test_after_passes_every_moment_on_the_way() -> None:
    story: Any = given(OrderSaga).started().when_failed("ReserveStock", redelivered=True)
    story.expect_compensate("ReserveStock")
    for attempt in (1, 2):
        story.when_failed("ReserveStock").expect_no_command().after(2).expect_compensate("ReserveStock")
        assert story.state.step("ReserveStock").compensate.attempt == attempt + 1
    story.when_failed("ReserveStock").expect_parked("ReserveStock", "watership retry")
