"""Sagas for the tests of the stores: made by the machine, so that their logs are logs that can be."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

from watership.codec import input_hash
from watership.machine import events as e
from watership.machine.apply import apply, fold
from watership.machine.changes import Change
from watership.machine.nodes import RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import Action, Failure, Outcome, SagaState
from watership.saga.storage.protocol import HeldElsewhere, Lease, LogEntry, SagaStorage

PLAN = Plan(
    "Order",
    tuple(StepPlan(name, name, compensation_retry=RetryPlan(attempts_max=1)) for name in ("Reserve", "Charge", "Ship")),
)
CONTEXT = {"order_id": "o-1", "items": ["a", "b"], "note": "naïve ✓ \\ \" '"}
LEASE_MS = 60_000


class StoredSaga:
    """One saga, its state as its driver knows it, and the writes that bring the store there."""

    def __init__(self, storage: SagaStorage, *, name: str = "Order") -> None:
        self.storage, self.saga_id = storage, uuid.uuid4()
        self.state = SagaState(str(self.saga_id))
        self.name = name
        self.lease: Lease | None = None
        self.entries: list[LogEntry] = []

    def decide(self, event: e.Event, *, now_ms: int | None = None) -> list[LogEntry]:
        """Lets the machine decide; nothing is written."""
        now = int(time.time() * 1000) if now_ms is None else now_ms
        reaction = react(PLAN, self.state, event, now)
        assert reaction.changes, f"{event} moved nothing"
        self.state = reaction.state
        return self._logged(now, reaction.changes)

    def _logged(self, now_ms: int, changes: tuple[Change, ...]) -> list[LogEntry]:
        entries = [LogEntry(self.state.seq, now_ms, f"test:{self.state.seq}", changes)]
        self.entries += entries
        return entries

    async def create(self, *, lease_ms: int = LEASE_MS) -> StoredSaga:
        """Starts the saga in the store."""
        (entry,) = self.decide(e.SagaStarted(self.name, dict(CONTEXT), PLAN.hash))
        hash_ = input_hash(self.name, CONTEXT)
        lease = await self.storage.create(self.saga_id, self.state, entry, input_hash=hash_, lease_ms=lease_ms)
        assert lease is not None
        assert (lease.epoch, lease.until_ms - lease.now_ms) == (1, lease_ms)
        self.lease = lease
        return self

    async def commit(self, event: e.Event, *, release: bool = False, now_ms: int | None = None) -> None:
        """Decides and writes."""
        entries = self.decide(event, now_ms=now_ms)
        assert self.lease is not None
        await self.storage.commit(self.lease, self.state, entries, release=release)

    async def commit_changes(self, *changes: Change) -> None:
        """Writes changes that the machine did not decide just so: whatever can be folded must be kept."""
        self.state = self.state.copy()
        self.state.seq += 1
        for change in changes:
            apply(self.state, change)
        assert self.lease is not None
        await self.storage.commit(self.lease, self.state, self._logged(1, changes), release=False)

    async def act(self, step: str, *, release: bool = False) -> None:
        """A step's act is done."""
        patch = {"last": step, "nested": {"of": [step]}}
        await self.commit(
            e.StepReplied(step, Action.ACT, 1, f"run-{step}", Outcome.DONE, patch=patch, response={"id": 7}),
            release=release,
        )

    async def fail(self, step: str, action: Action = Action.ACT) -> None:
        """An action fails."""
        failure = Failure("declined", "CardDeclined", "no money", ("declined", "step_error"), step)
        await self.commit(e.StepReplied(step, action, 1, f"no-{step}", Outcome.FAILED, failure=failure))

    async def undo(self, step: str) -> None:
        """A step's compensation is done."""
        await self.commit(e.StepReplied(step, Action.COMPENSATE, 1, f"undo-{step}", Outcome.DONE))

    async def complete(self) -> None:
        """Every step acts; the last write gives the lease up."""
        for step in PLAN.steps():
            await self.act(step.name, release=step is PLAN.nodes[-1])

    async def park(self) -> None:
        """A compensation runs out of attempts."""
        await self.act("Reserve")
        await self.fail("Charge")
        await self.fail("Reserve", Action.COMPENSATE)
        assert self.state.parked_reason is not None


async def assert_stored(saga: StoredSaga) -> None:
    """The row is what the driver decided, and what folding the log gives (law 8)."""
    record = await saga.storage.load(saga.saga_id)
    assert record is not None
    assert record.state == saga.state
    history = await saga.storage.history(saga.saga_id)
    assert history == saga.entries
    assert fold(str(saga.saga_id), [entry.changes for entry in history]) == record.state


async def eventually(look: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> None:
    """Polls until it is so; fails after ``within_s``."""
    async with asyncio.timeout(within_s):
        while not await look():  # a database tells nobody when its answer changes
            await asyncio.sleep(0.005)


async def acquire_when_free(storage: SagaStorage, saga_id: uuid.UUID) -> Lease:
    """Waits as a second driver would."""
    async with asyncio.timeout(10):
        while True:
            lease = await storage.acquire(saga_id, lease_ms=LEASE_MS)
            assert lease is not None
            if not isinstance(lease, HeldElsewhere):
                return lease
            await asyncio.sleep(min(lease.retry_in_ms, 50) / 1000)
