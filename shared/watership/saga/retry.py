"""How often an action is tried, and how long apart."""

from __future__ import annotations

import dataclasses

from watership.machine.plan import RetryPlan


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_attempts`` counts all attempts, the first included; delays are in seconds.

    The n-th retry waits ``delay_s * backoff ** (n - 1)``, at most ``max_delay_s``, and up to ``jitter`` of it more.
    """

    max_attempts: int = 3
    delay_s: float = 1.0
    backoff: float = 2.0
    max_delay_s: float = 300.0
    jitter: float = 0.1

    def plan(self) -> RetryPlan:
        """The same as data, in milliseconds."""
        return RetryPlan(
            attempts_max=self.max_attempts,
            delay_ms=round(self.delay_s * 1000),
            backoff=float(self.backoff),
            delay_max_ms=round(self.max_delay_s * 1000),
            jitter=float(self.jitter),
        )


#: Compensation, unless said otherwise: three times in all, after 0, 1 and 2 seconds.
COMPENSATION_RETRY = RetryPolicy(max_attempts=3, delay_s=1.0, backoff=2.0, jitter=0.0)
