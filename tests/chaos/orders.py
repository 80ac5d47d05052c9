"""The load as data: which orders a run places, what befalls each on its way, and how it may end. All from one seed."""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from watership import SagaContext

STEPS = ("Reserve", "Charge", "Ship")
FLOW_STEPS = ("Reserve", "Charge", "Capture", "Ship")  # the first two side by side, the third is the pivot
SHELVES = 40  # products, and accounts: enough that one stopped transaction does not hold up all
STOCK_AT_FIRST = 1_000_000
CENTS_AT_FIRST = 1_000_000_000


class Kind(StrEnum):
    """How a saga's participants behave."""

    CAREFUL = "careful"  # behind the barrier: each effect once, whatever arrives how often and in which order
    PLAIN = "plain"  # whatever is asked is done, as often as it is asked
    STUCK = "stuck"  # behind the barrier, and its first step cannot be undone: a person is needed
    FLOW = "flow"  # behind the barrier: steps side by side, a signal, a pause, a pivot


class Trouble(StrEnum):
    """What befalls an order at one of its steps."""

    NONE = "none"
    FAILS = "fails"  # before any effect
    UNKNOWN_BEFORE = "unknown_before"  # says that it does not know, and had no effect
    UNKNOWN_AFTER = "unknown_after"  # says that it does not know, and had its effect
    SLOW_BEFORE = "slow_before"  # runs out of its time, and had no effect
    SLOW_AFTER = "slow_after"  # runs out of its time, and had its effect


class Answer(StrEnum):
    """What the client signals to a saga that waits for its approval."""

    YES = "yes"
    NO = "no"
    NONE = "none"  # it never says


class Manner(StrEnum):
    """How it says so."""

    ONCE = "once"
    EARLY = "early"  # before it starts the saga
    TWICE = "twice"  # the same signal again
    RIVAL = "rival"  # and then another one, which says the contrary and must not count


@dataclasses.dataclass
class Approval:
    """A signal's data."""

    by: str
    approved: bool


@dataclasses.dataclass
class Order(SagaContext):
    """``trouble_at``: the step at which it comes, in its first ``trouble_runs`` attempts."""

    kind: str
    shelf: int
    pieces: int
    cents: int
    trouble: str = Trouble.NONE
    trouble_at: str = ""
    trouble_runs: int = 0
    trail: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class CarefulOrder(Order):
    """Bound to the careful saga."""


@dataclasses.dataclass
class PlainOrder(Order):
    """Bound to the plain saga."""


@dataclasses.dataclass
class StuckOrder(Order):
    """Bound to the saga that cannot be undone."""


@dataclasses.dataclass
class FlowOrder(Order):
    """Bound to the saga with all that stands among steps. The members of its group write a field each."""

    answer: str = Answer.YES
    manner: str = Manner.ONCE
    reserved: bool = False
    charged: bool = False
    approval: Approval | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """An order, its saga's id, and after how long the client changes its mind, if it does."""

    saga_id: uuid.UUID
    order: Order
    cancel_after_s: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Saying:
    """A signal that a client sends, and sends again with the same id."""

    number: int
    signal_id: str
    data: Approval


ALWAYS = 1_000_000


def role_of(step: str) -> str:
    """What a step does, whichever saga it is of: its name without its kind."""
    return next(step.removeprefix(kind.name.title()) for kind in Kind if step.startswith(kind.name.title()))


def orders(seed: int, count: int) -> list[Placement]:
    """The orders of a run, in the order in which they are placed."""
    chance = random.Random(f"orders {seed}")
    return [_placement(chance) for _ in range(count)]


def _placement(chance: random.Random) -> Placement:
    saga_id, order = uuid.UUID(int=chance.getrandbits(128), version=4), _order(chance)
    changes_its_mind = chance.random() < 0.04
    return Placement(saga_id, order, chance.uniform(0.0, 2.0) if changes_its_mind else None)


def _order(chance: random.Random) -> Order:
    where = chance.randrange(SHELVES), chance.randint(1, 5), chance.randint(100, 50_000)
    dice = chance.random()
    if dice < 0.01:
        return StuckOrder(Kind.STUCK, *where, Trouble.FAILS, "Ship", ALWAYS)
    if dice < 0.48:
        return CarefulOrder(Kind.CAREFUL, *where, *_trouble(chance, STEPS))
    if dice < 0.80:
        return PlainOrder(Kind.PLAIN, *where, *_trouble(chance, STEPS))
    trouble, at, runs = _trouble(chance, FLOW_STEPS)
    forward_only = at == "Ship" or (at == "Capture" and trouble != Trouble.FAILS)
    if forward_only and runs == ALWAYS:
        runs = 2  # it is tried until it is done
    answer = chance.choices(list(Answer), weights=(80, 12, 8))[0]
    return FlowOrder(Kind.FLOW, *where, trouble, at, runs, answer=answer, manner=chance.choice(list(Manner)))


def _trouble(chance: random.Random, steps: Sequence[str]) -> tuple[Trouble, str, int]:
    at, dice = chance.choice(steps), chance.random()
    if dice < 0.20:
        return Trouble.FAILS, at, ALWAYS
    if dice < 0.30:
        trouble = chance.choice([Trouble.UNKNOWN_BEFORE, Trouble.UNKNOWN_AFTER])
    elif dice < 0.33:
        trouble = chance.choice([Trouble.SLOW_BEFORE, Trouble.SLOW_AFTER])
    else:
        return Trouble.NONE, "", 0
    return trouble, at, chance.choice([1, ALWAYS])


def sayings(order: Order) -> list[Saying]:
    """The signals that the client sends to an order's saga, one after the other."""
    if not isinstance(order, FlowOrder) or order.answer == Answer.NONE:
        return []
    ann = Approval("Ann", approved=order.answer == Answer.YES)
    said = [Saying(1, "s-1", ann)]
    if order.manner == Manner.TWICE:
        said.append(Saying(2, "s-1", ann))
    elif order.manner == Manner.RIVAL:
        said.append(Saying(2, "s-2", Approval("Bob", approved=not ann.approved)))
    return said


def allowed_ends(order: dict[str, Any]) -> frozenset[str]:
    """How a saga may end that began with this context. Faults may undo any order; they may not complete a doomed one."""
    doomed = order["trouble"] != Trouble.NONE and order["trouble_runs"] == ALWAYS
    if order["kind"] != Kind.PLAIN and order["trouble"] in (Trouble.UNKNOWN_AFTER, Trouble.SLOW_AFTER):
        doomed = False  # the barrier has the effect, and answers the next attempt
    if order["kind"] == Kind.STUCK:
        # If the first step never acted, there is nothing that could not be undone.
        return frozenset({"parked", "COMPENSATED"})
    if order["kind"] == Kind.FLOW:
        doomed = doomed or order["answer"] != Answer.YES
        if doomed and order["trouble_at"] == "Capture":
            # A pivot that declines while another delivery of it is in doubt is for a person to judge.
            return frozenset({"COMPENSATED", "parked"})
    return frozenset({"COMPENSATED"}) if doomed else frozenset({"COMPLETED", "COMPENSATED"})
