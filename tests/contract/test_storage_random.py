"""Two stores, told the same in any order, answer alike: in memory and on SQLite. Their logs, folded, are their rows."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from watership import MemorySagaStorage, SqlAlchemySagaStorage
from watership.errors import LeaseLost
from watership.machine import events as e
from watership.machine.apply import fold
from watership.machine.react import react
from watership.machine.state import Failure, Outcome, SagaState
from watership.saga.storage.protocol import EarlySignal, Lease, LogEntry, SagaStorage

from tests.support.stored_sagas import CONTEXT, PLAN

IDS = [uuid.UUID(int=number) for number in (1, 2, 3)]
SAGAS = st.sampled_from(IDS)
# One that has run out by the next statement, and one that outlives the test: no moment in between.
LEASES_MS = st.sampled_from([0, 3_600_000])
FAR_MS = 4_000_000_000_000
Pair = tuple[Lease, Lease]


class Stores(RuleBasedStateMachine):
    """``leases``: all that were ever given, as pairs of both stores; most of them are stale."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.leases: list[Pair] = []
        self.runs = 0

    @initialize()
    def open(self) -> None:
        sqlite = SqlAlchemySagaStorage("sqlite+aiosqlite://")
        self.runner.run(sqlite.create_tables())
        self.stores: tuple[SagaStorage, SagaStorage] = (MemorySagaStorage(), sqlite)

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            self.runner.run(self.stores[1].close())
        self.runner.close()

    def both(self, ask: Callable[[SagaStorage, int], Awaitable[Any]]) -> tuple[Any, Any]:
        """What each store answers: a value, or the class of what it raises."""

        async def asked(number: int) -> Any:
            try:
                return await ask(self.stores[number], number)
            except (LeaseLost, ValueError) as error:
                return type(error)

        return self.runner.run(asked(0)), self.runner.run(asked(1))

    def alike(self, ask: Callable[[SagaStorage, int], Awaitable[Any]]) -> Any:
        first, second = self.both(ask)
        assert first == second
        return first

    def given(self, answers: tuple[Any, Any]) -> None:
        """A lease, or none: of both stores, or of neither, and of the same epoch."""
        first, second = answers
        assert type(first) is type(second)
        if isinstance(first, Lease):
            assert first.epoch == second.epoch
            self.leases.append((first, second))

    # --- what is asked of them

    @rule(saga_id=SAGAS, lease_ms=LEASES_MS)
    def create(self, saga_id: uuid.UUID, lease_ms: int) -> None:
        reaction = react(PLAN, SagaState(str(saga_id)), e.SagaStarted("Order", dict(CONTEXT), PLAN.hash), FAR_MS)
        entry = LogEntry(1, FAR_MS, "start", reaction.changes)
        self.given(
            self.both(
                lambda store, _: store.create(saga_id, reaction.state, entry, input_hash="hash", lease_ms=lease_ms)
            )
        )

    @rule(saga_id=SAGAS, lease_ms=LEASES_MS)
    def acquire(self, saga_id: uuid.UUID, lease_ms: int) -> None:
        self.given(self.both(lambda store, _: store.acquire(saga_id, lease_ms=lease_ms)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)), release=st.booleans(), behind=st.booleans())
    def commit(self, data: st.DataObject, outcome: Outcome, release: bool, behind: bool) -> None:
        """The saga moves on by one reply. ``behind``: as if by somebody who has not seen its newest entry."""
        pair = data.draw(st.sampled_from(self.leases))
        record = self.runner.run(self.stores[0].load(pair[0].saga_id))
        assert record is not None
        awaited = list(record.state.active_actions())
        if not awaited:
            return
        name, action, state = awaited[0]
        self.runs += 1
        failure = None if outcome is Outcome.DONE else Failure("boom", "Boom", "boom", ("boom",), name)
        patch = {"last": name} if outcome is not Outcome.FAILED else None
        event = e.StepReplied(name, action, state.attempt, f"run-{self.runs}", outcome, patch, None, failure)
        reaction = react(PLAN, record.state, event, FAR_MS)
        seq = reaction.state.seq - behind
        reaction.state.seq = seq
        entries = [LogEntry(seq, FAR_MS, f"reply:{self.runs}", reaction.changes)]
        self.alike(lambda store, number: store.commit(pair[number], reaction.state, entries, release=release))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), retry_in_ms=st.sampled_from([None, 0, 3_600_000]))
    def release(self, data: st.DataObject, retry_in_ms: int | None) -> None:
        pair = data.draw(st.sampled_from(self.leases))
        self.alike(lambda store, number: store.release(pair[number], retry_in_ms=retry_in_ms))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lease_ms=LEASES_MS)
    def renew(self, data: st.DataObject, lease_ms: int) -> None:
        pairs = data.draw(st.lists(st.sampled_from(self.leases), max_size=3))
        self.alike(lambda store, number: store.renew([pair[number] for pair in pairs], lease_ms=lease_ms))

    @rule(saga_id=SAGAS, signal_id=st.sampled_from(["s-1", "s-2"]), text=st.sampled_from(["a", "naïve ✓"]))
    def keep_signal(self, saga_id: uuid.UUID, signal_id: str, text: str) -> None:
        self.alike(lambda store, _: store.keep_signal(EarlySignal(saga_id, signal_id, "go", {"text": text})))

    @rule(saga_id=SAGAS, signal_id=st.sampled_from(["s-1", "s-2"]))
    def forget_signal(self, saga_id: uuid.UUID, signal_id: str) -> None:
        self.alike(lambda store, _: store.forget_signal(EarlySignal(saga_id, signal_id, "go", None)))

    @rule(limit=st.integers(1, 3))
    def due(self, limit: int) -> None:
        first, second = self.both(lambda store, _: store.due(names=["Order"], limit=limit))
        assert len(first) == len(second)
        if limit == len(IDS):
            assert set(first) == set(second)

    # --- what holds then

    @invariant()
    def rows_and_logs_are_alike(self) -> None:
        if not hasattr(self, "stores"):
            return
        for saga_id in IDS:
            rows = self.both(lambda store, _, saga_id=saga_id: store.load(saga_id))  # type: ignore[misc]
            history = self.alike(lambda store, _, saga_id=saga_id: store.history(saga_id))  # type: ignore[misc]
            assert (rows[0] is None) == (rows[1] is None) == (not history)
            if history:
                state = fold(str(saga_id), [entry.changes for entry in history])
                assert state == rows[0].state == rows[1].state
                assert [entry.seq for entry in history] == list(range(1, state.seq + 1))

    @invariant()
    def signals_are_alike(self) -> None:
        if hasattr(self, "stores"):
            for saga_id in IDS:
                first, second = self.both(lambda store, _, saga_id=saga_id: store.early_signals(saga_id=saga_id))  # type: ignore[misc]
                assert {each.signal_id: each for each in first} == {each.signal_id: each for each in second}


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
