"""The participants of simulated sagas: what their steps do, and a ledger of what really happened.

A participant with a barrier acts once, refuses to act once it was told to compensate, and undoes what there is to undo. One
that is keyed does everything once for each idempotency key, and refuses nothing. A plain one acts at every run. None of
them lies: a step that says "failed" had no effect.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar, cast

from watership import OutcomeUnknown, Response, SagaContext, SagaStepHandler, StepError, Verified
from watership.machine.state import Action
from watership.saga.compile import Step
from watership.saga.step import StepRun, current_step
from watership.testing.world import Process, World

T = TypeVar("T")
IsAwaited = Callable[[uuid.UUID, str, Action, int], bool]

NAMES = tuple(f"S{n}" for n in range(10))
SPARE_NAMES = tuple(f"S{n}" for n in range(10, 14))  # of steps that only some seeds have: see `flow`
FIELDS = tuple(f"f{name[1:]}" for name in (*NAMES, *SPARE_NAMES))
SIGNAL_FIELDS = ("w0", "w1", "w2")


class Boom(StepError):
    code = "boom"


class Other(StepError):
    code = "other"


class Refused(StepError):
    code = "refused"


# Every step has a field of its own, which its act sets: a patch that is lost shows. Some write one that others write too.
Context: Any = dataclasses.make_dataclass(
    "Context",
    [
        ("n", int),
        *((name, int | None, dataclasses.field(default=None)) for name in (*FIELDS, "shared")),
        *((name, Any, dataclasses.field(default=None)) for name in SIGNAL_FIELDS),
    ],
    bases=(SagaContext,),
)


Kind = Literal["barrier", "keyed", "plain"]


@dataclasses.dataclass(frozen=True)
class Manners:
    """How a step behaves: shares of its runs. ``timeout_s`` is its plan's.

    ``rerun``: its handler's. ``shares``: what it writes into the field that others write too. ``tireless``: it must
    succeed in the end, since its saga only goes forward.
    """

    kind: Kind = "barrier"
    fails: float = 0.0
    unknown: float = 0.0
    slow: float = 0.0
    undo_fails: float = 0.0
    undo_unknown: float = 0.0
    undo_slow: float = 0.0
    timeout_s: float = 2.0
    verify_unknown: float = 0.0
    rerun: bool = True
    shares: int | None = None
    tireless: bool = False

    def healed(self) -> Manners:
        """Once the faults stop: acts still fail as business has it, but nothing is slow or unknown, and undoing works."""
        return dataclasses.replace(
            self,
            fails=0.0 if self.tireless else self.fails,
            unknown=0.0,
            slow=0.0,
            undo_fails=0.0,
            undo_unknown=0.0,
            undo_slow=0.0,
            verify_unknown=0.0,
        )


@dataclasses.dataclass(frozen=True)
class Effect:
    """Something that really happened at a participant, in the order of ``number``."""

    number: int
    saga_id: uuid.UUID
    step: str
    action: Action
    attempt: int
    process: str
    awaited: bool  # the saga's committed state awaited this attempt then


@dataclasses.dataclass
class Books:
    """What a participant that keeps books has on one saga."""

    acted: bool = False
    undone: bool = False
    closed: bool = False  # it was told to compensate: it acts no more
    under_way: int = 0  # acts that its participant goes on with by itself
    keys: set[str] = dataclasses.field(default_factory=set)


class Town:
    """All participants of one world."""

    def __init__(self, world: World, chance: random.Random, manners: dict[str, Manners], is_awaited: IsAwaited) -> None:
        self.world = world
        self.manners = manners
        self.effects: list[Effect] = []
        self.begun: collections.Counter[tuple[uuid.UUID, str, int]] = collections.Counter()  # runs of an attempt to act
        self.is_awaited = is_awaited
        self._chance = chance
        self._books: dict[tuple[uuid.UUID, str], Books] = {}

    def heal(self) -> None:
        """From here on everybody behaves."""
        self.manners = {step: manners.healed() for step, manners in self.manners.items()}

    def books(self, saga_id: uuid.UUID, step: str) -> Books:
        """What the participant of a step knows of a saga."""
        return self._books.setdefault((saga_id, step), Books())

    # --- runs, in a worker's process

    async def act(self, process: Process, run: StepRun) -> None:
        """One run of an act. Raises what its handler would raise."""
        manners, chance = self.manners[run.step], self._chance
        self.begun[run.saga_id, run.step, run.attempt] += 1
        await process.point("act")
        if chance.random() < manners.fails:
            raise chance.choice((Boom, Other))("no effect")
        slow, unknown = chance.random() < manners.slow, chance.random() < manners.unknown
        if slow and chance.random() < 0.5:
            if manners.kind == "barrier" and chance.random() < 0.5:
                # The participant goes on by itself, after its caller has given up.
                when_s = manners.timeout_s * chance.choice((1.0, 2.0, 10.0))
                fresh = contextvars.Context()
                self.books(run.saga_id, run.step).under_way += 1
                self.world.loop.call_later(when_s, self._act_by_itself, run, process.name, context=fresh)
            await asyncio.sleep(manners.timeout_s * 3)
        if not unknown or chance.random() < 0.5:
            self._act(run, process.name)
        await process.point("acted")
        if slow:
            await asyncio.sleep(manners.timeout_s * 3)
        if unknown:
            raise OutcomeUnknown("nobody knows")

    async def undo(self, process: Process, run: StepRun) -> None:
        """One run of a compensation."""
        manners, chance = self.manners[run.step], self._chance
        await process.point("undo")
        if chance.random() < manners.undo_fails:
            raise chance.choice((Boom, Other))("not undone")
        slow, unknown = chance.random() < manners.undo_slow, chance.random() < manners.undo_unknown
        if slow and chance.random() < 0.5:
            await asyncio.sleep(manners.timeout_s * 3)
        if not unknown or chance.random() < 0.5:
            self._undo(run, process.name)
        await process.point("undone")
        if slow:
            await asyncio.sleep(manners.timeout_s * 3)
        if unknown:
            raise OutcomeUnknown("nobody knows")

    async def verify(self, process: Process, run: StepRun) -> Verified:
        """One run of a verification. It looks into the books: what a run elsewhere is about to do is not in them."""
        await process.point("verify")
        if self._chance.random() < self.manners[run.step].verify_unknown:
            return Verified.STILL_UNKNOWN
        if any(one.action is Action.ACT for one in self.effects_of(run.saga_id, run.step)):
            return Verified.DONE
        return Verified.STILL_UNKNOWN if self.books(run.saga_id, run.step).under_way else Verified.NOT_DONE

    # --- what really happens

    def effects_of(self, saga_id: uuid.UUID, step: str) -> list[Effect]:
        """What a step did for a saga, in order."""
        return [one for one in self.effects if one.saga_id == saga_id and one.step == step]

    def _act_by_itself(self, run: StepRun, process: str) -> None:
        books = self.books(run.saga_id, run.step)
        books.under_way -= 1
        if not books.closed:
            self._act(run, process)

    def _act(self, run: StepRun, process: str) -> None:
        kind, books = self.manners[run.step].kind, self.books(run.saga_id, run.step)
        if kind == "keyed" and self._is_known(books, run.idempotency_key):
            return
        if kind == "barrier":
            if books.acted:
                return  # a duplicate answers what was stored
            if books.closed:
                raise Refused("its compensation came first")
            books.acted = True
        self._record(run, Action.ACT, process)

    def _undo(self, run: StepRun, process: str) -> None:
        kind, books = self.manners[run.step].kind, self.books(run.saga_id, run.step)
        if kind == "keyed" and self._is_known(books, run.idempotency_key):
            return
        if kind == "barrier":
            books.closed = True
            if not books.acted or books.undone:
                return  # an empty compensation, or a duplicate
            books.undone = True
        self._record(run, Action.COMPENSATE, process)

    @staticmethod
    def _is_known(books: Books, key: str) -> bool:
        known = key in books.keys
        books.keys.add(key)
        return known

    def _record(self, run: StepRun, action: Action, process: str) -> None:
        awaited = self.is_awaited(run.saga_id, run.step, Action(run.action), run.attempt)
        number = len(self.effects)
        self.effects.append(Effect(number, run.saga_id, run.step, action, run.attempt, process, awaited))
        verb = "ACTS" if action is Action.ACT else "UNDOES"
        self.world.tell(process, f"{run.step} {verb} for saga {run.saga_id.int} (attempt {run.attempt})")


class TownStep(SagaStepHandler[Context, Response]):
    """A step's handler, in a worker's process."""

    def __init__(self, town: Town, process: Process) -> None:
        self._town, self._process = town, process

    async def act(self, context: Any) -> None:
        await self._town.act(self._process, current_step())
        self._write(context)

    async def compensate(self, context: Any) -> None:
        await self._town.undo(self._process, current_step())

    async def verify(self, context: Any) -> Verified:
        found = await self._town.verify(self._process, current_step())
        if found is Verified.DONE:
            self._write(context)
        return found

    def _write(self, context: Any) -> None:
        run = current_step()
        setattr(context, f"f{run.step[1:]}", run.attempt)
        if (shares := self._town.manners[run.step].shares) is not None:
            context.shared = shares


STEPS: dict[str, Step] = {name: type(name, (TownStep,), {}) for name in (*NAMES, *SPARE_NAMES)}
_ONCE: dict[str, Step] = {name: type(name, (step,), {"rerun": False}) for name, step in STEPS.items()}


def handler_of(step: str, manners: Manners) -> Step:
    """The handler that workers have for a step."""
    return STEPS[step] if manners.rerun else _ONCE[step]


class TownContainer:
    """Makes handlers that know their process."""

    def __init__(self, town: Town, process: Process) -> None:
        self._town, self._process = town, process

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[TownContainer]:
        """Itself."""
        yield self

    async def resolve(self, handler: type[T]) -> T:
        """A handler of the town."""
        return cast("T", cast("Any", handler)(self._town, self._process))
