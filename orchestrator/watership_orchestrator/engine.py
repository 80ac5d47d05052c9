"""The shell: a batch of arrivals -> decided and committed -> publish -> what became of each. The judgement is elsewhere.

The order is the law (1): commit, then publish, then acknowledge. An unacknowledged message is the outbox of its
transition; a transition without a message is owed in its row from the commit on, until the broker has confirmed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Sequence

from watership.bus.gathering import publish_gathered
from watership.bus.protocol import Bus, Fate, Message
from watership.bus.topology import Topology
from watership.chance import SYSTEM_CHANCE
from watership.errors import StoreUnavailable
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.database import is_passing
from watership_orchestrator.decided import BatchResult, Decided
from watership_orchestrator.deciding import Decider
from watership_orchestrator.judgement import Judgement
from watership_orchestrator.outbox import Outgoing, messages_of, rejection_message
from watership_orchestrator.owed import events_reason, is_in_doubt, returned_reason
from watership_orchestrator.ports import PlanShelf, SagaStore

__all__ = ["BatchResult", "Engine"]

log = logging.getLogger("watership.orchestrator")

PUBLISH_WINDOW_S = 5.0
OWED_RETRY_MS = 5_000
UNMADE_RETRY_MS = 60_000
TOGETHER_MAX = 10  # commands in a message: what is done is done again with what ends its worker
SPREAD = 8  # messages for each step's queue, before its commands are gathered: several workers may wait there


class Engine:
    """Decides and sends for one namespace. Any number of them run side by side; row locks keep them apart."""

    def __init__(
        self,
        store: SagaStore,
        bus: Bus,
        plans: PlanShelf,
        topology: Topology,
        *,
        now_s: Callable[[], float] = time.monotonic,
        chance: random.Random = SYSTEM_CHANCE,
    ) -> None:
        self._store = store
        self._bus = bus
        self._plans = plans
        self._topology = topology
        self._now_s = now_s
        self._decider = Decider(store, plans, now_s=now_s, chance=chance)
        self._turn = asyncio.Lock()

    async def process(self, arrivals: Sequence[Arrival]) -> BatchResult:
        """Judges, commits, publishes. On return, each arrival that the result does not name may be acknowledged.

        What can be decided without being read is sent while the rest is: neither waits for the other, nor fails with it.
        """
        generation = self._bus.generation
        first, left_over = await self._decider.advance(arrivals)
        if first is None:
            return await self._process_read(arrivals)
        if not left_over:
            return await self._send(arrivals, first, generation)
        sent = [arrival for arrival in arrivals if arrival.saga_id in first.result.states]
        parts = await asyncio.gather(
            self._send(sent, first, generation), self._process_read(left_over), return_exceptions=True
        )
        result = BatchResult()
        for part in parts:
            if isinstance(part, BatchResult):
                result.take_in(part)
            elif isinstance(part, StoreUnavailable):  # they come again; what was sent must not
                result.redeliver.extend(arrival for arrival in left_over if arrival.message is not None)
            else:
                raise part
        return result

    async def _process_read(self, arrivals: Sequence[Arrival]) -> BatchResult:
        """What is decided by the transaction that reads it."""
        generation = self._bus.generation
        try:
            decided = await self._decider.decide(arrivals)
        except StoreUnavailable:
            for arrival in arrivals:  # some of it may have been committed, and nobody was told
                arrival.in_doubt = True
            raise
        return await self._send(arrivals, decided, generation)

    async def look(self, limit: int) -> int:
        """The reaper's batch: what is due or owed, oldest first. How many it found; fewer than ``limit``: that was all.

        Several looks may be under way: while one sends what it decided, the next decides.
        """
        async with self._turn:
            generation = self._bus.generation
            found, decided = await self._decider.due(limit)
        if decided is not None:
            await self._send((), decided, generation)
        return found

    # --- sending

    async def _send(self, arrivals: Sequence[Arrival], decided: Decided, generation: int) -> BatchResult:
        late = self._now_s() - decided.began_s > PUBLISH_WINDOW_S or self._bus.generation != generation
        if late:  # law 3: a process that was stopped publishes nothing old
            log.warning(
                "a batch of %d was committed too long ago, or its channel is gone: it comes again",
                len(decided.judgements),
            )
            return _all_again(arrivals)
        try:
            moved = await self._publish(decided)
        except Exception as error:
            if not is_passing(error):
                raise
            self._decider.saw_trouble()
            # What is owed could not be marked: the messages must come again, or the reaper must look.
            log.warning("the database does not answer (%s): a batch of %d comes again", error, len(decided.judgements))
            return _all_again(arrivals)
        # Only the broker can bring a message again as redelivered: what is in doubt must not lose that.
        result = decided.result
        # A saga that moved since does not owe in its row: its message stays the outbox of what was not confirmed.
        result.redeliver.extend(arrival for arrival in arrivals if arrival.saga_id in moved and arrival.message)
        result.redeliver.extend(arrival for arrival in result.again if arrival.in_doubt)
        result.again = [arrival for arrival in result.again if not arrival.in_doubt]
        return result

    async def _publish(self, decided: Decided) -> set[uuid.UUID]:
        """Sends; the sagas that owe something and moved before that could be marked."""
        outgoing: list[Outgoing] = []
        unmade: dict[uuid.UUID, str] = {}
        for judgement in decided.judgements:
            plan = decided.plans.of(judgement.state) if judgement.state is not None else None
            try:
                outgoing.extend(messages_of(judgement, plan, self._topology))
            except Exception as error:  # one saga's plan or state must not keep the others' messages back
                log.exception("saga %s: what it sends cannot be made", judgement.saga_id)
                unmade[judgement.saga_id] = f"unmade: {type(error).__name__}: {error}"
        rejections = decided.result.rejections
        answers = {index: rejection_message(rejection) for index, rejection in enumerate(rejections)}
        told = {index: message for index, message in answers.items() if message is not None}
        messages: list[Message] = [item.message for item in outgoing]
        messages.extend(told.values())
        alone = {index for index in range(len(messages)) if index >= len(outgoing) or not outgoing[index].gathers}
        fates: list[Fate] = []
        if messages:
            fates = await publish_gathered(self._bus, messages, spread=SPREAD, parts_max=TOGETHER_MAX, alone=alone)
        untold = {index for index, fate in zip(told, fates[len(outgoing) :], strict=True) if fate is not Fate.CONFIRMED}
        decided.result.redeliver.extend(rejections[index].arrival for index in untold)
        return await self._settle(decided.judgements, list(zip(outgoing, fates, strict=False)), unmade)

    async def _settle(
        self, judgements: list[Judgement], sent: list[tuple[Outgoing, Fate]], unmade: dict[uuid.UUID, str]
    ) -> set[uuid.UUID]:
        """Marks what is not confirmed as owed, and what was owed and is confirmed now as settled.

        Gives those that could not be marked, because they have moved.
        """
        seqs = {j.saga_id: j.state.seq for j in judgements if j.state is not None}
        owing: dict[uuid.UUID, str] = {}
        for item, fate in sent:
            if not item.required or fate is Fate.CONFIRMED or is_in_doubt(owing.get(item.saga_id)):
                continue
            if item.command is not None or item.saga_id not in owing:
                owing[item.saga_id] = _owed_reason(item, fate)
        moved: set[uuid.UUID] = set()
        self._decider.forget([*owing, *unmade])  # their rows are written once more
        if owing:
            lines = [(saga_id, seqs[saga_id], reason) for saga_id, reason in owing.items()]
            moved = set(owing) - await self._store.owe(lines, wake_in_ms=OWED_RETRY_MS)
        if unmade:
            lines = [(saga_id, seqs[saga_id], reason) for saga_id, reason in unmade.items()]
            await self._store.owe(lines, wake_in_ms=UNMADE_RETRY_MS)
        settled = [
            (j.saga_id, seqs[j.saga_id])
            for j in judgements
            if j.settles and j.saga_id in seqs and j.saga_id not in owing and j.saga_id not in unmade
        ]
        self._decider.forget(saga_id for saga_id, _ in settled)
        if settled:
            await self._store.settle(settled)
        return moved


def _all_again(arrivals: Sequence[Arrival]) -> BatchResult:
    """Nothing was sent: every message must come again, to be known, and to send what followed from it."""
    return BatchResult(redeliver=[arrival for arrival in arrivals if arrival.message is not None])


def _owed_reason(item: Outgoing, fate: Fate) -> str:
    key = item.message.routing_key
    if fate is Fate.RETURNED and item.command is not None:
        return returned_reason(item.command, f"no worker has ever served its step, no queue is bound to {key}")
    words = f"the broker did not confirm {key}"
    return f"{fate}: {words}" if item.command is not None else events_reason(words)
