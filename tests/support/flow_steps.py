"""A saga's steps whose handlers a test can hold, fail and look at: what each is told stands in ``CALLS``."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from watership import OutcomeUnknown, Response, SagaContext, SagaStepHandler, SagaStepResult, StepEvent, Verified

CALLS: list[str] = []
HOOKS: dict[str, Callable[[Any], Awaitable[Any] | None]] = {}


@dataclasses.dataclass
class Approval:
    name: str
    approved: bool = True


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str = "o-1"
    a: str | None = None
    b: str | None = None
    approval: Approval | None = None


class Done(Response):
    by: str


class Step(SagaStepHandler[Order, Done]):
    async def act(self, context: Order) -> SagaStepResult[Order, Done]:
        await self._call("act", context)
        return self._generate_step_result(Done(by=type(self).__name__))

    async def compensate(self, context: Order) -> None:
        await self._call("compensate", context)

    async def _call(self, action: str, context: Order) -> Any:
        call = f"{action} {type(self).__name__}"
        CALLS.append(call)
        hook = HOOKS.get(call)
        waiting = hook(context) if hook is not None else None
        return await waiting if waiting is not None else None


class A(Step):
    async def act(self, context: Order) -> SagaStepResult[Order, Done]:
        await self._call("act", context)
        context.a = "a"
        return self._generate_step_result(Done(by="A"), events=[StepEvent("a_acted", {"order": context.order_id})])


class B(Step):
    async def act(self, context: Order) -> SagaStepResult[Order, Done]:
        await self._call("act", context)
        context.b = "b"
        return self._generate_step_result(Done(by="B"))


class C(Step):
    pass


class Final(Step):
    """Nothing to undo: it may be the pivot, or come after it."""

    compensate = SagaStepHandler.compensate


class Capture(Final):
    pass


class Ship(Final):
    pass


class Asked(Step):
    async def verify(self, context: Order) -> Verified:
        found = await self._call("verify", context)
        return found if isinstance(found, Verified) else Verified.STILL_UNKNOWN


def fresh() -> None:
    """Forgets what was called, and the hooks."""
    CALLS.clear()
    HOOKS.clear()


def raises(error: Exception) -> Callable[[Any], None]:
    """A hook that raises."""

    def hook(_: Any) -> None:
        raise error

    return hook


def unknown(_: Any) -> None:
    """A hook that cannot tell."""
    raise OutcomeUnknown("who knows")


def answers(*found: Any) -> Callable[[Any], Awaitable[Any]]:
    """A hook that gives one after the other, the last one again and again."""
    left = list(found)

    async def answer() -> Any:
        return left.pop(0) if len(left) > 1 else left[0]

    return lambda _: answer()


class Gate:
    """Holds a handler: ``entered`` is set when it is there, and it goes on once ``go`` is."""

    def __init__(self, call: str) -> None:
        self.entered, self.go = asyncio.Event(), asyncio.Event()
        HOOKS[call] = lambda _: self._pass()

    async def _pass(self) -> None:
        self.entered.set()
        await self.go.wait()
