"""Sagas with groups, pauses and a pivot that are written wrong: refused when the class is made, with the reason."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import pytest

from watership import (
    DefinitionError,
    Fallback,
    Parallel,
    Remote,
    RetryPolicy,
    Saga,
    SagaContext,
    SagaStepHandler,
    Sleep,
    Verified,
    Wait,
)
from watership.machine.nodes import ParallelPlan, SleepPlan, WaitPlan
from watership.saga.compile import compile_saga


@dataclasses.dataclass
class Answer:
    ok: bool


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str = "o"
    stock: str | None = None
    score: int = 0
    approval: dict[str, bool] | None = None
    answer: Answer | None = None


class Handler(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None: ...


class Reserve(Handler):
    async def act(self, context: Order) -> None:
        context.stock = "r"

    async def compensate(self, context: Order) -> None: ...


class Fraud(Handler):
    async def act(self, context: Order) -> None:
        context.score = len(context.order_id)


class Restock(Handler):
    async def act(self, context: Order) -> None:
        context.stock = "s"


class Pick(Handler):
    async def act(self, context: Order) -> None:
        str(context.stock)


class Count(Handler):
    async def act(self, order: Order) -> None:  # the context under another name
        order.score += 1


class Quiet(Handler):
    async def act(self, context: Order) -> None:
        context.order_id.upper()


class Capture(Handler):
    pass


class Ship(Handler):
    pass


def make(steps: Any, **settings: Any) -> type[Saga[Any]]:
    return types.new_class("OrderSaga", (Saga[Order],), exec_body=lambda body: body.update(steps=steps, **settings))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([Parallel(Reserve)], "a Parallel with 1 member"),
        ([Parallel()], "OrderSaga"),
        ([Parallel(Reserve, Sleep(1))], "a Parallel holds steps and Fallbacks, not a Sleep"),  # type: ignore[arg-type]
        ([Parallel(Reserve, Wait("go"))], "a Parallel holds steps and Fallbacks, not a Wait"),  # type: ignore[arg-type]
        ([Parallel(Reserve, Parallel(Fraud, Quiet))], "not a Parallel: put it before or after"),  # type: ignore[arg-type]
        ([Parallel(Reserve, int)], r"OrderSaga.steps[0].steps[1] must be a SagaStepHandler class"),  # type: ignore[arg-type]
        ([Parallel(Reserve, Fallback(Fraud, int))], r"OrderSaga.steps[0].steps[1].fallback must be"),  # type: ignore[arg-type]
        ([Parallel(Reserve, Reserve)], "both write context.stock"),
        ([Parallel(Quiet, Quiet)], "OrderSaga lists the step Quiet twice"),
        ([Parallel(Reserve, Restock)], "Reserve and Restock both write context.stock: give each a field of its own"),
        ([Parallel(Reserve, Pick)], "Pick reads context.stock, which Reserve writes"),
        ([Parallel(Pick, Reserve)], "Pick reads context.stock, which Reserve writes"),
        ([Parallel(Count, Fraud)], "Count and Fraud both write context.score"),
        ([Parallel(Quiet, Fallback(Fraud, Restock), Reserve)], "Restock and Reserve both write context.stock"),
        ([Sleep("1")], "OrderSaga.steps[0]: Sleep's seconds must be a number of seconds, it is '1'"),  # type: ignore[arg-type]
        ([Sleep(float("inf"))], "Sleep's seconds must be a number of seconds, it is inf"),
        ([Sleep(float("nan"))], "Sleep's seconds must be a number of seconds, it is nan"),
        ([Sleep(0)], "its seconds, in ms must be a whole number from 1"),
        ([Sleep(1, "Reserve"), Reserve], "OrderSaga lists the step Reserve twice"),
        ([Wait("go", timeout_s=True)], "Wait go: timeout_s must be a number of seconds"),
        (
            [Wait("go", into="answer", reject_if=("okay", False))],
            "Wait go: reject_if looks at 'okay', and what goes into Order.answer has no such field; it has ok",
        ),
        ([Wait("go", into="nowhere")], "Wait go: Order has no field 'nowhere' for its data"),
        ([Wait("go", on_timeout="explode")], 'on_timeout is "compensate" or "continue"'),  # type: ignore[arg-type]
        ([Wait("go"), Wait("go")], "OrderSaga lists the step go twice"),
    ],
)
def test_a_wrong_flow_is_refused_when_the_class_is_made(steps: Any, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        make(steps)
    assert words in str(refused.value)
    assert "OrderSaga" in str(refused.value)


@pytest.mark.parametrize("name", ["", "x" * 201, 7])
def test_a_wait_is_named_after_its_signal(name: Any) -> None:
    with pytest.raises(DefinitionError, match="a Wait is named after its signal"):
        Wait(name)


@pytest.mark.parametrize("reject_if", ["approved", ("approved",), ["approved", False]])
def test_reject_if_is_a_field_and_its_value(reject_if: Any) -> None:
    with pytest.raises(DefinitionError, match="Wait go: reject_if is a field and its value"):
        Wait("go", reject_if=reject_if)


@pytest.mark.parametrize(
    ("steps", "settings", "words"),
    [
        ([Reserve], {"pivot": Capture}, "OrderSaga.pivot must be one of its steps"),
        ([Parallel(Reserve, Capture)], {"pivot": Capture}, "it is a class in a Parallel or a Fallback"),
        ([Fallback(Capture, Reserve)], {"pivot": Capture}, "it is a class in a Parallel or a Fallback"),
        ([Reserve, Capture], {"pivot": "Capture"}, "OrderSaga.pivot must be one of its steps"),
        ([Capture, Reserve], {"pivot": Capture}, "OrderSaga.Reserve has a compensation: after the pivot Capture"),
        ([Capture, Ship], {"pivot": Capture, "deadline_s": 1}, "deadline_s can only fire past the pivot"),
        ([Capture, Wait("go")], {"pivot": Capture}, "Wait go would compensate at its timeout"),
        ([Capture, Fallback(Ship, Quiet)], {"pivot": Capture}, "a Fallback of Ship"),
        ([Reserve], {"deadline_s": "soon"}, "OrderSaga.deadline_s must be a number of seconds, it is 'soon'"),
        ([Reserve], {"deadline_s": 0}, "deadline_s in ms must be a whole number from 1"),
    ],
)
def test_a_wrong_pivot_or_deadline_is_refused(steps: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        make(steps, **settings)
    assert words in str(refused.value)


def test_bounded_retries_behind_the_pivot_are_refused() -> None:
    bounded = type("Bounded", (Handler,), {"retry": RetryPolicy(max_attempts=3)})
    with pytest.raises(DefinitionError, match=r"OrderSaga\.Bounded has 3 attempts: after the pivot Capture"):
        make([Capture, bounded], pivot=Capture)
    make([Capture, type("Free", (Handler,), {"retry": RetryPolicy(max_attempts=None)})], pivot=Capture)


def test_a_subclass_that_only_sets_the_pivot_is_checked_as_well() -> None:
    base = make([Capture, Reserve])
    with pytest.raises(DefinitionError, match="has a compensation: after the pivot Capture"):
        types.new_class("Pivoted", (base,), exec_body=lambda body: body.update(pivot=Capture))
    with pytest.raises(DefinitionError, match="deadline_s"):
        types.new_class("Late", (base,), exec_body=lambda body: body.update(deadline_s=-1))


@pytest.mark.parametrize("errors", [ValueError, (ValueError, "x"), [ValueError]])
def test_unknown_errors_are_a_tuple_of_classes(errors: Any) -> None:
    bad = type("Bad", (Handler,), {"unknown_errors": errors})
    with pytest.raises(DefinitionError, match=r"Bad\.unknown_errors must be a tuple of exception classes"):
        make([bad])


def test_verify_is_a_coroutine_function() -> None:
    def verify(_: object, __: Order) -> Verified:
        return Verified.DONE

    bad = type("Bad", (Handler,), {"verify": verify})
    with pytest.raises(DefinitionError, match=r"Bad\.verify must be `async def`"):
        make([bad])


def test_a_flow_compiles_to_its_plan() -> None:
    class Careful(Handler):
        retry = RetryPolicy(max_attempts=2, non_retryable=(ValueError,))
        rerun = False

        async def verify(self, context: Order) -> Verified:
            return Verified.DONE

    saga = make(
        [
            Parallel(Reserve, Fallback(Fraud, Quiet)),
            Sleep(1.5),
            Sleep(2, "nap"),
            Wait("approval", into="approval", timeout_s=60, reject_if=("ok", False)),
            Careful,
            Remote("Far", verify=True, verify_retry=RetryPolicy(max_attempts=9)),
            Capture,
            Ship,
        ],
        pivot=Capture,
        deadline_s=3_600,
    )
    plan = compile_saga(saga).plan
    group, first, second, wait, careful, far, _, ship = plan.nodes
    assert isinstance(group, ParallelPlan)
    assert [unit.kind for unit in group.nodes] == ["step", "fallback"]
    assert (first, second) == (SleepPlan("sleep-2", 1_500), SleepPlan("nap", 2_000))
    assert wait == WaitPlan("approval", "approval", 60_000, "compensate", ("ok", False))
    assert careful is plan.by_name["Careful"]
    assert (plan.by_name["Careful"].rerun, plan.by_name["Careful"].retry.final_codes) == (False, ("ValueError",))
    assert plan.by_name["Careful"].verify_retry is not None
    assert far is plan.by_name["Far"]
    assert plan.by_name["Far"].verify_retry is not None
    assert plan.by_name["Far"].verify_retry.attempts_max == 9
    assert plan.by_name["Reserve"].verify_retry is None
    assert ship is plan.by_name["Ship"]
    assert plan.by_name["Ship"].retry.attempts_max is None, "behind the pivot it is tried without end"
    assert plan.by_name["Capture"].retry.attempts_max == 1
    assert (plan.pivot, plan.deadline_ms) == ("Capture", 3_600_000)


def test_independent_members_are_taken() -> None:
    make([Parallel(Reserve, Fraud, Quiet)])
    make([Parallel(Remote("Here"), Remote("There"))])
    dynamic = type("Dynamic", (Handler,), {"act": eval("lambda self, context: None")})
    dynamic.act.__wrapped__ = Handler.act  # type: ignore[attr-defined]
    make([Parallel(Reserve, dynamic)])
