"""An error of a handler's as data, which the log and a reply can hold."""

from __future__ import annotations

from watership.errors import error_code, error_lineage
from watership.machine.state import Failure

ERROR_MESSAGE_MAX = 2_000
CODE_MAX = 200
RETRY_AFTER_S_MAX = 604_800


def failure_of(error: Exception, step: str) -> Failure:
    """What ``error``, which a run of ``step`` raised, says to others."""
    return Failure(
        code=str(error_code(type(error)))[:CODE_MAX],
        type_name=type(error).__name__[:CODE_MAX],
        message=words_of(error),
        lineage=tuple(str(code)[:CODE_MAX] for code in error_lineage(type(error))),
        step=step,
        retry_after_ms=_retry_after_ms(error),
    )


def _retry_after_ms(error: Exception) -> int | None:
    """What an error that carries ``retry_after_s`` asks for."""
    seconds = getattr(error, "retry_after_s", None)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= RETRY_AFTER_S_MAX:
        return None
    return round(seconds * 1000)


def words_of(error: BaseException) -> str:
    """The error's message, as it can be stored. An exception's own ``__str__`` may fail as well."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - see above
        text = "its message cannot be read"
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:ERROR_MESSAGE_MAX]
