"""Names that are nearly those that we read: a setting that nobody reads, or an undoing that nobody calls, is silent."""

from __future__ import annotations

import difflib
import inspect

from watership.errors import DefinitionError

# Shorter names are too near to words that a user may have for something else.
CHARS_MIN = 7
LIKENESS_MIN = 0.85
# Not near, and yet what many libraries call it.
OFTEN = {
    "retries": "retry",
    "retry_policy": "retry",
    "timeout": "timeout_s",
    "deadline": "deadline_s",
    "undo": "compensate",
}


def check_spelling(where: str, cls: type, ours: type) -> None:
    """Raises `DefinitionError` if ``cls`` defines a name that is nearly one of ``ours``, its base."""
    known = {name for base in ours.__mro__ for name in vars(base) if not name.startswith("_")}
    for name in {**vars(cls), **inspect.get_annotations(cls)}:
        if name.startswith("_") or name in known:
            continue
        meant = _meant(name, known)
        if meant is not None:
            raise DefinitionError(
                f"{where}: {cls.__name__} has {name!r}, which nothing reads: did you mean {meant!r}? If it is something of "
                f"your own, give it another name"
            )


def _meant(name: str, known: set[str]) -> str | None:
    often = OFTEN.get(name)
    if often is not None and often in known:
        return often
    long = [each for each in known if len(each) >= CHARS_MIN]
    found = difflib.get_close_matches(name, long, 1, LIKENESS_MIN)
    return found[0] if found else None
