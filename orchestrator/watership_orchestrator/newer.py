"""What arrives for sagas that a newer orchestrator has written (law 8): handed back, gently, and kept if nobody takes it.

Handed back to the broker at once it would come again at once, thousands of times a second. So it is held for a while first,
longer each time; and a start or a reply that came back too often is put on the shelf of dead letters, where a newer reaper
finds it. It holds up nothing else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import Sequence

from watership.bus.gathering import Parcels, is_part
from watership.bus.protocol import Delivery
from watership.messages import StartSaga, StepReply
from watership.service import Tasks
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.dead_letters import DeadLetters, letter_of

log = logging.getLogger("watership.orchestrator")

HOLD_MIN_S, HOLD_MAX_S = 0.1, 5.0
RETURNS_MAX = 4
REASON = "newer_machine"


def returns_of(delivery: Delivery) -> int:
    """How often it was handed back before, as a quorum queue counts."""
    count = delivery.headers.get("x-delivery-count")
    return count if isinstance(count, int) and not isinstance(count, bool) else int(delivery.redelivered)


def hold_s(returns: int) -> float:
    """How long it is held before it is handed back once more."""
    return HOLD_MIN_S if returns <= 0 else min(HOLD_MIN_S * 2.0 ** min(returns, 10), HOLD_MAX_S)


class NewerSagas:
    """Holds, hands back and keeps, beside the batches."""

    def __init__(self, parcels: Parcels, letters: DeadLetters, tasks: Tasks, chance: random.Random) -> None:
        self._parcels = parcels
        self._letters = letters
        self._tasks = tasks
        self._chance = chance
        self._closing = asyncio.Event()

    def take(self, arrivals: Sequence[tuple[Arrival, Delivery]]) -> None:
        """From here on they are its own."""
        kept: list[Delivery] = []
        by_returns: dict[int, list[Delivery]] = {}
        for arrival, delivery in arrivals:
            returns = returns_of(delivery)
            if returns >= RETURNS_MAX and isinstance(arrival.message, StartSaga | StepReply):
                kept.append(delivery)
            else:
                by_returns.setdefault(returns, []).append(delivery)
        if kept:
            self._tasks.begin(self._keep(kept), name="keep for newer")
        for returns, deliveries in by_returns.items():
            self._tasks.begin(self._hand_back(deliveries, hold_s(returns)), name="hand back to newer")

    def close(self) -> None:
        """Whatever is held is handed back now."""
        self._closing.set()

    async def _hand_back(self, deliveries: Sequence[Delivery], held_s: float) -> None:
        try:
            async with asyncio.timeout(held_s * self._chance.uniform(0.75, 1.25)):
                await self._closing.wait()
        except TimeoutError:
            pass
        for delivery in deliveries:
            # What came with others does not bring them with it, unless it must say that it was delivered before.
            if not is_part(delivery) or delivery.redelivered or not await self._parcels.hand_back(delivery):
                await self._parcels.reject(delivery, requeue=True)

    async def _keep(self, deliveries: Sequence[Delivery]) -> None:
        letters = [dataclasses.replace(letter_of(delivery), reason=REASON, judge=True) for delivery in deliveries]
        try:
            await self._letters.keep_all(letters)
        except Exception as error:  # noqa: BLE001 - whatever it is, the broker still has them
            log.warning("messages for sagas of a newer version cannot be kept (%s): they come again", error)
            await self._hand_back(deliveries, HOLD_MAX_S)
            return
        log.warning(
            "%d messages are for sagas that a newer version of the orchestrator has written, and none took them: they are "
            "kept for one (`watership dead list`)",
            len(deliveries),
        )
        await self._parcels.ack(deliveries)
