"""The worker of a tortured saga: the real one, whose handlers are watched, stopped at every point, and made to go wrong.

It wraps what the user's container gives. It must never know what is judged of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar, cast

from watership.adapters.circuit_breaker import Breakers
from watership.container import Container, Scope
from watership.errors import AlreadyHandled, OutcomeUnknown
from watership.machine.plan import Plan
from watership.machine.state import Action
from watership.saga.compile import Definition, Step
from watership.saga.run import current_run
from watership.saga.saga import SagaMap
from watership.saga.step import RemoteStep, SagaStepHandler, StepRun, _current, current_step, step_name
from watership.testing.inline_sqlite import before_write
from watership.testing.stand_ins import StandIn
from watership.testing.torturing.branches import Branch, Conduct, Manner
from watership.testing.torturing.journal import HandlerRun, Journal
from watership.testing.torturing.points import BEGINS, ENDED, WAITS
from watership.testing.torturing.watch import Watch
from watership.testing.world import Process
from watership_worker.worker import Worker

T = TypeVar("T")

BURY_WITHIN_S = 60.0


@dataclasses.dataclass(frozen=True)
class Rig:
    """What the handlers of one run are rigged with."""

    container: Container
    stand_ins: Mapping[str, StandIn]
    branch: Branch
    journal: Journal
    watch: Watch
    behind_barrier: bool = False  # the worker puts each handler there
    unfinished: list[Any] = dataclasses.field(default_factory=list)  # handlers and scopes, in the order of their begin

    async def bury(self) -> None:
        """Ends what dead processes left behind. What will not end in a minute is left as it is."""
        for one in reversed(self.unfinished.copy()):
            with contextlib.suppress(Exception):  # whatever it has to say, the run is over
                async with asyncio.timeout(BURY_WITHIN_S):
                    await one.bury()


class RiggedWorker(Worker):
    """Serves every step of one saga, remote ones by their stand-ins. Its plan is registered already.

    Making one compiles the saga; `for_process` gives the same to another process, as a start of it would.
    """

    def _add_saga(self, definition: Definition, wanted: set[str] | None) -> None:
        super()._add_saga(definition, wanted)
        for name, step in definition.steps.items():
            if issubclass(step, RemoteStep):
                self._add(step, definition.plan.by_name[name].queue, definition.context_type)

    def plans(self) -> list[Plan]:
        """None: the saga's owner registered it before."""
        return []

    def for_process(self, process: Process, rig: Rig) -> RiggedWorker:
        """The worker in a process of its own, with circuit breakers that know of no other run."""
        twin = copy.copy(self)
        twin.begin(process, rig)
        return twin

    def begin(self, process: Process, rig: Rig) -> None:
        """It is in a process of its own now."""
        self._container = RiggedContainer(process, rig)
        self._breakers, self._own_breakers = Breakers(), {}

    @classmethod
    def of(cls, definition: Definition, *, barrier: type[Any] | None) -> RiggedWorker:
        """A worker of this saga."""
        sagas = SagaMap()
        sagas.bind(definition.context_type, definition.saga)
        worker = cls(None, sagas)
        worker._barrier = barrier
        return worker


class RiggedContainer:
    """The user's container, with rigged handlers."""

    def __init__(self, process: Process, rig: Rig) -> None:
        self._process, self._rig = process, rig

    def scope(self) -> AbstractAsyncContextManager[Scope]:
        """A scope of the user's container."""
        return _OpenScope(self._process, self._rig)


class _OpenScope(AbstractAsyncContextManager[Scope]):
    """A scope that a dead process left open can be closed by others, so that what the user's code holds is given back."""

    def __init__(self, process: Process, rig: Rig) -> None:
        self._process, self._rig = process, rig
        self._inner = rig.container.scope()
        self._is_open = False

    async def __aenter__(self) -> Scope:
        inner = await self._inner.__aenter__()
        self._is_open = True
        self._rig.unfinished.append(self)
        return _RiggedScope(self._process, self._rig, inner)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if not self._is_open:
            return None
        self._is_open = False
        self._rig.unfinished.remove(self)
        return await self._inner.__aexit__(kind, error, trace)

    async def bury(self) -> None:
        """Closes it, if its process never will."""
        await self.__aexit__(None, None, None)


class _RiggedScope:
    def __init__(self, process: Process, rig: Rig, inner: Scope) -> None:
        self._process, self._rig, self._inner = process, rig, inner

    async def resolve(self, handler: type[T]) -> T:
        if not issubclass(handler, SagaStepHandler):
            return await self._inner.resolve(handler)

        async def build() -> SagaStepHandler[Any, Any]:
            return cast("SagaStepHandler[Any, Any]", await self._inner.resolve(handler))

        return cast("T", _RiggedHandler(self._process, self._rig, handler, build))


