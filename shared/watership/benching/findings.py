"""What was found, and the sentence that says what limits it. Pure: numbers in, words out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

FULL = 0.85  # of a core: a process that is busy for more of the time has no room
SLOW_COMMIT_MS = 8.0
MESSAGES_A_SAGA = 2  # under load, when most go together; alone a saga of three steps takes nine


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerFindings:
    """Messages that were published, confirmed, consumed and acknowledged, a second; one alone, in milliseconds."""

    messages_per_s: float
    alone_p50_ms: float
    alone_p99_ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class DatabaseFindings:
    """How long a transaction of one small row takes to commit, one after the other."""

    commit_p50_ms: float
    commit_p99_ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class SagaFindings:
    """Sagas that ended, a second, so many at once; one alone.

    ``busy``: each process, as a share of a core. ``machine_busy``: all cores together, whoever uses them; 1.0 is all of
    the time, None where the system does not tell.
    """

    sagas_per_s: float
    at_once: int
    alone_p50_ms: float
    alone_p99_ms: float
    busy: dict[str, float]
    machine_busy: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """All of it. Without a broker, sagas were run in this process."""

    database: DatabaseFindings
    sagas: SagaFindings
    broker: BrokerFindings | None
    cores: int

    def limit(self) -> str:
        """One sentence on what limits this installation, the plainest cause first."""
        busy = self.sagas.busy
        if (self.sagas.machine_busy or 0.0) >= FULL:
            return (
                f"the {self.cores} cores of this machine limit it, busy for {self.sagas.machine_busy:.0%} of the time: what "
                f"ran for this took {sum(busy.values()):.1f} of them, and the rest is the broker's and the database's, if they "
                f"are here, and others'; more machines would do more"
            )
        full = [name for name, share in sorted(busy.items(), key=lambda item: -item[1]) if share >= FULL]
        if full:
            return _process_limit(full[0], busy[full[0]])
        if self.database.commit_p50_ms >= SLOW_COMMIT_MS:
            return (
                f"the database limits it: a commit takes {self.database.commit_p50_ms:.1f} ms, which is its disk, or the way "
                f"there; a saga waits for several of them, and many at once share them"
            )
        if self.broker is not None and self.sagas.sagas_per_s * MESSAGES_A_SAGA >= FULL * self.broker.messages_per_s:
            return (
                f"the broker limits it: {self.broker.messages_per_s:,.0f} messages a second pass through one queue, and a saga "
                f"takes up to {MESSAGES_A_SAGA} of them when many are under way"
            )
        return "nothing here is full: with more sagas at once (--at-once), more of them would end in a second"


def _process_limit(name: str, share: float) -> str:
    if name == "this process":
        return f"this process limits it, busy for {share:.0%} of the time: sagas in more processes would be more"
    return f"the {name} limits it, busy for {share:.0%} of the time: run another one beside it"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which so many lie; NaN of none."""
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * share))] if found else math.nan
