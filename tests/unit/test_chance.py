"""What names runs and sagas: as good as the system's own source, in threads and after a fork."""

from __future__ import annotations

import os
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from watership.chance import BLOCK_BYTES, SYSTEM_CHANCE, new_id, new_saga_id, new_token


def test_bits_fill_their_range_and_never_exceed_it() -> None:
    for bits in (1, 7, 8, 63, 64, 65, 128, 200):
        drawn = [SYSTEM_CHANCE.getrandbits(bits) for _ in range(300)]
        every = 0
        for value in drawn:
            assert 0 <= value < 1 << bits
            every |= value
        assert every == (1 << bits) - 1  # each bit was set once at least
    assert SYSTEM_CHANCE.getrandbits(0) == 0
    with pytest.raises(ValueError, match="non-negative"):
        SYSTEM_CHANCE.getrandbits(-1)


def test_no_name_comes_twice_in_any_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        names = [
            name
            for lot in pool.map(lambda _: [new_token(SYSTEM_CHANCE) for _ in range(2_000)], range(8))
            for name in lot
        ]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {16}
    ids = {new_id(SYSTEM_CHANCE) for _ in range(BLOCK_BYTES)}
    assert len(ids) == BLOCK_BYTES
    assert {one.version for one in ids} == {4}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forks_child_draws_other_names_than_its_parent() -> None:
    new_token(SYSTEM_CHANCE)  # something is read ahead
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, "".join(new_token(SYSTEM_CHANCE) for _ in range(20)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    told = os.read(reading, 4_096).decode()
    os.close(reading)
    theirs = {told[start : start + 16] for start in range(0, len(told), 16)}
    assert len(theirs) == 20
    assert theirs.isdisjoint(new_token(SYSTEM_CHANCE) for _ in range(20))


# --- the ids of sagas

STEP_NS = 245  # the first whole nanosecond that shows: a millisecond has 4,096 parts


def made_at(moments_ns: list[int], seed: int = 1) -> list[uuid.UUID]:
    chance = random.Random(seed)
    clock = iter(moments_ns)
    return [new_saga_id(chance, lambda: next(clock)) for _ in moments_ns]


def test_a_sagas_id_is_a_version_7_uuid_of_its_moment() -> None:
    made = made_at([1_645_557_742_000_000_000])[0]  # the example of RFC 9562, A.6
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert str(made).startswith("017f22e2-79b0-7000-")
    assert made_at([1_645_557_742_000_000_000])[0] == made, "the same chance and clock make the same id"
    assert made_at([1_645_557_742_000_999_999])[0].hex[12:16] == "7fff", "the last part of the same millisecond"


def test_ids_sort_as_they_were_made_as_numbers_bytes_and_text() -> None:
    first_ns = 1_700_000_000_123_000_000
    within = [first_ns + number * STEP_NS for number in range(4_000)]  # in one millisecond
    beyond = [first_ns + number * 77_777_777 for number in range(1, 4_000)]  # over five minutes
    for moments_ns in (within, beyond):
        made = made_at(moments_ns)
        assert made == sorted(made)
        assert [one.bytes for one in made] == sorted(one.bytes for one in made)  # as Postgres compares them
        assert [one.hex for one in made] == sorted(one.hex for one in made)  # as SQLite does


def test_ids_of_many_processes_lie_together_and_none_comes_twice() -> None:
    """Twenty clients at the same moments: whatever is started within a millisecond comes after all that was before it."""
    moments_ns = [1_700_000_000_000_000_000 + number * 300_000 for number in range(200)]
    made = [
        (moment_ns // 1_000_000, one)
        for seed in range(20)
        for moment_ns, one in zip(moments_ns, made_at(moments_ns, seed), strict=True)
    ]
    assert len({one for _, one in made}) == len(made)
    by_id = [at_ms for at_ms, _ in sorted(made, key=lambda pair: pair[1])]
    assert by_id == sorted(by_id)


def test_the_systems_own_ids_are_of_now_and_all_different() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = [new_saga_id() for _ in range(BLOCK_BYTES)]
    after_ms = time.time_ns() // 1_000_000
    assert len(set(made)) == len(made)
    assert all(before_ms <= one.int >> 80 <= after_ms for one in made)
