"""Where a run can be hurt, and how: points, faults and trials as values, and their words. Nothing here runs anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import StrEnum

SENDS, GETS = "sends ", "gets "
BEGINS, WAITS, ENDED = " begins", " waits", " has run"


class Harm(StrEnum):
    """What is done at a point. The first three befall a process, the others a message."""

    CRASH = "crash"  # it ends there; another one starts a second later
    STOP = "stop"  # it stands still for longer than every deadline, another takes its place, and then it wakes
    CUT = "cut"  # its link to the broker breaks, and is back half a second later
    LOST = "lost"  # it never arrives; its sender is not told, and sends it again
    UNTOLD = "untold"  # it arrives; its sender is not told, and sends it again
    TWICE = "twice"  # it arrives twice
    LATE = "late"  # it arrives when it was long sent again: after the messages that come next


OF_MESSAGES = frozenset({Harm.LOST, Harm.UNTOLD, Harm.TWICE, Harm.LATE})


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """The ``number``-th time that a process in ``role`` came to ``name``."""

    role: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.role} {self.name} {self.number}"


@dataclasses.dataclass(slots=True)
class Seen:
    """A point as a run came to it. ``stage``: what the saga was at; ``about``: the message or decision it is about."""

    point: Point
    stage: str
    place: int  # which one of its name it is within its stage
    about: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One harm at one point."""

    harm: Harm
    point: Point

    @property
    def key(self) -> str:
        """How it is written in ``only``."""
        return f"{self.harm} {self.point}"

    def words(self, about: str) -> str:
        """It in a sentence's part, like "crash of the worker before it acknowledges the command ReserveStock.act"."""
        who, what = f"the {self.point.role}", about or "a message"
        match self.harm:
            case Harm.CRASH:
                return f"crash of {who} {moment(self.point, about)}"
            case Harm.STOP:
                return f"{who} stands still {moment(self.point, about)}, is replaced, and wakes later"
            case Harm.CUT:
                return f"{who} loses its link to the broker {moment(self.point, about)}"
            case Harm.LOST:
                return f"{what} is lost on its way, and sent again"
            case Harm.UNTOLD:
                return f"{what} arrives, {who} is not told, and sends it again"
            case Harm.TWICE:
                return f"{what} arrives twice"
            case Harm.LATE:
                return f"{what} arrives late, after it was sent again"


def moment(point: Point, about: str) -> str:
    """When a process is at a point, in words."""
    name = point.name
    if name.startswith(GETS):
        return f"when it has got {about}"
    for ending, words in ((BEGINS, "as {} begins"), (WAITS, "while {} waits"), (ENDED, "after {} has run to its end")):
        if name.endswith(ending):
            return words.format(name.removesuffix(ending)) + (
                ", before its reply is sent" if ending == ENDED else _again(point)
            )
    if ": " in name:  # what a handler writes in its own database
        action, write = name.split(": ", 1)
        return f"in {action}, before its {write}{_again(point)}"
    known = {
        "commit": f"before it commits {about or 'its transaction'}",
        "committed": f"after it committed {about or 'its transaction'}",
        "publish": f"before it sends {about or 'a message'}",
        "published": f"after it sent {about or 'its messages'}",
        "ack": f"before it acknowledges {about or 'a message'}",
        "acked": f"after it acknowledged {about or 'a message'}",
    }
    return known.get(name, f"at its {name!r}{_again(point)}")


def _again(point: Point) -> str:
    return f" (time {point.number})" if point.number > 1 else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One run to be made: a branch of the saga, and what goes wrong in it. ``words`` says so."""

    branch: str = ""
    faults: tuple[Fault, ...] = ()
    words: str = ""

    @property
    def key(self) -> str:
        """How it is asked for with ``only``. "no fault" is the plain run."""
        faults = " & ".join(fault.key for fault in self.faults)
        return ": ".join(part for part in (self.branch, faults) if part) or NO_FAULT


NO_FAULT = "no fault"


def trial_words(branch: str, faults: tuple[Fault, ...], about: Mapping[Point, str]) -> str:
    """A trial in words."""
    told = [fault.words(about.get(fault.point, "")) for fault in faults]
    return "; ".join(part for part in (branch, *told) if part) or NO_FAULT
