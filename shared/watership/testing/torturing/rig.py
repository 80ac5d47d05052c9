"""The worker of a tortured saga: the real one, whose handlers are watched, stopped at every point, and made to go wrong.

It wraps what the user's container gives. It must never know what is judged of it.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
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
from watership.testing.virtual_loop import VirtualLoop
from watership.testing.world import Process
from watership_worker.worker import Worker

T = TypeVar("T")

LAST_MOMENT_S, BURY_WITHIN_S = 1.0, 60.0


@dataclasses.dataclass(frozen=True)
class Rig:
    """What the handlers of one run are rigged with."""

    container: Container
    stand_ins: Mapping[str, StandIn]
    branch: Branch
    journal: Journal
    watch: Watch
    behind_barrier: bool = False  # the worker puts each handler there
    processes: list[Process] = dataclasses.field(default_factory=list)

    async def bury(self, loop: VirtualLoop) -> None:
        """Ends what dead workers left unfinished, so that what handlers hold open is closed. The run is judged already.

        What can go on goes on for a moment: a close that had not begun would never begin once it is cancelled.
        """
        dead = [process.lane for process in self.processes if not process.alive]
        for lane in dead:
            loop.exhume(lane)
        if dead:
            await asyncio.sleep(LAST_MOMENT_S)
        unfinished = [task for lane in dead for task in lane.tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=BURY_WITHIN_S)


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
        rig.processes.append(process)
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

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        """A scope of the user's container."""
        async with self._rig.container.scope() as inner:
            yield _RiggedScope(self._process, self._rig, inner)


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
            value = await _Watched(call(), lambda: self._rig.watch.suspended(process, name + WAITS))
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
    """Awaits something, and tells of each time that it gives way."""

    def __init__(self, awaitable: Awaitable[Any], suspended: Callable[[], None]) -> None:
        self._awaitable, self._suspended = awaitable, suspended

    def __await__(self) -> Generator[Any, Any, Any]:
        inner: Any = self._awaitable.__await__()
        step: Callable[[], Any] = functools.partial(next, inner)
        while True:
            try:
                yielded = step()
            except StopIteration as stop:
                return stop.value
            self._suspended()
            try:
                sent = yield yielded
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:  # noqa: BLE001 - a cancellation, say: it is for the one that waits
                step = functools.partial(inner.throw, error)
            else:
                step = functools.partial(inner.send, sent)


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
