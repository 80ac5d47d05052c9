"""The inbox: replies first, and nobody starves."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, cast

from watership_orchestrator.inbox import STARTS_SHARE, Inbox


@dataclasses.dataclass(frozen=True)
class Letter:
    queue: str
    number: int


def filled(replies: int, others: int) -> Inbox:
    inbox = Inbox()
    for number in range(replies):
        inbox.put_reply(cast("Any", Letter("replies", number)))
    for number in range(others):
        inbox.put(cast("Any", Letter("start", number)))
    return inbox


async def take(inbox: Inbox, size_max: int) -> list[str]:
    return [f"{letter.queue}{cast('Any', letter).number}" for letter in await inbox.take(size_max)]


async def test_replies_go_first_in_their_order() -> None:
    assert await take(filled(2, 2), 10) == ["replies0", "replies1", "start0", "start1"]
    assert await take(filled(0, 3), 2) == ["start0", "start1"]
    assert await take(filled(3, 0), 2) == ["replies0", "replies1"]


async def test_under_a_flood_of_replies_starts_have_their_share() -> None:
    size = STARTS_SHARE * 4
    inbox = filled(1_000, 1_000)
    batch = await take(inbox, size)
    assert len(batch) == size
    assert sum(name.startswith("start") for name in batch) == size // STARTS_SHARE
    assert len(inbox) == 2_000 - size


async def test_a_flood_of_starts_fills_what_replies_leave() -> None:
    batch = await take(filled(3, 1_000), 16)
    assert batch[:3] == ["replies0", "replies1", "replies2"]
    assert len(batch) == 16


async def test_a_small_batch_still_moves() -> None:
    inbox = filled(1, 1)
    assert sorted([*await take(inbox, 1), *await take(inbox, 1)]) == ["replies0", "start0"]


async def test_what_is_put_back_comes_first_in_its_order() -> None:
    inbox = filled(2, 2)
    batch = await inbox.take(2)
    inbox.put_back(batch, replies_queue="replies")
    assert await take(inbox, 10) == ["replies0", "replies1", "start0", "start1"]


async def test_an_empty_inbox_waits() -> None:
    inbox = Inbox()
    waiting = asyncio.create_task(take(inbox, 5))
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.put(cast("Any", Letter("start", 7)))
    assert await waiting == ["start7"]
