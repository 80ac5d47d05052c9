"""A saga's log in words: one line for each decided change. Pure: it is given what ``show`` answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from watership.commands.screen import milliseconds, span
from watership.machine import changes as c
from watership.machine.state import Failure, Outcome

GOOD, BAD, DOUBTFUL, QUIET, MARK = "green", "red", "yellow", "dim", "bold"
_OUTCOMES = {Outcome.DONE: GOOD, Outcome.FAILED: BAD, Outcome.UNKNOWN: DOUBTFUL}


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line: when it was since the saga's start, the step and its action if any, what happened, and more of it."""

    since_ms: int
    seq: int
    step: str
    action: str
    what: str
    style: str
    details: str = ""


def timeline(view: Mapping[str, Any]) -> list[Line]:
    """The lines of a saga's log, in the log's order."""
    log = view["log"]
    began_ms = milliseconds(log[0]["at"]) if log else 0
    lines = []
    seq = 0
    for entry in log:
        at_ms = milliseconds(entry["at"])
        if entry["seq"] > seq + 1:
            lines.append(
                Line(at_ms - began_ms, seq + 1, "", "", f"{entry['seq'] - seq - 1} entries are not shown", QUIET)
            )
        seq = entry["seq"]
        for data in entry["changes"]:
            change = c.change_from_data(data)
            step, action = getattr(change, "step", ""), str(getattr(change, "action", ""))
            what, style, details = _words(change, at_ms)
            if not action and step:
                action = "compensate" if isinstance(change, c.NothingToUndo) else "act"
            lines.append(Line(at_ms - began_ms, entry["seq"], step, action, what, style, details))
    return lines


def failure_words(failure: Failure | None) -> str:
    """An error as people say it: its type and its message."""
    if failure is None:
        return ""
    return f"{failure.type_name or failure.code}: {failure.message}" if failure.message else failure.type_name


def _words(change: c.Change, at_ms: int) -> tuple[str, str, str]:
    """What happened, its colour, and more of it."""
    match change:
        case c.Dispatched():
            return "sent", QUIET, _attempt(change.attempt)
        case c.Resent():
            return "sent again", DOUBTFUL, _attempt(change.attempt)
        case c.Withdrawn():
            return "withdrawn", QUIET, "it was decided, and never sent"
        case c.Replied():
            return _reply(change)
        case c.Verified():
            return str(change.outcome), _OUTCOMES[change.outcome], "as its verification found"
        case c.Stopped():
            return "stopped", BAD, "it can neither be undone nor left"
        case c.PivotReached():
            return "pivot", MARK, "from here the saga only goes forward"
        case c.Waiting():
            return "waits", QUIET, f"until {span(change.due_at_ms - at_ms)} from here, at the longest"
        case c.Elapsed():
            return "its time is over", QUIET if change.outcome is Outcome.DONE else BAD, ""
        case c.Signalled():
            return "signal", GOOD, f"its data is in {change.into}" if change.into else ""
        case c.Overdue():
            return "unknown", DOUBTFUL, "no reply in its time"
        case c.Delayed():
            return "waits", QUIET, f"attempt {change.attempt} in {span(change.due_at_ms - at_ms)}"
        case c.Postponed():
            return "not served", DOUBTFUL, f"no worker serves it; again in {span(change.due_at_ms - at_ms)}"
        case c.Dropped():
            return "dropped", QUIET, "no retry: the saga is being undone"
        case c.NothingToUndo():
            return "done", GOOD, "nothing to undo"
        case c.LateAct():
            return f"late: {change.outcome}", DOUBTFUL, "it came when nobody awaited it; it is undone again"
        case _:
            return _words_of_the_whole(change, at_ms)


def _words_of_the_whole(change: c.Change, at_ms: int) -> tuple[str, str, str]:
    match change:
        case c.Created():
            look = change.look_again_at_ms
            return "started", MARK, "" if look is None else "no worker has announced this saga yet"
        case c.PlanPinned():
            return "plan found", QUIET, change.plan_hash
        case c.PlanMissed():
            return "no plan yet", DOUBTFUL, f"looks again in {span(change.look_again_at_ms - at_ms)}"
        case c.SignalKept():
            return "signal kept", QUIET, f"{change.name}: it came before the saga waits for it"
        case c.CompensationBegan():
            return "compensation began", DOUBTFUL, ""
        case c.Completed():
            return "COMPLETED", GOOD, ""
        case c.Compensated():
            return "COMPENSATED", DOUBTFUL, ""
        case c.Parked():
            return "parked", BAD, change.reason
        case c.Unparked():
            return "goes on", MARK, ""
        case c.RetryAllowed():
            return "may retry", MARK, f"{change.step} {change.action}"
        case c.Operated():
            return change.verb, MARK, f"by {change.actor}: {change.reason}" if change.reason else f"by {change.actor}"
        case _:
            return change.kind.replace("_", " "), "", ""


def _reply(change: c.Replied) -> tuple[str, str, str]:
    details = [failure_words(change.failure), _attempt(change.attempt)]
    return str(change.outcome), _OUTCOMES[change.outcome], "; ".join(part for part in details if part)


def _attempt(attempt: int) -> str:
    return f"attempt {attempt}" if attempt > 1 else ""
