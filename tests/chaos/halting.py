"""An orchestrator that stops itself, once, at a named point of its first batch: `python -m tests.chaos.halting POINT`.

By the signal that a shell's Ctrl-Z or a frozen machine would be: not one instruction of it runs until it is woken. The
points are: with its transaction open, after the commit, and in the gap between the last look at the clock and the send.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence

from watership.bus.protocol import Fate, Message
from watership.bus.rabbit import RabbitBus
from watership.service import serve
from watership.settings import Settings
from watership_orchestrator.backing import PostgresBacking
from watership_orchestrator.database import open_database
from watership_orchestrator.orchestrator import Orchestrator
from watership_orchestrator.store import Batch, Store

IN_TRANSACTION, AFTER_COMMIT, IN_PUBLISH = POINTS = ("in_transaction", "after_commit", "in_publish")


class Halt:
    """Stops this process the first time that it comes to its point."""

    def __init__(self, point: str) -> None:
        self._point: str | None = point

    def at(self, point: str) -> None:
        """Here it is; perhaps it stops."""
        if point == self._point:
            self._point = None
            sys.stdout.write(f"halting {point}\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
            sys.stdout.write("woken\n")
            sys.stdout.flush()


class HaltingStore(Store):
    """A store whose batch may halt before its commit, or after it."""

    halt: Halt

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        async with super().batch() as batch:
            yield batch
            self.halt.at(IN_TRANSACTION)
        self.halt.at(AFTER_COMMIT)


class HaltingBus(RabbitBus):
    """A bus that may halt when it is about to send commands."""

    halt: Halt

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        if any(message.type == "step-command" for message in messages):
            self.halt.at(IN_PUBLISH)
        return await super().publish(messages)


async def main(point: str) -> None:
    """Runs the orchestrator as its command does."""
    settings = Settings()
    halt = Halt(point)
    bus = HaltingBus(settings.broker())
    bus.halt = halt
    database = open_database(settings.database())
    backing = PostgresBacking(database, settings.namespace)
    store = HaltingStore(database, settings.namespace)
    store.halt = halt
    backing.store = store
    orchestrator = Orchestrator(settings, bus, backing)
    await serve(orchestrator, drain_s=settings.drain_s)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main(sys.argv[1]))
