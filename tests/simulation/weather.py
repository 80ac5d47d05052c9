"""Which faults a seed has, and how often: some seeds have all of them, some only one, so that deep runs happen too."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from watership.bus.gathering import LINES
from watership.bus.protocol import Delivery, Message
from watership.testing.memory_database import connection_lost, contended
from watership.testing.mischief import WELL, Act, Crash, Delay, Fail, Pause, Sending

STORE_POINTS = frozenset(
    {
        "begin", "lock", "existing", "due", "insert", "write", "ledger", "history", "looked", "owe", "settle",
        "back off", "find plans", "release", "keep plans", "commit", "committed", "check",
    }
)  # fmt: skip
# Where a crash, a pause or an error tells most: each seed may have one where it happens often.
HOT_POINTS = (
    "committed", "commit", "publish", "published", "ack", "act", "acted", "undo", "undone", "owe", "settle", "insert",
    "history", "lock", "begin", "begin",
)  # fmt: skip
PAUSES_S = (0.3, 1.0, 3.0, 6.0, 12.0, 35.0, 80.0)
# A broker makes no copies by itself; who publishes these sends them again when they are not confirmed.
SENT_TWICE = frozenset({"start-saga", "step-reply", "admin-request", "register-worker"})


@dataclasses.dataclass(frozen=True)
class Weather:
    """The rates. Of a point: at each await of bus and store; of a message: on its way to the broker."""

    crash: float = 0.0  # of a point
    pause: float = 0.0  # of a point
    delay: float = 0.0  # of a point
    store_error: float = 0.0  # of a statement or commit
    lost: float = 0.0  # of a message
    unconfirmed: float = 0.0  # of a message: it arrives, and its sender is not told
    late: float = 0.0  # of a message: it arrives after its sender has given up
    twice: float = 0.0  # of a message that is no command
    refused: float = 0.0  # of a message: a full queue
    transit_s: float = 0.0  # the longest way of a delivery
    hot_point: str | None = None
    hot_crash: float = 0.0  # of the hot point
    hot_pause: float = 0.0  # of the hot point
    hot_error: float = 0.0  # of the hot point
    hot_delay: float = 0.0  # of the hot point: what arrives meanwhile is one batch
    strikes_s: float | None = None  # the mean time between crashes, pauses, cuts and outages from outside

    @classmethod
    def drawn(cls, chance: random.Random) -> Weather:
        """One of very many. Each fault is off in half of the seeds."""

        def rate(*rates: float) -> float:
            return chance.choice(rates) if chance.random() < 0.5 else 0.0

        return cls(
            crash=rate(0.001, 0.004, 0.01),
            pause=rate(0.001, 0.004, 0.01),
            delay=rate(0.05, 0.3),
            store_error=rate(0.01, 0.05),
            lost=rate(0.03, 0.15),
            unconfirmed=rate(0.03, 0.15),
            late=rate(0.03, 0.1),
            twice=rate(0.05, 0.3),
            refused=rate(0.03, 0.1),
            transit_s=rate(0.02, 0.5, 6.0),
            hot_point=chance.choice(HOT_POINTS) if chance.random() < 0.6 else None,
            hot_crash=rate(0.05, 0.3),
            hot_pause=rate(0.05, 0.3),
            hot_error=rate(0.1, 0.4),
            hot_delay=rate(0.3, 0.8),
            strikes_s=chance.choice((1.0, 3.0, 8.0)) if chance.random() < 0.6 else None,
        )


class Faults:
    """The weather as a `Mischief`. ``outage``: the database answers nobody."""

    def __init__(self, weather: Weather, chance: random.Random) -> None:
        self.weather = weather
        self.outage = False
        self._chance = chance

    def at(self, process: str, point: str) -> Act | None:
        """What happens at a point."""
        weather, roll = self.weather, self._chance.random()
        if self.outage and point in STORE_POINTS:
            return Fail(connection_lost)
        if point == weather.hot_point:
            hot = self._hot(point)
            if hot is not None:
                return hot
        if roll < weather.crash:
            return Crash()
        roll -= weather.crash
        if roll < weather.pause:
            return Pause(self._chance.choice(PAUSES_S))
        roll -= weather.pause
        if roll < weather.store_error and point in STORE_POINTS:
            return Fail(self._error(point))
        roll -= weather.store_error
        if roll < weather.delay:
            return Delay(self._chance.choice((0.0, 0.001, 0.02, 0.5)))
        return None

    def _hot(self, point: str) -> Act | None:
        weather, roll = self.weather, self._chance.random()
        if roll < weather.hot_crash:
            return Crash()
        roll -= weather.hot_crash
        if roll < weather.hot_pause:
            return Pause(self._chance.choice(PAUSES_S))
        roll -= weather.hot_pause
        if roll < weather.hot_error and point in STORE_POINTS:
            return Fail(self._error(point))
        roll -= weather.hot_error
        if roll < weather.hot_delay:
            return Delay(self._chance.choice((0.1, 1.0, 4.0)))
        return None

    def _error(self, point: str) -> Callable[[], Exception]:
        if point != "committed" and self._chance.random() < 0.5:
            return lambda: contended("could not serialize access")
        return connection_lost

    def sending(self, process: str, message: Message) -> Sending:
        """What becomes of a message."""
        weather, roll = self.weather, self._chance.random()
        if roll < weather.lost:
            return Sending(copies=0)
        roll -= weather.lost
        if roll < weather.unconfirmed:
            return Sending(confirmed=False)
        roll -= weather.unconfirmed
        if roll < weather.late:
            return Sending(late_s=self._chance.choice((0.1, 5.0, 20.0)))
        roll -= weather.late
        if roll < weather.refused:
            return Sending(refused=True)
        roll -= weather.refused
        if roll < weather.twice and message.type.removesuffix(LINES) in SENT_TWICE:
            return Sending(copies=2)
        return WELL

    def transit_s(self, process: str, delivery: Delivery) -> float:
        """How long a delivery takes."""
        return self._chance.uniform(0.0, self.weather.transit_s) if self.weather.transit_s else 0.0

    def notice_s(self, process: str) -> float:
        """A process that dies closes its connections; a host that dies does not."""
        return self._chance.choice((0.0, 0.0, 0.0, 5.0, 35.0))
