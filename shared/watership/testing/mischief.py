"""What can go wrong in a `World`, as values, and who decides it.

A `Mischief` is asked at every point at which a process gives way (each statement, commit, publish and acknowledgement),
and for every message. It decides; the world carries it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from watership.bus.protocol import Delivery, Message


@dataclasses.dataclass(frozen=True, slots=True)
class Crash:
    """The process ends here, as by `kill -9`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pause:
    """The process stands still for so long, and wakes as a zombie: all of its timers are late at once."""

    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Delay:
    """What the process asked for takes so long. Its other tasks go on."""

    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Fail:
    """What the process asked for fails. ``error`` makes the exception."""

    error: Callable[[], Exception]


Act = Crash | Pause | Delay | Fail


@dataclasses.dataclass(frozen=True, slots=True)
class Sending:
    """What becomes of a message on its way to the broker.

    ``copies`` 0: it is lost. ``late_s``: it arrives after its sender has given up. ``confirmed`` False: it arrives, and
    its sender is not told. ``refused``: the broker says no.
    """

    copies: int = 1
    confirmed: bool = True
    late_s: float = 0.0
    refused: bool = False


WELL = Sending()


class Mischief(Protocol):
    """Decides what goes wrong, and when."""

    def at(self, process: str, point: str) -> Act | None:
        """What happens to ``process`` at this point; None: it goes on."""

    def sending(self, process: str, message: Message) -> Sending:
        """What becomes of a message that ``process`` publishes."""

    def transit_s(self, process: str, delivery: Delivery) -> float:
        """How long a delivery is under way to ``process``: what is overtaken arrives out of order."""

    def notice_s(self, process: str) -> float:
        """How long the servers take to see that ``process`` is gone."""


class NoMischief:
    """All goes well. A delivery takes no time."""

    def at(self, process: str, point: str) -> Act | None:
        """Nothing."""
        return None

    def sending(self, process: str, message: Message) -> Sending:
        """It arrives, and is confirmed."""
        return WELL

    def transit_s(self, process: str, delivery: Delivery) -> float:
        """No time."""
        return 0.0

    def notice_s(self, process: str) -> float:
        """At once."""
        return 0.0
