"""What an orchestrator remembers of sagas is bounded, and is only what goes on."""

from __future__ import annotations

import uuid
from typing import Any

from watership.machine.state import Status
from watership_orchestrator.judged import Judgement
from watership_orchestrator.remembered import TIME_KNOWN_S, DatabaseTime, Remembered

from tests.support.engine_ground import saga


def judged(number: int, **fields: Any) -> Judgement:
    state = saga(number, **fields)
    return Judgement(uuid.UUID(state.saga_id), state, "hash", "me", None)


def known(sagas: Remembered, *numbers: int) -> list[int]:
    return [number for number in numbers if sagas.find(uuid.UUID(int=number)) is not None]


def test_the_one_written_longest_ago_is_forgotten_first() -> None:
    sagas = Remembered(sagas_max=2)
    for number in (1, 2, 1, 3):
        sagas.keep(judged(number), 7)
    assert known(sagas, 1, 2, 3) == [1, 3]
    assert len(sagas) == 2


def test_contexts_are_bounded_all_together() -> None:
    sagas = Remembered(bytes_max=1_000)
    for number in range(1, 5):
        sagas.keep(judged(number, context={"n": number, "much": "x" * 400}), 7)
    assert known(sagas, 1, 2, 3, 4) == [3, 4]
    sagas.keep(judged(4, context={"n": 4}), 8)
    sagas.keep(judged(5, context={"n": 5, "much": "x" * 400}), 8)
    assert known(sagas, 3, 4, 5) == [3, 4, 5], "what a saga no longer takes is free again"
    sagas.keep(judged(6, context={"much": "x" * 2_000}), 8)
    assert len(sagas) == 0, "one that is larger than all may be together is not kept"


def test_what_has_ended_or_waits_for_a_person_is_forgotten() -> None:
    sagas = Remembered()
    for fields in ({"status": Status.COMPLETED}, {"parked_reason": "why"}, {"status": Status.PENDING}):
        sagas.keep(judged(1), 7)
        assert known(sagas, 1) == [1]
        sagas.keep(judged(1, **fields), 8)
        assert known(sagas, 1) == []


def test_all_that_a_saga_holds_counts() -> None:
    sagas = Remembered(bytes_max=1_000)
    sagas.keep(judged(1, signals={"paid": "x" * 900}), 7)
    sagas.keep(judged(2, context={"much": "x" * 900}), 7)
    assert known(sagas, 1, 2) == [2]


def test_all_is_forgotten_when_the_database_may_be_another() -> None:
    sagas = Remembered(bytes_max=1_000)
    sagas.keep(judged(1, context={"much": "x" * 900}), 7)
    sagas.forget_all()
    sagas.keep(judged(2, context={"much": "x" * 900}), 7)
    assert known(sagas, 1, 2) == [2]


def test_the_databases_time_goes_on_between_two_readings() -> None:
    time = DatabaseTime()
    assert time.now_ms(5.0) is None
    time.was(1_000, 5.0)
    assert time.now_ms(5.25) == 1_250
    time.was(900, 6.0)
    assert time.now_ms(6.0) == 900
    assert time.now_ms(6.0 + TIME_KNOWN_S + 1) is None
