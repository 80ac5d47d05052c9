"""A saga of two steps whose lost commands are due within a test, and whose first compensation can be stuck."""

from __future__ import annotations

import dataclasses

from watership import Response, RetryPolicy, Saga, SagaContext, SagaMap, SagaStepHandler, StepError


@dataclasses.dataclass
class OrderContext(SagaContext):
    order_id: str
    fail_at: str | None = None
    trail: list[str] = dataclasses.field(default_factory=list)


class Declined(StepError):
    code = "integration_declined"


class Step(SagaStepHandler[OrderContext, Response]):
    # Short, so that a lost command is due within a test: queue + run + the machine's grace. A run has time enough all
    # the same: one that is too slow is unknown, and is tried again.
    queue_within_s = 0.1
    timeout_s = 1

    async def act(self, context: OrderContext) -> None:
        if context.fail_at == type(self).__name__:
            raise Declined(f"declined at {context.fail_at}")
        context.trail.append(type(self).__name__)

    async def compensate(self, context: OrderContext) -> None:
        context.trail.append(f"undo {type(self).__name__}")


class Reserve(Step):
    compensation_retry = RetryPolicy(max_attempts=2, delay_s=0.01, jitter=0)

    async def compensate(self, context: OrderContext) -> None:
        if context.order_id == "stuck" and not Reserve.mended:
            raise RuntimeError("the warehouse is closed")
        await super().compensate(context)

    mended = False


class Charge(Step):
    pass


class OrderSaga(Saga[OrderContext]):
    steps = [Reserve, Charge]


def sagas(mapper: SagaMap) -> None:
    mapper.bind(OrderContext, OrderSaga)
