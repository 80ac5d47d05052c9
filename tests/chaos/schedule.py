"""When what strikes, from one seed; and the carrying out of it. The same seed plans the same strikes on any machine."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tests.chaos.nemeses import Miss, Nemesis

# A strike that could not be is tried again for so long.
LATE_S = 15.0
TRY_AGAIN_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Strike:
    """``nemesis`` strikes ``at_s`` seconds after the beginning, for ``for_s`` seconds."""

    at_s: float
    for_s: float
    nemesis: str


@dataclasses.dataclass(slots=True)
class Struck:
    """A strike as it came. ``healed_s`` and the others count from the beginning; ``missed``: why it could not be."""

    nemesis: str
    what: str
    began_s: float
    healed_s: float | None = None
    missed: bool = False


class HasIntervals(Protocol):
    """What the plan must know of a nemesis."""

    name: str
    every_s: tuple[float, float]
    for_s: tuple[float, float]


def plan(seed: int, nemeses: Iterable[HasIntervals], duration_s: float) -> list[Strike]:
    """All strikes of a run, in their order. Each nemesis comes once at least, in time to be healed at the end."""
    strikes: list[Strike] = []
    for nemesis in nemeses:
        # Of its own, so that one nemesis more or less does not change the others.
        chance = random.Random(f"{seed} {nemesis.name}")
        latest_s = min(max(duration_s - nemesis.for_s[1], 0.1 * duration_s), 2 * nemesis.every_s[1])
        at_s = chance.uniform(0.02, 1.0) * latest_s
        while at_s < duration_s:
            for_s = min(chance.uniform(*nemesis.for_s), max(duration_s - at_s, 0.0))
            strikes.append(Strike(at_s, for_s, nemesis.name))
            at_s += for_s + chance.uniform(*nemesis.every_s)
    return sorted(strikes, key=lambda strike: (strike.at_s, strike.nemesis))


class Season:
    """Carries a plan out. ``say`` is told each strike."""

    def __init__(self, seed: int, nemeses: Sequence[Nemesis], say: Callable[[str], None]) -> None:
        self._nemeses = {nemesis.name: nemesis for nemesis in nemeses}
        self._seed = seed
        self._say = say
        self._began_s = time.monotonic()
        self.struck: list[Struck] = []

    async def run(self, strikes: Sequence[Strike], duration_s: float) -> None:
        """Strikes and heals, each nemesis by itself, for so long; all is healed on return."""
        self._began_s = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(duration_s))
                for name in self._nemeses:
                    own = [strike for strike in strikes if strike.nemesis == name]
                    group.create_task(self._follow(name, own, duration_s), name=name)
        finally:
            for nemesis in self._nemeses.values():  # also when the run is broken off
                await nemesis.heal()

    async def _follow(self, name: str, strikes: Sequence[Strike], until_s: float) -> None:
        nemesis = self._nemeses[name]
        for number, strike in enumerate(strikes):
            await asyncio.sleep(strike.at_s - self._now_s)
            while True:  # what is in its way passes, mostly
                try:
                    chance = random.Random(f"{self._seed} {name} {number}")
                    what, missed = await nemesis.strike(chance), False
                    break
                except Miss as why:
                    what, missed = str(why), True
                if self._now_s > min(strike.at_s + LATE_S, until_s):
                    break
                await asyncio.sleep(TRY_AGAIN_S)
            struck = Struck(name, what, self._now_s, missed=missed)
            self.struck.append(struck)
            self._say(f"{struck.began_s:6.1f} s  {name}: {'missed: ' if missed else ''}{what}")
            if not missed:
                await asyncio.sleep(min(strike.for_s, max(0.0, until_s - self._now_s)))
            await nemesis.heal()
            struck.healed_s = self._now_s
            if self._now_s >= until_s:
                return

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began_s
