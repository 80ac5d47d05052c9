"""A whole system in one process and in virtual time: services that can be crashed, stopped and woken at any point.

Each process is a `Service` on a lane of its own (see `virtual_loop`), with a connection to one broker and one database in
memory. All chance comes from one `random.Random`. What goes wrong is decided by a `Mischief`; what is seen is told to a
`Witness`. It knows how processes live and die, and nothing of sagas.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import random
import traceback
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from watership.bus.memory import MemoryBroker
from watership.bus.protocol import Delivery, Fate, Message
from watership.errors import BrokerUnavailable, ConfigurationError, StoreUnavailable
from watership.service import Service
from watership.testing.faulty_bus import FaultyBus
from watership.testing.memory_database import MemoryDatabase, Transaction
from watership.testing.mischief import Crash, Delay, Fail, Mischief, NoMischief, Pause
from watership.testing.virtual_loop import Lane, VirtualLoop, new_loop

T = TypeVar("T")

EPOCH_MS = 1_700_000_000_000
HEARTBEAT_S = 30.0  # of silence, and the broker gives a connection up
IDLE_IN_TRANSACTION_S = 10.0
RECONNECT_S = 2.0
DRAIN_S = 25.0
SKEW_S = 1_000_000.0


class Witness:
    """Sees what happens in a world. Every method may be overridden; none does anything here."""

    def publishing(self, process: Process, messages: Sequence[Message]) -> None:
        """The process decided to send these, now."""

    def routed(self, process: Process, message: Message, fate: Fate) -> None:
        """The broker got this one."""

    def published(self, process: Process, messages: Sequence[Message], fates: Sequence[Fate]) -> None:
        """The process is told what became of them."""

    def handed_over(self, process: Process, delivery: Delivery) -> None:
        """The process got it."""

    def acked(self, process: Process, delivery: Delivery) -> None:
        """The broker forgets it."""

    def rejected(self, process: Process, delivery: Delivery, *, requeue: bool) -> None:
        """The broker has it back, or dead-letters it."""

    def committed(self, transaction: Transaction) -> None:
        """What a process wrote is durable. ``transaction.client`` is that process."""

    def died(self, process: Process) -> None:
        """The process was ended where it stood."""


class Process:
    """One process from its start to its end. It is its own line to the database (see `memory_store.Line`)."""

    def __init__(self, world: World, name: str, role: str, make: Callable[[Process], Service]) -> None:
        self.name = name
        self.role = role
        self.make = make
        self.lane = Lane(name)
        self.chance = random.Random(world.chance.getrandbits(64))
        self.service: Service | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        self.bus = FaultyBus(world.broker, self, lambda: world.mischief, world.witness)
        self._world = world
        self._skew_s = self.chance.uniform(0, SKEW_S)
        self._rate = self.chance.uniform(0.98, 1.02)

    @property
    def alive(self) -> bool:
        """It runs, or stands still and may go on."""
        return not self.lane.dead

    def now_s(self) -> float:
        """Its own monotonic clock: it begins anywhere, and is a little fast or slow."""
        return self._skew_s + self._rate * self._world.loop.time()

    async def point(self, what: str) -> None:
        """A point at which the process gives way: the world's mischief happens here."""
        await self._world.point(self, what)

    def __repr__(self) -> str:
        return self.name


@dataclasses.dataclass(slots=True)
class Unexpected:
    """A process ended by an error that no fault explains: a bug."""

    process: str
    error: str


