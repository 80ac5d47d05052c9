"""What an operator is told fits into one message: first what was carried goes, then what lies between. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from watership import codec

PAYLOADS = ("patch", "response", "context", "events", "data")
BEGINNING = 10  # entries that are never left out
MESSAGE_CHARS_MAX = 200


def fitting_log(log: Sequence[dict[str, Any]], bytes_max: int) -> list[dict[str, Any]]:
    """A saga's log in at most about so many bytes.

    A saga may be tried again for weeks. What is left out then lies between its beginning and its newest entries, and is
    no step's end: watchers live on those.
    """
    if len(codec.dumps(log)) <= bytes_max:
        return list(log)
    slim = [_slim_entry(entry) for entry in log]
    sizes = [len(codec.dumps(entry)) + 1 for entry in slim]
    kept = {place for place, entry in enumerate(slim) if place < BEGINNING or _tells_an_end(entry)}
    room = bytes_max - sum(sizes[place] for place in kept)
    for place in range(len(slim) - 1, -1, -1):
        if place not in kept:
            room -= sizes[place]
            if room < 0:
                break
            kept.add(place)
    return [slim[place] for place in sorted(kept)]


def slim_ledger(ledger: Sequence[dict[str, Any]], bytes_max: int) -> list[dict[str, Any]]:
    """The ledger: if need be what came, and not with which data."""
    if len(codec.dumps(ledger)) <= bytes_max:
        return list(ledger)
    return [
        {**line, "message": {key: value for key, value in line["message"].items() if key not in PAYLOADS}}
        if isinstance(line["message"], dict)
        else line
        for line in ledger
    ]


def _slim_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What happened, and not with which data: that is in the saga's context."""
    return {**entry, "changes": [{key: _slim(key, value) for key, value in c.items()} for c in entry["changes"]]}


def _slim(key: str, value: Any) -> Any:
    if key in PAYLOADS:
        return {} if key == "context" else None
    if key == "failure" and isinstance(value, dict):
        return {**value, "message": str(value.get("message", ""))[:MESSAGE_CHARS_MAX]}
    return value


def _tells_an_end(entry: Mapping[str, Any]) -> bool:
    return any(change.get("outcome") == "done" for change in entry["changes"])
