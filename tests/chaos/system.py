"""What a chaos run strikes: our services as processes, and a proxy on each link between one of them and a server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from tests.chaos.books import plain
from tests.chaos.ground import Ground
from tests.chaos.guardian import Guardian
from tests.support.processes import Process, Processes
from tests.support.proxy import Proxy

WORKER = "tests.chaos.steps:worker"
# Which servers each kind of process talks to.
LINKS = {
    "orchestrator": ("broker", "database"),
    "reaper": ("broker", "database"),
    "worker": ("broker", "books"),
    "client": ("broker",),
}
READY_WITHIN_S = 60.0


@dataclasses.dataclass(frozen=True)
class Kill:
    """A process that was killed. ``at_s``: seconds since the epoch."""

    kind: str
    pid: int
    at_s: float


@dataclasses.dataclass
class Actor:
    """A place that one process after the other fills. Its links outlive them."""

    kind: str
    index: int
    links: dict[str, Proxy]
    process: Process | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind} {self.index}"


class System:
    """The processes of a run."""

    def __init__(
        self,
        ground: Ground,
        guardian: Guardian,
        directory: Path,
        load: tuple[int, int, float],
        settings: dict[str, str],
    ) -> None:
        self.ground = ground
        self.actors: list[Actor] = []
        self.kills: list[Kill] = []
        self.began_s = time.time()  # seconds since the epoch: when the load began
        self._guardian = guardian
        self._processes = Processes(directory)
        self._load = load  # seed, sagas, sagas a second
        self._settings = settings

    @contextlib.asynccontextmanager
    async def running(self, cast: dict[str, int]) -> AsyncIterator[System]:
        """``cast``: how many there are of each kind. All run, and all have ended after the block."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._processes.end)
            for kind, count in cast.items():
                for index in range(count):
                    links = {server: await stack.enter_async_context(self._proxy(server)) for server in LINKS[kind]}
                    self.actors.append(Actor(kind, index, links))
            for actor in self.actors:
                if actor.kind != "client":
                    self.start(actor)
            await asyncio.gather(*(self.ready(actor) for actor in self.actors if actor.process is not None))
            yield self

    def of(self, kind: str) -> list[Actor]:
        """The actors of a kind."""
        return [actor for actor in self.actors if actor.kind == kind]

    def links(self, kind: str, server: str) -> Iterator[tuple[Actor, Proxy]]:
        """All links between processes of a kind and a server."""
        for actor in self.of(kind):
            yield actor, actor.links[server]

    def start(self, actor: Actor) -> None:
        """Starts a process in an actor's place; does not wait."""
        name = f"{actor.name} life {sum(kill.kind == actor.kind for kill in self.kills) + 1}"
        if actor.kind == "client":
            arguments = ["-m", "tests.chaos.client", *map(str, self._load)]
            actor.process = self._processes.python(*arguments, env=self._environment(actor), name=name)
        else:
            arguments = [actor.kind, WORKER] if actor.kind == "worker" else [actor.kind]
            actor.process = self._processes.watership(*arguments, env=self._environment(actor), name=name)
        self._guardian.began(actor.process.pid)

    async def ready(self, actor: Actor) -> None:
        """Waits until its process says so. Raises AssertionError with what it said instead."""
        assert actor.process is not None
        await actor.process.line("ready", timeout_s=READY_WITHIN_S)

    async def kill(self, actor: Actor) -> None:
        """Kills it where it stands."""
        process = actor.process
        if process is None or process.returncode is not None:
            return
        self.kills.append(Kill(actor.kind, process.pid, time.time()))
        await asyncio.to_thread(process.kill9)
        self._guardian.ended(process.pid)

    def pause(self, actor: Actor) -> Process | None:
        """Stops it where it stands; what was stopped."""
        process = actor.process
        if process is None or process.returncode is not None:
            return None
        process.send_signal(signal.SIGSTOP)
        return process

    def fallen(self) -> list[str]:
        """Processes that ended and were not killed by us."""
        killed = {kill.pid for kill in self.kills}
        return [
            f"{process.name} (pid {process.pid}) ended by itself with {process.returncode}:\n{process.output[-3000:]}"
            for process in self._processes.all
            if process.returncode not in (None, 0) and process.pid not in killed
        ]

    def lines(self, *words: str) -> dict[str, int]:
        """How many lines of all processes have these words."""
        found = dict.fromkeys(words, 0)
        for process in self._processes.all:
            output = process.output
            for word in words:
                found[word] += output.count(word)
        return found

    def outputs(self) -> Iterable[tuple[str, str]]:
        """What every process wrote."""
        return [(f"{process.name} (pid {process.pid})", process.output) for process in self._processes.all]

    def _proxy(self, server: str) -> Proxy:
        ground = self.ground
        urls = {"broker": ground.broker_url, "database": ground.database_url, "books": ground.books_url}
        return Proxy.for_url(urls[server], 5672 if server == "broker" else 5432)

    def _environment(self, actor: Actor) -> dict[str, str]:
        ground = self.ground
        environment = {"WATERSHIP_NAMESPACE": ground.namespace, **self._settings}
        broker = actor.links["broker"].url_for(ground.broker_url)
        environment["WATERSHIP_BROKER_URL"] = broker
        if "database" in actor.links:
            environment["WATERSHIP_DATABASE_URL"] = actor.links["database"].url_for(ground.database_url)
        if "books" in actor.links:
            environment["BOOKS_URL"] = plain(actor.links["books"].url_for(ground.books_url))
        if actor.kind == "client":
            environment |= {"CHAOS_BROKER_URL": broker, "CHAOS_NAMESPACE": ground.namespace}
            environment["CHAOS_BEGAN_S"] = repr(self.began_s)
            environment["LEDGER_URL"] = plain(ground.books_url)
        return environment
