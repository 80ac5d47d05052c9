"""What is done to a run: each nemesis strikes one kind of fault, and heals it. When, and for how long, is its schedule.

``strike`` says what it did, in words for the report; a `Miss` says why it could not. ``heal`` undoes it, and may be
called when nothing was struck.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import random
import signal
from collections.abc import Sequence
from typing import ClassVar

from tests.chaos.ground import Disk, PrivateGround, Server
from tests.chaos.system import LINKS, Actor, System
from tests.support.endpoints import Unavailable
from tests.support.processes import Process
from tests.support.proxy import Proxy


class Miss(Exception):
    """A strike that could not be: another fault was in its way. The message says which."""


class Nemesis(abc.ABC):
    """One kind of fault. ``group`` is for ``--only``; ``every_s`` and ``for_s`` are ranges, in seconds."""

    group: ClassVar[str]
    every_s: tuple[float, float] = (5.0, 20.0)
    for_s: tuple[float, float] = (0.0, 0.0)
    name: str

    @abc.abstractmethod
    async def strike(self, chance: random.Random) -> str:
        """Strikes; what was struck. Raises `Miss`."""

    @abc.abstractmethod
    async def heal(self) -> None:
        """Undoes it."""


class Kills(Nemesis):
    """`kill -9`; another process takes the place when it is healed."""

    group = "processes"
    every_s = (8.0, 20.0)
    for_s = (0.2, 4.0)

    def __init__(self, system: System, kind: str) -> None:
        self.name = f"kill {kind}"
        self._system, self._kind = system, kind
        self._struck: Actor | None = None

    async def strike(self, chance: random.Random) -> str:
        actor = chance.choice(self._system.of(self._kind))
        if actor.process is None or actor.process.returncode is not None:
            raise Miss(f"{actor.name} does not run")
        await self._system.kill(actor)
        self._struck = actor
        return actor.name

    async def heal(self) -> None:
        if self._struck is not None:
            self._system.start(self._struck)
            self._struck = None


class Pauses(Nemesis):
    """`SIGSTOP`, for longer than every deadline, then `SIGCONT`: a process that was only thought dead."""

    group = "processes"
    every_s = (10.0, 30.0)
    for_s = (13.0, 35.0)

    def __init__(self, system: System, kind: str) -> None:
        self.name = f"stop {kind}"
        self._system, self._kind = system, kind
        self._struck: Process | None = None

    async def strike(self, chance: random.Random) -> str:
        actor = chance.choice(self._system.of(self._kind))
        self._struck = self._system.pause(actor)
        if self._struck is None:
            raise Miss(f"{actor.name} does not run")
        return actor.name

    async def heal(self) -> None:
        if self._struck is not None:
            self._struck.send_signal(signal.SIGCONT)  # to one that was killed meanwhile it is nothing
            self._struck = None


class Links(Nemesis):
    """Cuts, holds or slows a link: each kind of link in its turn, in an order of the seed."""

    group = "links"

    def __init__(self, system: System, verb: str) -> None:
        self.name = f"{verb} link"
        self._system, self._verb = system, verb
        self.every_s = {"cut": (1.0, 5.0), "hold": (4.0, 15.0), "slow": (4.0, 15.0)}[verb]
        self.for_s = {"cut": (0.0, 2.0), "hold": (3.0, 30.0), "slow": (3.0, 12.0)}[verb]
        self._struck: list[Proxy] = []
        self._turns: itertools.cycle[tuple[str, str]] | None = None

    async def strike(self, chance: random.Random) -> str:
        if self._turns is None:
            kinds = [(kind, server) for kind, servers in LINKS.items() for server in servers]
            chance.shuffle(kinds)
            self._turns = itertools.cycle(kinds)
        kind, server = next(self._turns)
        links = list(self._system.links(kind, server))
        if not links:
            raise Miss(f"there is no {kind}")
        if chance.random() < 0.7:  # else all of them: that server is not to be had for any process of this kind
            links = [chance.choice(links)]
        self._struck = [proxy for _, proxy in links]
        for proxy in self._struck:
            if self._verb == "cut":
                proxy.refuse()
            elif self._verb == "hold":
                proxy.blackhole()
            else:
                proxy.slow(latency_s=chance.uniform(0.05, 0.5), bytes_per_s=chance.choice([0, 20_000]))
        return f"{', '.join(actor.name for actor, _ in links)} to the {server}"

    async def heal(self) -> None:
        for proxy in self._struck:
            proxy.heal()
        self._struck = []


class Restarts(Nemesis):
    """A server dies where it stands, and comes again on what it had on its disk."""

    def __init__(self, name: str, group: str, server: Server, number: signal.Signals) -> None:
        self.name, self.group = name, group  # type: ignore[misc]
        self._server, self._number = server, number
        self.every_s = (25.0, 60.0)
        self.for_s = (0.0, 4.0)
        self._holding = contextlib.AsyncExitStack()

    async def strike(self, chance: random.Random) -> str:
        if self._server.busy.locked():
            raise Miss("something else is being done to it")
        await self._holding.enter_async_context(self._server.busy)
        await self._server.down(self._number)
        return "down"

    async def heal(self) -> None:
        async with self._holding.pop_all():
            if not self._server.is_running:
                await self._server.up()


class BrokerSetting(Nemesis):
    """Something that `rabbitmqctl` sets and takes back: a memory alarm, a queue that is full."""

    group = "broker"
    every_s = (15.0, 45.0)
    for_s = (3.0, 12.0)

    def __init__(self, name: str, broker: Server, on: Sequence[str], off: Sequence[str]) -> None:
        self.name = name
        self._broker, self._on, self._off = broker, on, off
        self._is_on = False

    async def strike(self, chance: random.Random) -> str:
        if self._broker.busy.locked():
            raise Miss("something else is being done to the broker")
        async with self._broker.busy:
            try:
                await self._broker.control(*self._on)
            except Unavailable as why:
                raise Miss(str(why)) from why
            finally:
                self._is_on = True
        return "on"

    async def heal(self) -> None:
        """A policy outlives the broker; an alarm does not, and taking it back does no harm."""
        while self._is_on:
            async with self._broker.busy:
                with contextlib.suppress(Unavailable):
                    await self._broker.control(*self._off)
                    self._is_on = False
            if self._is_on:
                await asyncio.sleep(1.0)


class FullQueue(BrokerSetting):
    """A queue that takes one message more at most, while all that consume it are stopped: its senders are refused."""

    def __init__(self, what: str, pattern: str, system: System, consumers: str, broker: Server) -> None:
        # One policy is in force for a queue, that of the highest priority: so it repeats the delivery limit.
        limits = '{"max-length": 1, "overflow": "reject-publish", "delivery-limit": 1000000000}'
        policy = f"chaos-{what}"
        on = ["set_policy", "--priority", "20", "--apply-to", "queues", policy, rf"^[A-Za-z0-9_-]+[.]{pattern}", limits]
        super().__init__(f"full {what} queue", broker, on, ["clear_policy", policy])
        self._system, self._consumers = system, consumers
        self._stopped: list[Process] = []

    async def strike(self, chance: random.Random) -> str:
        on = await super().strike(chance)
        paused = [self._system.pause(actor) for actor in self._system.of(self._consumers)]
        self._stopped = [process for process in paused if process is not None]
        return f"{on}, and {len(self._stopped)} {self._consumers}s stopped"

    async def heal(self) -> None:
        for process in self._stopped:
            process.send_signal(signal.SIGCONT)
        self._stopped = []
        await super().heal()


class FullDisk(Nemesis):
    """The disk of the sagas' database has no room left. A server that died of it is started when there is room again."""

    name = "full disk"
    group = "disk"
    every_s = (40.0, 90.0)
    for_s = (4.0, 12.0)

    def __init__(self, disk: Disk, server: Server) -> None:
        self._disk, self._server = disk, server
        self._holding = contextlib.AsyncExitStack()

    async def strike(self, chance: random.Random) -> str:
        if self._server.busy.locked():
            raise Miss("something else is being done to the database")
        await self._holding.enter_async_context(self._server.busy)
        return f"{self._disk.fill() >> 20} MiB taken"

    async def heal(self) -> None:
        async with self._holding.pop_all():
            self._disk.empty()
            if not self._server.is_running:
                await self._server.up()


