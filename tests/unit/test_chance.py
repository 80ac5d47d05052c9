"""What names runs and sagas: as good as the system's own source, in threads and after a fork."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from watership.chance import BLOCK_BYTES, SYSTEM_CHANCE, new_id, new_token


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
