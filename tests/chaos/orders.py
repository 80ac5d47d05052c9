"""The load as data: which orders a run places, what befalls each on its way, and how it may end. All from one seed."""

from __future__ import annotations

import dataclasses
import random
import uuid
from enum import StrEnum
from typing import Any

from watership import SagaContext

STEPS = ("Reserve", "Charge", "Ship")
SHELVES = 40  # products, and accounts: enough that one stopped transaction does not hold up all
STOCK_AT_FIRST = 1_000_000
CENTS_AT_FIRST = 1_000_000_000


class Kind(StrEnum):
    """How a saga's participants behave."""

    CAREFUL = "careful"  # behind the barrier: each effect once, whatever arrives how often and in which order
    PLAIN = "plain"  # whatever is asked is done, as often as it is asked
    STUCK = "stuck"  # behind the barrier, and its first step cannot be undone: a person is needed


class Trouble(StrEnum):
    """What befalls an order at one of its steps."""

    NONE = "none"
    FAILS = "fails"  # before any effect
    UNKNOWN_BEFORE = "unknown_before"  # says that it does not know, and had no effect
    UNKNOWN_AFTER = "unknown_after"  # says that it does not know, and had its effect
    SLOW_BEFORE = "slow_before"  # runs out of its time, and had no effect
    SLOW_AFTER = "slow_after"  # runs out of its time, and had its effect


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


CLASSES: dict[Kind, type[Order]] = {Kind.CAREFUL: CarefulOrder, Kind.PLAIN: PlainOrder, Kind.STUCK: StuckOrder}
ALWAYS = 1_000_000


def role_of(step: str) -> str:
    """What a step does, whichever saga it is of: its name without its kind."""
    return next(step.removeprefix(kind.name.title()) for kind in Kind if step.startswith(kind.name.title()))


def orders(seed: int, count: int) -> list[tuple[uuid.UUID, Order]]:
    """The orders of a run, with their sagas' ids, in the order in which they are placed."""
    chance = random.Random(f"orders {seed}")
    return [(uuid.UUID(int=chance.getrandbits(128), version=4), _order(chance)) for _ in range(count)]


def _order(chance: random.Random) -> Order:
    shelf, pieces, cents = chance.randrange(SHELVES), chance.randint(1, 5), chance.randint(100, 50_000)
    dice, at = chance.random(), chance.choice(STEPS)
    if dice < 0.01:
        return StuckOrder(Kind.STUCK, shelf, pieces, cents, Trouble.FAILS, "Ship", ALWAYS)
    kind = Kind.CAREFUL if dice < 0.6 else Kind.PLAIN
    made = CLASSES[kind]
    dice = chance.random()
    if dice < 0.20:
        return made(kind, shelf, pieces, cents, Trouble.FAILS, at, ALWAYS)
    if dice < 0.30:
        trouble = chance.choice([Trouble.UNKNOWN_BEFORE, Trouble.UNKNOWN_AFTER])
    elif dice < 0.33:
        trouble = chance.choice([Trouble.SLOW_BEFORE, Trouble.SLOW_AFTER])
    else:
        return made(kind, shelf, pieces, cents)
    return made(kind, shelf, pieces, cents, trouble, at, chance.choice([1, ALWAYS]))


def allowed_ends(order: dict[str, Any]) -> frozenset[str]:
    """How a saga may end that began with this context. Faults may undo any order; they may not complete a doomed one."""
    doomed = order["trouble"] != Trouble.NONE and order["trouble_runs"] == ALWAYS
    if order["kind"] != Kind.PLAIN and order["trouble"] in (Trouble.UNKNOWN_AFTER, Trouble.SLOW_AFTER):
        doomed = False  # the barrier has the effect, and answers the next attempt
    if order["kind"] == Kind.STUCK:
        # If the first step never acted, there is nothing that could not be undone.
        return frozenset({"parked", "COMPENSATED"})
    return frozenset({"COMPENSATED"}) if doomed else frozenset({"COMPLETED", "COMPENSATED"})
