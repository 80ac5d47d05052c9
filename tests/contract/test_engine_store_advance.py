"""What is decided on a remembered row is written only where the row is still as it was left: on Postgres and in memory."""

from __future__ import annotations

import uuid

from watership.saga.storage.protocol import LogEntry
from watership_orchestrator.records import Advance, ChangedRow
from watership_orchestrator.store import CLOCK_OFF_BY_MS

from tests.support.engine_ground import (
    LATER_MS,
    Ground,
    entry,
    ground,
    moved,
    new_row,
    now_ms,
    postgres_url,
    saga,
    update,
)

__all__ = ["ground", "postgres_url"]  # fixtures

ONE = uuid.UUID(int=1)


async def left(ground: Ground, *numbers: int) -> tuple[int, int]:
    """Makes sagas: the version that their rows were left with, and the database's time."""
    async with ground.store.batch() as batch:
        await batch.lock([])
        states = [saga(number) for number in numbers]
        made = await batch.insert([new_row(state) for state in states])
        entries = [(uuid.UUID(state.saga_id), entry(state, batch.now_ms)) for state in states]
        await batch.write([], entries, made)
        assert batch.version
    return batch.version, batch.now_ms


def onward(number: int, version: int, seq: int = 2, owed_reason: str | None = None) -> Advance:
    state = moved(saga(number, seq=seq - 1), now_ms() + LATER_MS)
    row = ChangedRow(uuid.UUID(int=number), state, owed_reason, looked=False)
    return Advance(row, version, [LogEntry(seq, now_ms(), "reply", ())])


async def written(ground: Ground, number: int = 1) -> tuple[int, list[int]]:
    """Where the saga's row stands, and its log."""
    saga_id = uuid.UUID(int=number)
    row = await ground.row(saga_id)
    assert row is not None
    async with ground.store.batch() as batch:
        return row["seq"], [one.seq for one in (await batch.history([saga_id]))[saga_id]]


async def test_what_is_as_it_was_left_is_written_and_so_again(ground: Ground) -> None:
    version, at_ms = await left(ground, 1, 2)
    done = await ground.store.advance([onward(1, version), onward(2, version)], at_ms)
    assert done.sagas == {ONE, uuid.UUID(int=2)}
    assert abs(done.now_ms - at_ms) < 10_000
    again = await ground.store.advance([onward(1, done.version, 3, "unconfirmed: x")], done.now_ms)
    assert again.sagas == {ONE}
    assert await written(ground) == (3, [1, 2, 3])
    assert await written(ground, 2) == (2, [1, 2])
    row = await ground.row(ONE)
    assert row is not None
    assert row["owed_reason"] == "unconfirmed: x"


async def test_what_was_written_since_is_left_out_and_the_others_are_not(ground: Ground) -> None:
    version, at_ms = await left(ground, 1, 2)
    await update(ground, moved(saga(1), now_ms() + LATER_MS))
    done = await ground.store.advance([onward(1, version), onward(2, version)], at_ms)
    assert done.sagas == {uuid.UUID(int=2)}
    assert await written(ground) == (2, [1]), "its log has what the other writer logged: nothing"
    assert await written(ground, 2) == (2, [1, 2])


async def test_a_mark_that_moved_no_log_counts_as_written(ground: Ground) -> None:
    version, at_ms = await left(ground, 1)
    assert await ground.store.owe([(ONE, 1, "events: x")], wake_in_ms=5_000) == {ONE}
    assert (await ground.store.advance([onward(1, version)], at_ms)).sagas == set()
    row = await ground.row(ONE)
    assert row is not None
    assert (row["owed"], row["seq"]) == (True, 1)


async def test_what_somebody_has_locked_is_passed_over(ground: Ground) -> None:
    version, at_ms = await left(ground, 1, 2)
    async with ground.store.batch() as batch:
        await batch.lock([ONE])
        done = await ground.store.advance([onward(1, version), onward(2, version)], at_ms)
    assert done.sagas == {uuid.UUID(int=2)}
    assert (await ground.store.advance([onward(1, version)], at_ms)).sagas == {ONE}, "a lock alone changes no row"


async def test_what_is_gone_is_left_out(ground: Ground) -> None:
    version, at_ms = await left(ground, 1)
    done = await ground.store.advance([onward(7, version)], at_ms)
    assert (done.sagas, await ground.row(uuid.UUID(int=7))) == (frozenset(), None)


async def test_nothing_is_written_for_another_time_than_the_databases(ground: Ground) -> None:
    version, _ = await left(ground, 1)
    for off_ms in (CLOCK_OFF_BY_MS + 5_000, -CLOCK_OFF_BY_MS - 5_000):
        done = await ground.store.advance([onward(1, version)], now_ms() + off_ms)
        assert done.sagas == set()
        assert abs(done.now_ms - now_ms()) < 2_000, "it says what time it is"
    assert await written(ground) == (1, [1])
    assert (await ground.store.advance([onward(1, version)], done.now_ms)).sagas == {ONE}


async def test_a_saga_is_made_without_a_look_if_the_time_is_what_was_supposed(ground: Ground) -> None:
    for off_ms, made in ((CLOCK_OFF_BY_MS + 5_000, set()), (-CLOCK_OFF_BY_MS - 5_000, set()), (0, {ONE}), (0, set())):
        async with ground.store.batch() as batch:
            at_ms = now_ms() + off_ms
            batch.suppose(at_ms)
            assert await batch.insert([new_row(saga(1))]) == made, "and an id is given once"
    row = await ground.row(ONE)
    assert row is not None
    assert row["created_at_ms"] <= at_ms