class _RiggedHandler:
    def __init__(
        self,
        process: Process,
        rig: Rig,
        handler: Step,
        build: Callable[[], Awaitable[SagaStepHandler[Any, Any]]],
    ) -> None:
        self._process, self._rig, self._build = process, rig, build
        self._name = step_name(handler)

    async def act(self, context: Any) -> Any:
        return await self._run(Action.ACT, context)

    async def compensate(self, context: Any) -> Any:
        return await self._run(Action.COMPENSATE, context)

    async def verify(self, context: Any) -> Any:
        return await self._run(Action.VERIFY, context)

    async def _run(self, action: Action, context: Any) -> Any:
        step, name = current_step(), f"{self._name}.{action}"
        await self._process.point(name + BEGINS)
        manner = self._rig.branch.manner(self._name, action, step.attempt)
        if manner is not None:
            self._rig.watch.tell(self._process, f"{name} (attempt {step.attempt}) goes like this: {manner.conduct}")
        if manner is not None and manner.conduct is Conduct.FAILS:
            raise _made(manner)
        if manner is not None and manner.conduct is Conduct.UNKNOWN_IDLE:
            raise OutcomeUnknown("torture: nobody knows whether it acted (it did not)")
        value = await self._really(action, name, context)
        await self._process.point(name + ENDED)
        if manner is not None:
            raise OutcomeUnknown("torture: nobody knows whether it acted (it did)")
        return value

    async def _really(self, action: Action, name: str, context: Any) -> Any:
        step, journal, process = current_step(), self._rig.journal, self._process
        stand_in = self._rig.stand_ins.get(self._name)
        run = HandlerRun(
            step=self._name,
            action=action,
            key=step.idempotency_key,
            began=journal.tick(),
            careful=self._rig.behind_barrier,
            stands_in=stand_in is not None,
        )
        journal.runs.append(run)

        async def written(what: str) -> None:
            self._rig.watch.tell(process, f"{name}: {what}")
            await process.point(f"{name}: {what}")

        async def call() -> Any:
            if stand_in is not None and action is not Action.VERIFY:
                part = stand_in.act if action is Action.ACT else stand_in.compensate
                return await part(context, self._build)
            return await getattr(await self._build(), action.value)(context)

        self._rig.watch.tell(process, f"{name} begins (attempt {step.attempt})")
        noticing, writing = _current.set(_noticing(step, run)), before_write.set(written)
        try:
            value = await _Watched(call(), self._rig, lambda: self._rig.watch.suspended(process, name + WAITS))
            run.effective = True
            self._rig.watch.tell(process, f"{name} ran to its end")
            return value
        except BaseException as error:
            run.answered = isinstance(error, AlreadyHandled)
            self._rig.watch.tell(process, f"{name} ended by {type(error).__name__}: {error}")
            raise
        finally:
            run.ended = journal.tick()
            inside = current_run()
            run.careful = run.careful or (inside is not None and inside.block is not None)
            _current.reset(noticing)
            before_write.reset(writing)


class _Watched:
    """Awaits something, and tells of each time that it gives way. One whose process died can be ended by others."""

    def __init__(self, awaitable: Awaitable[Any], rig: Rig, suspended: Callable[[], None]) -> None:
        self._inner: Any = awaitable.__await__()
        self._rig, self._suspended = rig, suspended

    def __await__(self) -> Generator[Any, Any, Any]:
        unfinished = self._rig.unfinished
        unfinished.append(self)
        value = yield from self._drive(lambda: next(self._inner), self._suspended)
        unfinished.remove(self)
        return value

    def _drive(self, step: Callable[[], Any], suspended: Callable[[], None]) -> Generator[Any, Any, Any]:
        while True:
            try:
                yielded = step()
            except StopIteration as stop:
                return stop.value
            suspended()
            try:
                sent = yield yielded
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - a cancellation, say: it is for the one that waits
                step = _thrower(self._inner, error)
            else:
                step = _sender(self._inner, sent)

    async def bury(self) -> None:
        """Ends what its process left unfinished, as a cancellation does: with every `finally` in it."""
        self._rig.unfinished.remove(self)
        with contextlib.suppress(asyncio.CancelledError):
            await _Driven(self._drive(_thrower(self._inner, asyncio.CancelledError()), lambda: None))


class _Driven:
    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._generator


def _thrower(inner: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: inner.throw(error)


def _sender(inner: Any, value: Any) -> Callable[[], Any]:
    return lambda: inner.send(value)


class _NoticingRun(StepRun):
    """Tells when somebody asks for the idempotency key."""

    __slots__ = ("run",)

    def __getattribute__(self, name: str) -> Any:
        if name == "idempotency_key":
            object.__getattribute__(self, "run").careful = True
        return object.__getattribute__(self, name)


def _noticing(step: StepRun, run: HandlerRun) -> StepRun:
    values = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    noticing = _NoticingRun(**values)
    object.__setattr__(noticing, "run", run)
    return noticing


def _made(manner: Manner) -> Exception:
    try:
        return manner.error("torture: it failed, and had no effect")
    except TypeError:  # an error with a constructor of its own
        return manner.error.__new__(manner.error)