def all_nemeses(system: System) -> tuple[list[Nemesis], list[str]]:
    """What can be done to this system; and what cannot, with the reason."""
    found: list[Nemesis] = [Kills(system, kind) for kind in LINKS if system.of(kind)]
    found += [Pauses(system, kind) for kind in ("orchestrator", "worker", "reaper")]
    found += [Links(system, verb) for verb in ("cut", "hold", "slow")]
    ground = system.ground
    if not isinstance(ground, PrivateGround):
        return found, ["broker, database, disk: the servers are not ours"]
    broker = ground.broker
    found += [
        Restarts("kill broker", "broker", broker, signal.SIGKILL),
        # SIGQUIT is what `pg_ctl stop -m immediate` sends.
        Restarts("stop database at once", "database", ground.sagas, signal.SIGQUIT),
        Restarts("stop participants' database at once", "database", ground.books, signal.SIGQUIT),
        BrokerSetting(
            "memory alarm",
            broker,
            ["set_vm_memory_high_watermark", "0.0001"],
            ["set_vm_memory_high_watermark", "0.4"],
        ),
        FullQueue("start", "start$", system, "orchestrator", broker),
        FullQueue("step", "step[.]", system, "worker", broker),
    ]
    if ground.disk is None:
        return found, [f"full disk: {ground.disk_trouble or 'it was not asked for'}"]
    return [*found, FullDisk(ground.disk, ground.sagas)], []
