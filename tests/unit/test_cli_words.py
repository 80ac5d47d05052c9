"""The words and numbers of the command line: durations, the timeline, what of a batch was not started."""

from __future__ import annotations

import uuid

import pytest

from watership.commands.batch import Batch
from watership.commands.screen import ago, clean, milliseconds, span
from watership.commands.timeline import timeline
from watership.machine import changes as c
from watership.machine.state import Action, Failure, Outcome
from watership.messages import StartSaga

CHANGES: list[c.Change] = [
    c.Created("S", {}, None, look_again_at_ms=5_000),
    c.PlanPinned("abc"),
    c.PlanMissed(5_000),
    c.Dispatched("A", Action.ACT, 1, 5_000),
    c.Resent("A", Action.ACT, 1, 5_000, doubtful=True),
    c.Withdrawn("A", Action.ACT, 1),
    c.Replied("A", Action.ACT, 2, "r", Outcome.UNKNOWN, final=False, failure=Failure("x", "Error", "lost")),
    c.Verified("A", 1, Outcome.DONE),
    c.Stopped("A"),
    c.PivotReached("A"),
    c.Waiting("W", 5_000),
    c.Elapsed("W", Outcome.FAILED),
    c.SignalKept("W", 1),
    c.Signalled("W", 1, "field"),
    c.Overdue("A", 1),
    c.Delayed("A", Action.ACT, 2, 5_000),
    c.Postponed("A", Action.ACT, 2, 5_000),
    c.Dropped("A"),
    c.NothingToUndo("A"),
    c.LateAct("A", 1, "r", Outcome.DONE),
    c.CompensationBegan(None),
    c.Completed(),
    c.Compensated(),
    c.Parked("why"),
    c.Unparked(),
    c.RetryAllowed("A", Action.COMPENSATE),
    c.Operated("ann", "retry", "mended"),
]


def test_every_change_has_words() -> None:
    assert {type(change) for change in CHANGES} == set(c.Change.__args__)
    log = [{"seq": 1, "at": "1970-01-01T00:00:01.000+00:00", "changes": [c.change_to_data(x) for x in CHANGES]}]
    lines = timeline({"log": log})
    assert len(lines) == len(CHANGES)
    assert all(line.what and line.style for line in lines), "a change without words of its own"
    by_kind = {change.kind: line for change, line in zip(CHANGES, lines, strict=True)}
    assert by_kind["replied"].details == "Error: lost; attempt 2"
    assert by_kind["delayed"].details == "attempt 2 in 4.000 s"
    assert by_kind["operated"].details == "by ann: mended"
    assert (by_kind["nothing_to_undo"].step, by_kind["nothing_to_undo"].action) == ("A", "compensate")


@pytest.mark.parametrize(
    ("duration_ms", "words"),
    [
        (0, "0.000 s"),
        (120, "0.120 s"),
        (12_340, "12.3 s"),
        (65_000, "1 min 5 s"),
        (7_620_000, "2 h 7 min"),
        (356_400_000, "4 d 3 h"),
    ],
)
def test_a_duration_in_words(duration_ms: int, words: str) -> None:
    assert span(duration_ms) == words


def test_how_long_ago() -> None:
    moment = "2026-01-01T00:00:00.000+00:00"
    now_ms = milliseconds(moment)
    assert [ago(moment, now_ms + passed_s * 1000) for passed_s in (-5, 59, 60, 7_200, 200_000)] == [
        "0 s ago",
        "59 s ago",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]


def test_control_characters_are_spelt_out() -> None:
    assert clean("a\x1b[31mb\tc\nd\x00\u202e") == "a\\x1b[31mb\tc\nd\\x00\\u202e"


def test_what_was_not_started_is_told_by_line() -> None:
    bodies = [StartSaga(saga="S", saga_id=uuid.uuid4(), context={}) for _ in range(9)]
    batch = Batch(bodies, 0.0, done={0, 1, 3})
    assert batch.lines_not_started() == "3, 5 to 9"
    assert batch.started == [bodies[0], bodies[1], bodies[3]]
