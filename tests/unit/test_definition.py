"""Sagas that are written wrong: refused when the class is made, by the names of the saga and the step."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, TypeVar

import pydantic
import pytest

from watership import (
    DefinitionError,
    Fallback,
    Remote,
    RetryPolicy,
    Saga,
    SagaContext,
    SagaMap,
    SagaStepHandler,
    StepError,
)
from watership.machine.nodes import FallbackPlan
from watership.saga.compile import compile_saga


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str


@dataclasses.dataclass
class Invoice(SagaContext):
    number: int


@dataclasses.dataclass
class BigOrder(Order):
    weight: int = 0


class Boom(StepError):
    code = "definition_boom"


class Reserve(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None: ...
    async def compensate(self, context: Order) -> None: ...


class Charge(SagaStepHandler[Order, None]):
    name = "ChargeCard"
    queue = "payments"
    retry = RetryPolicy(max_attempts=5, delay_s=0.5)
    timeout_s = 2.5

    async def act(self, context: Order) -> None: ...


class ChargeTwin(Charge):
    pass


class Bill(SagaStepHandler[Invoice, None]):
    async def act(self, context: Invoice) -> None: ...


def make(steps: Any, context: Any = Order) -> type[Saga[Any]]:
    return named("OrderSaga", Saga[context], steps)


def named(name: str, base: Any, steps: Any) -> type[Saga[Any]]:
    return types.new_class(name, (base,), exec_body=lambda body: body.update(steps=steps))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "OrderSaga has no steps; list at least one"),
        ("Reserve", "OrderSaga.steps must be a list of step classes, it is a str"),
        (
            [Reserve, "Charge"],
            r"OrderSaga.steps\[1\] must be a SagaStepHandler class, a Fallback, a Parallel, a Sleep or a Wait, it is a str",
        ),
        ([int], r"OrderSaga.steps\[0\] must be .* it is the class int"),
        ([Reserve()], r"OrderSaga.steps\[0\] must be .* it is a Reserve"),
        ([Reserve, Charge, Reserve], "OrderSaga lists the step Reserve twice"),
        ([Charge, ChargeTwin], "OrderSaga lists the step ChargeCard twice"),
        ([Fallback(Reserve, Reserve)], "OrderSaga lists the step Reserve twice"),
        ([Reserve, Bill], r"OrderSaga.steps\[1\]: step Bill takes the context Invoice, but OrderSaga runs on Order"),
        ([Fallback(Reserve, Bill)], r"OrderSaga.steps\[0\].fallback: step Bill takes the context Invoice"),
        ([Fallback(42, Reserve)], r"OrderSaga.steps\[0\].step must be .* it is a int"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_class_is_refused_when_it_is_made(steps: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        make(steps)


def test_a_step_of_a_base_context_fits() -> None:
    assert compile_saga(make([Reserve], BigOrder)).context_type is BigOrder


def test_a_saga_names_its_context() -> None:
    context = TypeVar("context")
    for base in (Saga, Saga[context]):  # type: ignore[valid-type]
        saga = named("Bare", base, [Reserve])
        with pytest.raises(DefinitionError, match=r"Bare does not name its context: write class Bare\(Saga\[Context"):
            compile_saga(saga)


def test_a_context_must_be_json() -> None:
    @dataclasses.dataclass
    class Odd:
        thing: object = dataclasses.field(default_factory=object)
        weird: type[Any] | None = None

    class Plain:
        pass

    with pytest.raises(DefinitionError, match="Plain"):
        compile_saga(make([Remote("Far")], Plain))
    with pytest.raises(DefinitionError, match="Odd has a field"):
        compile_saga(make([Remote("Far")], Odd))


def test_a_context_that_is_not_decorated_would_keep_nothing() -> None:
    class Undecorated(SagaContext):
        pieces: int = 0

    with pytest.raises(DefinitionError, match="Undecorated is no dataclass of its own, so pieces would not be kept"):
        compile_saga(make([Remote("Far")], Undecorated))

    class Same(Order):
        """It adds no field, so it needs no decoration."""

    compile_saga(make([Reserve], Same))


@pytest.mark.parametrize(
    ("base", "name", "meant"),
    [
        (Reserve, "compensat", "compensate"),
        (Reserve, "undo", "compensate"),
        (Reserve, "retries", "retry"),
        (Reserve, "timeout", "timeout_s"),
        (Reserve, "unknown_error", "unknown_errors"),
    ],
)
def test_a_name_that_nothing_reads_and_was_meant_to_be_read(base: type[Any], name: str, meant: str) -> None:
    with pytest.raises(DefinitionError, match=f"Bad has '{name}', which nothing reads: did you mean '{meant}'"):
        make([type("Bad", (base,), {name: 5})])


def test_a_deadline_of_a_saga_has_its_unit() -> None:
    with pytest.raises(
        DefinitionError, match="OrderSaga has 'deadline', which nothing reads: did you mean 'deadline_s'"
    ):
        types.new_class("OrderSaga", (Saga[Order],), exec_body=lambda body: body.update(steps=[Reserve], deadline=5))


def test_names_of_ones_own_are_left_alone() -> None:
    own = {"acts": 1, "names": (), "client": None, "verified": True, "_compensat": 1, "request_timeout": 3}
    compile_saga(make([type("Own", (Reserve,), own)]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout_s": 0}, "OrderSaga.Bad: timeout_s in ms must be a whole number from 1"),
        ({"queue_within_s": -1}, "OrderSaga.Bad: queue_within_s in ms must be a whole number from 1"),
        ({"retry": RetryPolicy(max_attempts=0)}, "OrderSaga.Bad: retry: its attempts must be a whole number from 1"),
        ({"retry": RetryPolicy(delay_s=-1)}, "OrderSaga.Bad: retry"),
        ({"retry": RetryPolicy(delay_s=float("nan"))}, "OrderSaga.Bad: retry: its delay in ms must be a whole number"),
        ({"retry": RetryPolicy(max_delay_s=float("inf"))}, "OrderSaga.Bad: retry: its longest delay in ms must be"),
        ({"retry": RetryPolicy(delay_s=1e300)}, "OrderSaga.Bad: retry: its delay in ms must be a whole number"),
        ({"retry": RetryPolicy(backoff=float("inf"))}, "OrderSaga.Bad: retry needs a backoff .* finite"),
        ({"compensation_retry": RetryPolicy(backoff=0.1)}, "OrderSaga.Bad: compensation_retry"),
    ],
)
def test_settings_that_cannot_be_name_the_saga_and_the_step(settings: dict[str, Any], words: str) -> None:
    bad = type("Bad", (Reserve,), settings)
    with pytest.raises(DefinitionError, match=words):
        compile_saga(make([bad]))


def test_a_plan_holds_what_the_classes_say() -> None:
    saga = make(
        [Fallback(Reserve, Charge, failure_exceptions=(Boom, ValueError)), Remote("Far", queue="far", timeout_s=9)]
    )
    definition = compile_saga(saga)
    node, far = definition.plan.nodes
    assert isinstance(node, FallbackPlan)
    assert node.failure_codes == ("definition_boom", "ValueError")
    assert (node.primary.compensable, node.fallback.compensable) == (True, False)
    charge = definition.plan.by_name["ChargeCard"]
    assert (charge.queue, charge.retry.attempts_max, charge.retry.delay_ms, charge.timeout_ms) == (
        "payments",
        5,
        500,
        2500,
    )
    assert definition.plan.by_name["Far"].compensable, "its code is elsewhere: it may have something to undo"
    assert definition.plan.by_name["Far"] is far
    assert list(definition.steps) == ["Reserve", "ChargeCard", "Far"]
    assert definition.plan.hash == compile_saga(saga).plan.hash


def test_the_nearest_compensation_retry_wins() -> None:
    own = type("Own", (Reserve,), {"compensation_retry": RetryPolicy(max_attempts=7)})
    saga = make([own, Reserve])

    def attempts(**settings: RetryPolicy) -> list[int | None]:
        return [step.compensation_retry.attempts_max for step in compile_saga(saga, **settings).plan.steps()]

    assert attempts() == [7, 3]
    assert attempts(default_compensation_retry=RetryPolicy(max_attempts=4)) == [7, 4]
    assert attempts(compensation_retry=RetryPolicy(max_attempts=5)) == [5, 5]
    saga.compensation_retry = RetryPolicy(max_attempts=6)
    assert attempts(default_compensation_retry=RetryPolicy(max_attempts=4)) == [7, 6]


def test_a_map_binds_each_context_and_each_name_once() -> None:
    mapper = SagaMap()
    saga, namesake = make([Reserve]), make([Charge], BigOrder)
    mapper.bind(Order, saga)
    with pytest.raises(DefinitionError, match="Order is bound to OrderSaga already"):
        mapper.bind(Order, saga)
    with pytest.raises(DefinitionError, match="two sagas are named OrderSaga"):
        mapper.bind(BigOrder, namesake)
    with pytest.raises(DefinitionError, match="Billing runs on Invoice, so BigOrder cannot start it"):
        mapper.bind(BigOrder, named("Billing", Saga[Invoice], [Bill]))
    assert mapper.saga_for(BigOrder) is saga
    assert mapper.saga_for(Invoice) is None
    assert len(mapper) == 1


def test_a_pydantic_context_serves() -> None:
    class Model(pydantic.BaseModel):
        order_id: str = pydantic.Field(alias="orderId")

    schema = compile_saga(make([Remote("Far")], Model)).plan.context_schema
    assert "order_id" in schema["properties"], "snake_case keys on the wire"