class World:
    """Broker, database, processes, and the virtual time that they share."""

    def __init__(
        self,
        seed: int | str,
        *,
        mischief: Mischief | None = None,
        witness: Witness | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.chance = random.Random(f"{seed}:world")
        self.loop: VirtualLoop = new_loop(random.Random(f"{seed}:order"))
        self.clock_step_ms = 0
        self.broker = MemoryBroker()
        self.database = MemoryDatabase(self.now_ms)
        self.mischief: Mischief = mischief or NoMischief()
        self.witness = witness or Witness()
        self.database.on_commit = self.witness.committed
        self.processes: dict[str, Process] = {}  # by role: the newest of each
        self.unexpected: list[Unexpected] = []
        self.restart_s: Callable[[], float] | None = None  # how long a process that ended stays away; None: for ever
        self._all: list[Process] = []
        self._trace = trace

    # --- time and words

    def now_ms(self) -> int:
        """The database's clock."""
        return EPOCH_MS + int(self.loop.time() * 1000) + self.clock_step_ms

    @property
    def traced(self) -> bool:
        """Whether somebody reads along: else nothing need be put in words."""
        return self._trace is not None

    def tell(self, who: object, what: str) -> None:
        """One line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.loop.time() - 1_000:10.3f}  {who!s:<16} {what}")

    # --- running

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs ``main`` to its end in virtual time, and then ends everything."""
        try:
            result: T = self.loop.run_until_complete(main)
            return result
        finally:
            self.loop.dispose([process.lane for process in self._all])

    def start(self, role: str, make: Callable[[Process], Service]) -> Process:
        """Starts a process in this role."""
        count = sum(process.role == role for process in self._all)
        process = Process(self, role if not count else f"{role}#{count + 1}", role, make)
        self._all.append(process)
        self.processes[role] = process
        self.tell(process, "starts")
        process.task = self.loop.create_task(self._live(process), name=process.name, context=process.lane.context)
        return process

    async def _live(self, process: Process) -> None:
        try:
            process.service = process.make(process)
            await process.service.start()
            self.tell(process, "is ready")
            await process.service.run()
        except (BrokerUnavailable, StoreUnavailable, ConfigurationError) as error:
            self.tell(process, f"gives up: {error}")
        except asyncio.CancelledError:
            return  # it was asked to stop, and is not done yet
        except Exception as error:  # noqa: BLE001 - whatever it was, it is told as a bug
            self.unexpected.append(Unexpected(process.name, "".join(traceback.format_exception(error))))
        self.loop.call_soon(self.crash, process, context=contextvars.Context())

    # --- ending, standing still, going on

    def crash(self, process: Process) -> None:
        """Ends a process where it stands. The servers notice it after a while; then somebody starts another."""
        if not process.alive:
            return
        self.tell(process, "dies")
        self.witness.died(process)
        self.loop.kill(process.lane)
        self._later(self.mischief.notice_s(process.name), self._forget, process)
        if self.restart_s is not None:
            self._later(self.restart_s(), self._restart, process)

    def _forget(self, process: Process) -> None:
        process.bus.lose_link()
        self.database.disconnect(process)

    def _restart(self, process: Process) -> None:
        if self.processes[process.role] is process:
            self.start(process.role, process.make)

    def revive(self) -> None:
        """Starts again whoever is dead, and wakes whoever stands still."""
        for process in list(self.processes.values()):
            if process.alive:
                self.wake(process)
            else:
                self._restart(process)

    async def drain(self, process: Process) -> None:
        """Ends a process as SIGTERM does: it finishes what it has in hand, as long as its patience lasts."""
        if process.service is None or not process.alive or process.stopping:
            return
        self.tell(process, "is asked to stop")
        process.stopping = True
        task = self.loop.create_task(self._leave(process), context=process.lane.context)
        await asyncio.wait([task], timeout=DRAIN_S)
        if task.done() and task.exception() is not None:
            self.unexpected.append(Unexpected(process.name, repr(task.exception())))
        self.crash(process)

    @staticmethod
    async def _leave(process: Process) -> None:
        assert process.task is not None, "it was started"
        assert process.service is not None, "it was made"
        process.task.cancel()
        await asyncio.gather(process.task, return_exceptions=True)
        await process.service.drain()

    def pause(self, process: Process, seconds: float) -> None:
        """Stops a process for a while. What it holds of the servers, they take back in their own time."""
        if not process.alive or process.lane.stopped:
            return
        self.tell(process, f"stands still for {seconds:.3f} s")
        self.loop.halt(process.lane)
        if seconds > IDLE_IN_TRANSACTION_S:
            self._later(IDLE_IN_TRANSACTION_S, self._if_stopped, process, self.database.disconnect, process)
        if seconds > HEARTBEAT_S:
            self._later(HEARTBEAT_S, self._if_stopped, process, process.bus.lose_link)
        self._later(seconds, self.wake, process)

    def _if_stopped(self, process: Process, then: Callable[..., None], *arguments: object) -> None:
        if process.lane.stopped:
            then(*arguments)

    def wake(self, process: Process) -> None:
        """Lets a process go on. A link that it lost meanwhile is back a little later."""
        if process.alive and process.lane.stopped:
            self.tell(process, "wakes")
            self.loop.resume(process.lane)
            self._later(RECONNECT_S, self._regain, process)

    def cut(self, process: Process, seconds: float) -> None:
        """Breaks a process's link to the broker for a while."""
        if process.alive:
            self.tell(process, f"loses its link for {seconds:.3f} s")
            process.bus.lose_link()
            self._later(seconds, self._regain, process)

    def _regain(self, process: Process) -> None:
        if process.alive and not process.lane.stopped:
            process.bus.regain_link()

    async def point(self, process: Process, what: str) -> None:
        """See `Process.point`."""
        act = self.mischief.at(process.name, what)
        if act is None:
            return
        match act:
            case Delay():
                await asyncio.sleep(act.seconds)
            case Pause():
                self.tell(process, f"at {what}:")
                self.pause(process, act.seconds)
                await asyncio.sleep(0)
            case Crash():
                self.tell(process, f"at {what}:")
                self.crash(process)
                await asyncio.get_running_loop().create_future()
            case Fail():
                error = act.error()
                words = error.orig if isinstance(error, SQLAlchemyError) and hasattr(error, "orig") else error
                self.tell(process, f"at {what}: {type(error).__name__}: {words}")
                raise error

    def _later(self, seconds: float, callback: Callable[..., object], *arguments: object) -> None:
        self.loop.call_later(seconds, callback, *arguments, context=contextvars.Context())
