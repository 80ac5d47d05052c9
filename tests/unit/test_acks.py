"""Acknowledgements that nothing waits for: held back for a moment, never forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from watership.bus.acks import WITHIN_S, Acks
from watership.bus.protocol import Delivery
from watership.testing.virtual_loop import new_loop


class Broker:
    """What was acknowledged, when and with what; each takes ``takes_s``."""

    def __init__(self, takes_s: float = 0, fails: int = 0) -> None:
        self.told: list[tuple[float, list[int]]] = []
        self._takes_s, self._fails = takes_s, fails
        self._began_s = asyncio.get_running_loop().time()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await asyncio.sleep(self._takes_s)
        if self._fails:
            self._fails -= 1
            raise ZeroDivisionError
        passed_s = round(asyncio.get_running_loop().time() - self._began_s, 6)
        self.told.append((passed_s, [one.handle for one in deliveries]))

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        raise AssertionError("nothing here rejects")


def delivery(number: int) -> Delivery:
    return Delivery("q", b"", "kind", None, None, None, False, {}, number)


def run(main: Coroutine[Any, Any, None]) -> None:
    loop = new_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.dispose([])


def test_what_comes_within_a_moment_goes_together() -> None:
    async def main() -> None:
        broker = Broker()
        acks = Acks(broker)
        acks.add([delivery(1)])
        await asyncio.sleep(WITHIN_S / 2)
        acks.add([delivery(2), delivery(3)])
        await asyncio.sleep(WITHIN_S)
        acks.add([delivery(4)])
        await asyncio.sleep(10)
        assert broker.told == [(WITHIN_S, [1, 2, 3]), (2.5 * WITHIN_S, [4])]

    run(main())


def test_so_many_wait_for_nothing() -> None:
    async def main() -> None:
        broker = Broker()
        acks = Acks(broker, together_max=3)
        for number in range(7):
            acks.add([delivery(number)])
            await asyncio.sleep(0)
        await asyncio.sleep(WITHIN_S / 2)
        assert broker.told == [(0, [0, 1, 2]), (0, [3, 4, 5])]
        await asyncio.sleep(WITHIN_S)
        assert broker.told[2:] == [(WITHIN_S, [6])]

    run(main())


def test_what_comes_while_others_are_told_is_told_too_and_so_is_what_comes_after() -> None:
    """The broker takes longer than the moment: the timer of the second finds the first still under way."""

    async def main() -> None:
        broker = Broker(takes_s=2 * WITHIN_S)
        acks = Acks(broker)
        acks.add([delivery(1)])
        await asyncio.sleep(1.5 * WITHIN_S)
        acks.add([delivery(2)])
        await asyncio.sleep(10)
        acks.add([delivery(3)])
        await asyncio.sleep(10)
        assert [numbers for _, numbers in broker.told] == [[1], [2], [3]]

    run(main())


def test_at_the_end_all_are_told_at_once() -> None:
    async def main() -> None:
        broker = Broker()
        acks = Acks(broker)
        acks.add([delivery(1), delivery(2)])
        await acks.flush()
        assert broker.told == [(0, [1, 2])]
        await asyncio.sleep(10)
        assert broker.told == [(0, [1, 2])]

    run(main())


def test_what_failed_is_told_again_and_costs_no_other() -> None:
    async def main() -> None:
        broker = Broker(fails=2)
        acks = Acks(broker)
        acks.add([delivery(1)])
        await asyncio.sleep(1.5 * WITHIN_S)
        acks.add([delivery(2)])
        await asyncio.sleep(10)
        assert broker.told == [(0.3, [1, 2])]

    run(main())


def test_an_end_does_not_wait_for_what_cannot_be_told() -> None:
    async def main() -> None:
        acks = Acks(Broker(fails=1_000))
        acks.add([delivery(1)])
        await acks.flush()

    run(main())


def test_an_end_waits_for_what_is_under_way() -> None:
    async def main() -> None:
        broker = Broker(takes_s=1)
        acks = Acks(broker, together_max=1)
        acks.add([delivery(1)])
        await asyncio.sleep(0.5)
        await acks.flush()
        assert broker.told == [(1, [1])]

    run(main())
