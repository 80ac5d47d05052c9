"""How often an action is tried, and how long apart."""

from __future__ import annotations

import dataclasses
import math

from watership.errors import error_code
from watership.machine.nodes import RetryPlan


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_attempts`` counts all attempts, the first included (None: without end); delays are in seconds.

    The n-th retry waits ``delay_s * backoff ** (n - 1)``, at most ``max_delay_s``, and up to ``jitter`` of it more; an
    error that carries ``retry_after_s`` is waited for at least that long. ``non_retryable``: exceptions, and what
    derives from them, that no further attempt could mend.
    """

    max_attempts: int | None = 3
    delay_s: float = 1.0
    backoff: float = 2.0
    max_delay_s: float = 300.0
    jitter: float = 0.1
    non_retryable: tuple[type[Exception], ...] = ()

    def plan(self) -> RetryPlan:
        """The same as data, in milliseconds."""
        return RetryPlan(
            attempts_max=self.max_attempts,
            delay_ms=milliseconds(self.delay_s),
            backoff=float(self.backoff),
            delay_max_ms=milliseconds(self.max_delay_s),
            jitter=float(self.jitter),
            final_codes=tuple(error_code(error) for error in self.non_retryable),
        )


def milliseconds(seconds: float) -> int:
    """Seconds as plans have them. What is no duration becomes a number over every limit: the lint names its place."""
    return round(seconds * 1000) if math.isfinite(seconds * 1000) else 2**63 - 1


#: Compensation, unless said otherwise: three times in all, after 0, 1 and 2 seconds.
COMPENSATION_RETRY = RetryPolicy(max_attempts=3, delay_s=1.0, backoff=2.0, jitter=0.0)
#: What comes after a saga's pivot, unless said otherwise: without end, a minute apart at the most.
FORWARD_RETRY = RetryPolicy(max_attempts=None, delay_s=1.0, max_delay_s=60.0)
#: Asking about an unknown act, unless said otherwise: five times in about half a minute.
VERIFY_RETRY = RetryPolicy(max_attempts=5, delay_s=2.0)
