"""Chance as an argument: what spreads waits and names runs is given a `random.Random`, so that tests can repeat a run."""

from __future__ import annotations

import os
import random
import struct
import time
import uuid
from collections.abc import Callable

BLOCK_BYTES = 4_096
_WORDS = struct.Struct(f"={BLOCK_BYTES // 8}Q")


class SystemChance(random.SystemRandom):
    """The system's own source, read in blocks: a call of the system for each name was most of what a name cost."""

    def __init__(self) -> None:
        super().__init__()
        self._words: list[int] = []
        self._tokens: list[str] = []

    def getrandbits(self, k: int) -> int:
        """``k`` random bits; see `random.getrandbits`."""
        if k == 64:
            try:
                return self._words.pop()  # one step of the interpreter: no two threads get the same word
            except IndexError:
                self._words = list(_WORDS.unpack(os.urandom(BLOCK_BYTES)))
                return super().getrandbits(64)
        if k > 64:
            return self.getrandbits(k - 64) << 64 | self.getrandbits(64)
        return super().getrandbits(k) if k <= 0 else self.getrandbits(64) >> (64 - k)

    def token(self) -> str:
        """16 hex digits."""
        try:
            return self._tokens.pop()
        except IndexError:
            digits = os.urandom(BLOCK_BYTES).hex()
            tokens = [digits[at : at + 16] for at in range(0, len(digits), 16)]
            last = tokens.pop()
            self._tokens = tokens
            return last

    def forget(self) -> None:
        """Drops what was read ahead."""
        self._words, self._tokens = [], []


# Two processes never share a sequence, however they were started: a fork's child forgets its parent's block.
SYSTEM_CHANCE = SystemChance()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SYSTEM_CHANCE.forget)


def new_id(chance: random.Random) -> uuid.UUID:
    """A version 4 UUID."""
    return uuid.UUID(int=chance.getrandbits(128), version=4)


def new_saga_id(chance: random.Random = SYSTEM_CHANCE, now_ns: Callable[[], int] = time.time_ns) -> uuid.UUID:
    """A version 7 UUID (RFC 9562, the third way of its section 6.2): later ids are greater.

    48 bits are Unix milliseconds, 12 a fraction of the millisecond (244 ns each), 62 are chance. The ids of new sagas are
    neighbours in every index then, on a few pages that are in memory; random ones touch a cold page each, however many
    sagas have ended. Nothing relies on the order: clocks differ, and who starts a saga may give it any id.
    """
    now_ms, within_ns = divmod(now_ns(), 1_000_000)
    fraction = (within_ns << 12) // 1_000_000
    return uuid.UUID(int=now_ms << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | chance.getrandbits(62))


def new_token(chance: random.Random, *, size_bytes: int = 8) -> str:
    """A name that nobody else has: two hex digits for each byte."""
    if size_bytes == 8 and type(chance) is SystemChance:
        return chance.token()
    return f"{chance.getrandbits(8 * size_bytes):0{2 * size_bytes}x}"
