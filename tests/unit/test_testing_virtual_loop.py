"""The event loop in virtual time: it jumps, it is deterministic, and it can stop or end one process at any point."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from watership.testing.virtual_loop import Lane, Stuck, VirtualLoop, new_loop


def run(main: Coroutine[Any, Any, Any], loop: VirtualLoop | None = None, *lanes: Lane) -> Any:
    loop = loop or new_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.dispose(list(lanes))


def test_hours_pass_at_once() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(asyncio.sleep(3_600), asyncio.sleep(7_200))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()
        return loop.time() - began

    assert run(main()) == 7_260


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    def order(seed: int) -> list[str]:
        loop = new_loop(random.Random(seed))
        lanes = [Lane(name) for name in "abc"]
        seen: list[str] = []

        async def work(name: str) -> None:
            for turn in range(5):
                seen.append(f"{name}{turn}")
                await asyncio.sleep(0)

        async def main() -> None:
            await asyncio.gather(*(loop.create_task(work(lane.name), context=lane.context) for lane in lanes))

        run(main(), loop, *lanes)
        return seen

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(10)}) > 5
    for name in "abc":
        assert [one for one in order(3) if one[0] == name] == [f"{name}{turn}" for turn in range(5)]


def test_a_lane_that_was_halted_finds_all_its_timers_late_at_once() -> None:
    loop, lane, seen = new_loop(), Lane("zombie"), list[float]()

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            seen.append(loop.time() - 1_000)

    async def main() -> None:
        task = loop.create_task(work(), context=lane.context)
        await asyncio.sleep(1.5)
        loop.halt(lane)
        await asyncio.sleep(100)
        assert seen == [1.0]
        loop.resume(lane)
        await task

    run(main(), loop, lane)
    assert seen == [1.0, 101.5, 102.5]


def test_a_lane_that_was_killed_runs_no_finally() -> None:
    loop, lane, seen = new_loop(), Lane("dead"), list[str]()

    async def work() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            seen.append("finally")

    async def main() -> None:
        loop.create_task(work(), context=lane.context)
        await asyncio.sleep(1)
        loop.kill(lane)
        await asyncio.sleep(100)
        assert seen == []

    run(main(), loop, lane)


def test_a_task_begins_on_the_lane_of_its_maker() -> None:
    loop, lane, seen = new_loop(), Lane("maker"), list[str]()

    async def child() -> None:
        await asyncio.sleep(1)
        seen.append("child")

    async def work() -> None:
        asyncio.create_task(child())  # noqa: RUF006 - the lane keeps it

    async def main() -> None:
        await loop.create_task(work(), context=lane.context)
        loop.kill(lane)
        await asyncio.sleep(10)

    run(main(), loop, lane)
    assert seen == []


def test_waiting_for_ever_is_said() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="nothing will ever come"):
        run(main())


def test_there_is_no_network() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", 1, family=socket.AF_INET)

    with pytest.raises(NotImplementedError):
        run(main())


def test_what_nobody_caught_is_kept() -> None:
    loop = new_loop()

    def fails() -> None:
        raise ValueError("nobody")

    async def main() -> None:
        loop.call_soon(fails)
        await asyncio.sleep(1)

    run(main(), loop)
    assert [str(error["exception"]) for error in loop.errors] == ["nobody"]
