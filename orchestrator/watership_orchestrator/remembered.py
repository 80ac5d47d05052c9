"""What this process knows without asking the database: sagas as it left them, and what time it is there. Pure.

Neither is believed: what is decided on it is written only where the row is still as it was left, and where the
database's clock agrees. So whatever is forgotten, stale or wrong here costs a question, and nothing else.
"""

from __future__ import annotations

import uuid

from watership import codec
from watership.machine.state import Status
from watership.values import value
from watership_orchestrator.judged import Judgement
from watership_orchestrator.records import StoredSaga

SAGAS_MAX = 5_000
BYTES_MAX = 8_388_608  # of all of them, as JSON: as Python's objects they take several times as much

TIME_KNOWN_S = 60.0


@value
class Left:
    """A saga as it was written here last; its row has had this ``version`` since. ``size_bytes``: as JSON, about."""

    saga: StoredSaga
    version: int
    size_bytes: int


class Remembered:
    """Sagas that are under way, those that were written longest ago forgotten first."""

    def __init__(self, *, sagas_max: int = SAGAS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._sagas_max, self._bytes_max = sagas_max, bytes_max
        self._sagas: dict[uuid.UUID, Left] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sagas)

    def find(self, saga_id: uuid.UUID) -> Left | None:
        """The saga as it was left; None: it is not known."""
        return self._sagas.get(saga_id)

    def forget(self, saga_id: uuid.UUID) -> None:
        """Somebody else may have written it."""
        left = self._sagas.pop(saga_id, None)
        if left is not None:
            self._bytes -= left.size_bytes

    def forget_all(self) -> None:
        """The database may be another now, such as a standby that was promoted: no version says anything there."""
        self._sagas.clear()
        self._bytes = 0

    def keep(self, judgement: Judgement, version: int) -> None:
        """A saga whose row was just written, and committed. Only one that goes on is kept."""
        self.forget(judgement.saga_id)
        state = judgement.state
        if state is None or state.parked_reason or state.status not in (Status.RUNNING, Status.COMPENSATING):
            return
        owed = judgement.owed_reason()
        saga = StoredSaga(
            judgement.saga_id,
            state,
            judgement.input_hash,
            owed is not None,
            owed,
            judgement.reply_to,
            judgement.progress,
            judgement.traceparent,
        )
        own = [step.own for step in state.steps.values() if step.own is not None]
        size_bytes = len(codec.dumps([state.context, state.signals, own]))
        self._sagas[judgement.saga_id] = Left(saga, version, size_bytes)
        self._bytes += size_bytes
        while len(self._sagas) > self._sagas_max or self._bytes > self._bytes_max:
            self.forget(next(iter(self._sagas)))


class DatabaseTime:
    """The database's clock, as it was last read and has gone on since by our monotonic one; not for long: they differ."""

    def __init__(self) -> None:
        self._read_ms: int | None = None
        self._read_at_s = 0.0

    def was(self, now_ms: int, now_s: float) -> None:
        """It was read then."""
        self._read_ms, self._read_at_s = now_ms, now_s

    def now_ms(self, now_s: float) -> int | None:
        """What it says now, if our clocks agree; None: it was not read of late."""
        if self._read_ms is None or now_s - self._read_at_s > TIME_KNOWN_S:
            return None
        return self._read_ms + int((now_s - self._read_at_s) * 1000)
