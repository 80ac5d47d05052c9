"""One command on one handler: what each way to end comes to."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from watership import (
    OutcomeUnknown,
    Response,
    SagaContext,
    SagaStepHandler,
    SagaStepResult,
    StepError,
    StepEvent,
    current_step,
)
from watership.container import PlainContainer
from watership.execution import Command, Execution, Hands, execute
from watership.machine.state import Action, Outcome
from watership.messages import ErrorOnWire, EventOnWire, ReplyOutcome, StepReply, read
from watership.saga.run import response_from_data

SAGA_ID = uuid.UUID(int=7)


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str
    total: float = 0
    lines: list[str] = dataclasses.field(default_factory=list)


class Boom(StepError):
    code = "execution_boom"


class Charged(Response):
    charge_id: str


Body = Callable[[Order], Awaitable[Any]]


async def ran(
    body: Body, *, action: Action = Action.ACT, timeout_ms: int = 5_000, context: dict[str, Any] | None = None
) -> Execution:
    class Charge(SagaStepHandler[Order, Any]):
        async def act(self, context: Order) -> Any:
            return await body(context)

        async def compensate(self, context: Order) -> Any:
            return await body(context)

    data = {"order_id": "o-1", "total": 1.0, "lines": ["a"], "of_others": 7} if context is None else context
    command = Command(SAGA_ID, "OrderSaga", "Charge", action, 2, f"{SAGA_ID}:Charge:{action}:1", data, timeout_ms)
    return await execute(command, Hands(Charge, Order, PlainContainer()))


async def test_what_is_set_on_a_context_that_has_no_such_field_is_not_lost_in_silence() -> None:
    async def body(context: Any) -> None:
        context.totl = 2

    ended = await ran(body)
    assert ended.outcome is Outcome.UNKNOWN
    assert ended.failure is not None
    assert "totl was set on the context, and Order has no such field" in ended.failure.message


async def test_done_with_the_changed_fields_only() -> None:
    async def body(context: Order) -> Charged:
        context.lines.append("b")
        return Charged(charge_id="c")

    done = await ran(body)
    assert (done.outcome, done.patch, done.response) == (Outcome.DONE, {"lines": ["a", "b"]}, {"charge_id": "c"})
    assert done.result is not None
    assert done.result.saga_id == SAGA_ID
    assert response_from_data(Charged, done.response) == Charged(charge_id="c")


async def test_none_is_an_answer_and_nothing_changed_is_no_patch() -> None:
    async def body(_: Order) -> None: ...

    for action in (Action.ACT, Action.COMPENSATE):
        done = await ran(body, action=action)
        assert (done.outcome, done.patch, done.response) == (Outcome.DONE, None, None)


async def test_a_handler_knows_its_run() -> None:
    async def body(_: Order) -> None:
        step = current_step()
        assert (step.saga_id, step.step, step.action, step.attempt) == (SAGA_ID, "Charge", "act", 2)
        assert step.idempotency_key == f"{SAGA_ID}:Charge:act:1"

    assert (await ran(body)).outcome is Outcome.DONE
    with pytest.raises(LookupError):
        current_step()


async def test_an_exception_says_failed_and_its_change_is_dropped() -> None:
    async def body(context: Order) -> None:
        context.total = 99
        raise Boom("no\0 money \ud800")

    failed = await ran(body)
    assert (failed.outcome, failed.patch) == (Outcome.FAILED, None)
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.type_name, failed.failure.step) == ("execution_boom", "Boom", "Charge")
    assert failed.failure.message == "no\\0 money \\ud800"
    assert failed.failure.lineage == ("execution_boom", "step_error", "Exception")
    assert isinstance(failed.error, Boom)
    assert failed.error.__notes__ == [f"in act of step Charge, saga OrderSaga {SAGA_ID}"]


@pytest.mark.parametrize("error", [OutcomeUnknown("?"), TimeoutError("the bank is slow")])
async def test_what_may_have_acted_is_unknown_and_keeps_its_change(error: Exception) -> None:
    async def body(context: Order) -> None:
        context.total = 99
        raise error

    done = await ran(body)
    assert (done.outcome, done.patch) == (Outcome.UNKNOWN, {"total": 99.0})


async def test_too_slow_is_unknown() -> None:
    async def body(_: Order) -> None:
        await asyncio.sleep(60)

    done = await ran(body, timeout_ms=20)
    assert done.outcome is Outcome.UNKNOWN
    assert "did not end within 0.02 s" in str(done.error)


async def test_a_cancellation_from_inside_is_unknown_and_a_real_one_goes_through() -> None:
    async def body(_: Order) -> None:
        raise asyncio.CancelledError

    done = await ran(body)
    assert done.outcome is Outcome.UNKNOWN
    assert isinstance(done.error, OutcomeUnknown)

    started = asyncio.Event()

    async def waits(_: Order) -> None:
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(ran(waits))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("value", [42, "done", {"a": 1}, Order("x")])
async def test_a_wrong_return_type_is_unknown(value: Any) -> None:
    async def body(_: Order) -> Any:
        return value

    done = await ran(body)
    assert done.outcome is Outcome.UNKNOWN
    assert done.failure is not None
    assert f"returned a {type(value).__name__}; return a Response" in done.failure.message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("total", float("nan"), "nan"),
        ("total", float("inf"), "inf"),
        ("order_id", "a\0b", "NUL"),
        ("order_id", "\ud800", "surrogate"),
        ("order_id", "x" * 300_000, "the limit is 262144"),
        ("order_id", object(), "order_id|object|str"),
        ("total", "much", "total|str"),
    ],
)
async def test_a_context_that_cannot_be_kept_is_unknown_since_the_act_ran(field: str, value: Any, words: str) -> None:
    async def body(context: Order) -> None:
        setattr(context, field, value)

    done = await ran(body)
    assert done.outcome is Outcome.UNKNOWN
    assert done.patch is None
    assert done.failure is not None
    assert re.search(words, done.failure.message), done.failure.message


async def test_a_response_that_cannot_be_kept_is_unknown_with_the_patch() -> None:
    async def body(context: Order) -> Charged:
        context.total = 2
        return Charged(charge_id="a\0b")

    done = await ran(body)
    assert (done.outcome, done.patch) == (Outcome.UNKNOWN, {"total": 2.0})


async def test_a_context_that_does_not_fit_fails_since_nothing_ran() -> None:
    async def body(_: Order) -> None:
        raise AssertionError("it must not run")

    failed = await ran(body, context={"total": "much"})
    assert failed.outcome is Outcome.FAILED
    assert failed.failure is not None
    assert "not a Order: order_id" in failed.failure.message


async def test_a_context_that_cannot_be_made_fails_before_anything_ran() -> None:
    """Whatever is wrong with the context, the command gets an outcome: one without any would never be acknowledged."""

    @dataclasses.dataclass
    class Misdeclared(SagaContext):
        order_id: str
        count: int = "many"  # type: ignore[assignment]  # the mistake

    class Never(SagaStepHandler[Misdeclared, None]):
        async def act(self, context: Misdeclared) -> None:
            raise AssertionError("it must not run")

    command = Command(SAGA_ID, "OrderSaga", "Never", Action.ACT, 1, "key", {"order_id": "1"}, 1_000)
    for build in (None, dict):
        failed = await execute(command, Hands(Never, Misdeclared, PlainContainer(), build_context=build))
        assert failed.outcome is Outcome.FAILED
        assert failed.failure is not None


@pytest.mark.parametrize(("events", "outcome"), [(1, Outcome.DONE), (3, Outcome.UNKNOWN)])
async def test_what_a_run_leaves_behind_fits_into_one_message(events: int, outcome: Outcome) -> None:
    """Each part is within its own limit; together they would be a reply that no orchestrator reads."""

    async def body(context: Order) -> SagaStepResult[Order, Charged]:
        context.order_id = "x" * 200_000
        told = [StepEvent("told", {"text": "z" * 250_000}) for _ in range(events)]
        response = Charged(charge_id="y" * 250_000)
        return SagaStepResult(response, SagaStepHandler, events=told)  # type: ignore[type-abstract]  # nobody calls it

    done = await ran(body)
    assert done.outcome is outcome
    assert done.patch == {"order_id": "x" * 200_000}
    reply = StepReply(
        saga_id=SAGA_ID,
        step="Charge",
        action=Action.ACT,
        attempt=2,
        run=done.run,
        outcome=ReplyOutcome(done.outcome.value),
        patch=done.patch,
        response=done.response,
        error=ErrorOnWire.of(done.failure),
        events=tuple(EventOnWire(**event) for event in done.events),
    )
    assert read("step-reply", reply.to_body()) == reply
    if outcome is Outcome.UNKNOWN:
        assert done.failure is not None
        assert done.failure.type_name == "LimitExceeded"
        assert re.search(r"patch, response and events in bytes is 1200\d\d\d, the limit is 983040", str(done.error))
