"""A client of the chaos runs: `python -m tests.chaos.client SEED COUNT PER_SECOND`. Starts sagas, whatever happens.

Open loop: orders come at their pace, however long the earlier ones take. Each is started again, with the same id,
until it is confirmed; some are called off a moment later, and those that wait for a signal get it, or not. It writes down
what it is about to start, to signal and to call off, and what it was told of that: straight into the ledger, which is no
part of what is tested. Started again, it goes on where it was killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg

from watership import SagaMediator, bootstrap
from watership.errors import OperationRefused, SignalRefused, WatershipError
from watership.wire import ASK_TIMEOUT_S

from tests.chaos.evidence import ACCEPTED
from tests.chaos.orders import FlowOrder, Manner, Placement, orders, sayings
from tests.chaos.steps import sagas

ASK_AGAIN_S = 1.0
TOLD_WITHIN_S = 600.0
ANSWERED_WITHIN_S = 0.9 * ASK_TIMEOUT_S
CHANGED_MY_MIND = "the customer changed their mind"


class Recorder:
    """Writes lines into the ledger, several at once; waits until they are there."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None

    async def write(self, statement: str, *values: Any) -> None:
        """One line, again and again until it is there: its server, too, is killed in these runs."""
        await self._patiently("execute", statement, *values)

    async def read(self, query: str) -> list[Any]:
        """The rows, once they can be had."""
        found: list[Any] = await self._patiently("fetch", query)
        return found

    async def _patiently(self, verb: str, *arguments: Any) -> Any:
        while True:
            try:
                if self._pool is None:
                    self._pool = await asyncpg.create_pool(
                        self._url, min_size=0, max_size=3, timeout=5, command_timeout=5
                    )
                return await getattr(self._pool, verb)(*arguments)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await asyncio.sleep(ASK_AGAIN_S)


@dataclasses.dataclass
class Memory:
    """What an earlier life of this client was told."""

    confirmed: set[uuid.UUID]
    said: set[tuple[uuid.UUID, int]]
    called_off: set[uuid.UUID]

    @classmethod
    async def of(cls, recorder: Recorder) -> Memory:
        """Read from the ledger."""
        confirmed = await recorder.read("SELECT saga_id FROM ack")
        said = await recorder.read("SELECT saga_id, number FROM signal WHERE told IS NOT NULL")
        called_off = await recorder.read("SELECT saga_id FROM cancel WHERE told IS NOT NULL")
        return cls(
            {_id(row) for row in confirmed},
            {(_id(row), row["number"]) for row in said},
            {_id(row) for row in called_off},
        )


class Client:
    """Places orders."""

    def __init__(self, mediator: SagaMediator, recorder: Recorder, memory: Memory) -> None:
        self._mediator = mediator
        self._recorder = recorder
        self._memory = memory

    async def place(self, placed: Placement) -> None:
        """Starts one saga until that is confirmed, says what is to be said to it, and waits for its end."""
        saga_id, order = placed.saga_id, placed.order
        if saga_id in self._memory.confirmed:
            await self._errands(placed)
            return
        intent = "INSERT INTO intent (saga_id, context) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        await self._recorder.write(intent, saga_id, json.dumps(vars(order)))
        if isinstance(order, FlowOrder) and order.manner == Manner.EARLY:
            await self._say_all(placed)
        tries = 0
        while True:
            tries += 1
            try:
                await self._mediator.start(order, saga_id=saga_id)
                break
            except WatershipError:  # full, down, not confirmed: the same id again
                await asyncio.sleep(ASK_AGAIN_S * random.uniform(0.2, 1.0))
        ack = "INSERT INTO ack (saga_id, tries) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        await self._recorder.write(ack, saga_id, tries)
        await asyncio.gather(self._errands(placed), self._hear(saga_id))

    async def _errands(self, placed: Placement) -> None:
        await asyncio.gather(self._call_off(placed), self._say_all(placed))

    async def _call_off(self, placed: Placement) -> None:
        if placed.cancel_after_s is None or placed.saga_id in self._memory.called_off:
            return
        await asyncio.sleep(placed.cancel_after_s)
        asked = "INSERT INTO cancel (saga_id) VALUES ($1) ON CONFLICT DO NOTHING"
        await self._recorder.write(asked, placed.saga_id)
        told = await self._told(partial(self._mediator.cancel, placed.saga_id, CHANGED_MY_MIND), OperationRefused)
        await self._recorder.write("UPDATE cancel SET told = $2 WHERE saga_id = $1", placed.saga_id, told)

    async def _say_all(self, placed: Placement) -> None:
        """One after the other: the next only when it is known what came of the one before."""
        saga_id = placed.saga_id
        for saying in sayings(placed.order):
            if (saga_id, saying.number) in self._memory.said:
                continue
            said = (
                "INSERT INTO signal (saga_id, number, signal_id, data) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
            )
            row = (saga_id, saying.number, saying.signal_id, json.dumps(vars(saying.data)))
            await self._recorder.write(said, *row)
            say_it = partial(self._mediator.signal, saga_id, "approval", saying.data, signal_id=saying.signal_id)
            told = await self._told(say_it, SignalRefused)
            update = "UPDATE signal SET told = $3 WHERE saga_id = $1 AND number = $2"
            await self._recorder.write(update, saga_id, saying.number, told)
            self._memory.said.add((saga_id, saying.number))

    async def _told(self, ask: Callable[[], Awaitable[None]], refusal: type[WatershipError]) -> str:
        """Asks until there is an answer: that it was accepted, or why not."""
        while True:
            began_s = time.monotonic()
            try:
                await ask()
            except refusal as error:
                return f"refused: {error}"
            except WatershipError:  # nobody there, no answer, the saga is not there yet
                await asyncio.sleep(ASK_AGAIN_S * random.uniform(0.2, 1.0))
            else:
                # A signal that nobody answers is on the broker's disk, and may yet come too late: so it is sent again.
                if time.monotonic() - began_s < ANSWERED_WITHIN_S:
                    return ACCEPTED

    async def _hear(self, saga_id: uuid.UUID) -> None:
        status = await self._end_of(saga_id)
        await self._recorder.write("INSERT INTO told (saga_id, status) VALUES ($1, $2)", saga_id, status)

    async def _end_of(self, saga_id: uuid.UUID) -> str:
        while True:
            try:
                result = await self._mediator.result(saga_id, timeout_s=TOLD_WITHIN_S)
            except WatershipError as error:
                if error.code == "saga_conflict":
                    return f"refused: {error}"
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                return "parked" if result.parked_reason is not None else str(result.status)


async def main(seed: int, count: int, per_second: float) -> None:
    """Places all orders that are not confirmed yet; ends when every one has ended, and all is said."""
    recorder = Recorder(os.environ["LEDGER_URL"])
    mediator = bootstrap(
        sagas_mapper=sagas, broker_url=os.environ["CHAOS_BROKER_URL"], namespace=os.environ["CHAOS_NAMESPACE"]
    )
    client, tasks = Client(mediator, recorder, await Memory.of(recorder)), []
    began_s = float(os.environ["CHAOS_BEGAN_S"])
    say("ready")
    for number, placed in enumerate(orders(seed, count)):
        # One that was killed is behind, and places at once what should be placed by now.
        await asyncio.sleep(max(0.0, began_s + number / per_second - time.time()))
        tasks.append(asyncio.create_task(client.place(placed)))
    say("placed all")
    await asyncio.gather(*tasks)
    say("heard of all")


def _id(row: Any) -> uuid.UUID:
    return uuid.UUID(bytes=row["saga_id"].bytes)


def say(line: str) -> None:
    """One line for whoever watches."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
