"""Chance as an argument: what spreads waits and names runs is given a `random.Random`, so that tests can repeat a run."""

from __future__ import annotations

import random
import uuid

# From the system's own source: two processes never share a sequence, however they were started.
SYSTEM_CHANCE: random.Random = random.SystemRandom()


def new_id(chance: random.Random) -> uuid.UUID:
    """A version 4 UUID."""
    return uuid.UUID(int=chance.getrandbits(128), version=4)


def new_token(chance: random.Random, *, size_bytes: int = 8) -> str:
    """A name that nobody else has: two hex digits for each byte."""
    return f"{chance.getrandbits(8 * size_bytes):0{2 * size_bytes}x}"
