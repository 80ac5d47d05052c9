"""A client of the chaos runs: `python -m tests.chaos.client SEED COUNT PER_SECOND`. Starts sagas, whatever happens.

Open loop: orders come at their pace, however long the earlier ones take. Each is started again, with the same id,
until it is confirmed. It writes down what it is about to start, what was confirmed, and how it was told that a saga
ended: straight into the ledger, which is no part of what is tested. Started again, it goes on where it was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg

from watership import SagaMediator, bootstrap
from watership.errors import WatershipError

from tests.chaos.orders import Order, orders
from tests.chaos.steps import sagas

ASK_AGAIN_S = 1.0
TOLD_WITHIN_S = 600.0


class Recorder:
    """Writes lines into the ledger, several at once; waits until they are there."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None

    async def write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Again and again: its server, too, is killed in these runs."""
        while True:
            try:
                if self._pool is None:
                    self._pool = await asyncpg.create_pool(
                        self._url, min_size=0, max_size=3, timeout=5, command_timeout=5
                    )
                await self._pool.executemany(statement, rows)
                return
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await asyncio.sleep(ASK_AGAIN_S)

    async def confirmed(self) -> set[uuid.UUID]:
        """What was confirmed in an earlier life."""
        while True:
            try:
                connection = await asyncpg.connect(self._url, timeout=5)
                rows = await connection.fetch("SELECT saga_id FROM ack")
                await connection.close()
                return {uuid.UUID(bytes=row["saga_id"].bytes) for row in rows}
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await asyncio.sleep(ASK_AGAIN_S)


class Client:
    """Places orders."""

    def __init__(self, mediator: SagaMediator, recorder: Recorder) -> None:
        self._mediator = mediator
        self._recorder = recorder

    async def place(self, saga_id: uuid.UUID, order: Order) -> None:
        """Starts one saga until that is confirmed, and waits for its end."""
        intent = "INSERT INTO intent (saga_id, context) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        await self._recorder.write(intent, [(saga_id, json.dumps(vars(order)))])
        tries = 0
        while True:
            tries += 1
            try:
                await self._mediator.start(order, saga_id=saga_id)
                break
            except WatershipError:  # full, down, not confirmed: the same id again
                await asyncio.sleep(ASK_AGAIN_S * random.uniform(0.2, 1.0))
        ack = "INSERT INTO ack (saga_id, tries) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        await self._recorder.write(ack, [(saga_id, tries)])
        status = await self._end_of(saga_id)
        await self._recorder.write("INSERT INTO told (saga_id, status) VALUES ($1, $2)", [(saga_id, status)])

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
    """Places all orders that are not confirmed yet; ends when every one has ended."""
    recorder = Recorder(os.environ["LEDGER_URL"])
    mediator = bootstrap(
        sagas_mapper=sagas, broker_url=os.environ["CHAOS_BROKER_URL"], namespace=os.environ["CHAOS_NAMESPACE"]
    )
    confirmed = await recorder.confirmed()
    client, tasks = Client(mediator, recorder), []
    began_s = float(os.environ["CHAOS_BEGAN_S"])
    say("ready")
    for number, (saga_id, order) in enumerate(orders(seed, count)):
        if saga_id in confirmed:
            continue
        # One that was killed is behind, and places at once what should be placed by now.
        await asyncio.sleep(max(0.0, began_s + number / per_second - time.time()))
        tasks.append(asyncio.create_task(client.place(saga_id, order)))
    say("placed all")
    await asyncio.gather(*tasks)
    say("heard of all")


def say(line: str) -> None:
    """One line for whoever watches."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
