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
CONTEXT_BYTES_MAX = 8_388_608  # of all of them, as JSON: as Python's objects they take several times as much


@value
class Left:
    """A saga as it was written here last; its row has had this ``version`` since."""

    saga: StoredSaga
    version: int
    context_bytes: int


class Remembered:
    """Sagas that are under way, those that were written longest ago forgotten first."""

    def __init__(self, *, sagas_max: int = SAGAS_MAX, context_bytes_max: int = CONTEXT_BYTES_MAX) -> None:
        self._sagas_max, self._context_bytes_max = sagas_max, context_bytes_max
        self._sagas: dict[uuid.UUID, Left] = {}
        self._context_bytes = 0

    def __len__(self) -> int:
        return len(self._sagas)

    def find(self, saga_id: uuid.UUID) -> Left | None:
        """The saga as it was left; None: it is not known."""
        return self._sagas.get(saga_id)

    def forget(self, saga_id: uuid.UUID) -> None:
        """Somebody else may have written it."""
        left = self._sagas.pop(saga_id, None)
        if left is not None:
            self._context_bytes -= left.context_bytes

    def forget_all(self) -> None:
        """The database may be another now, such as a standby that was promoted: no version says anything there."""
        self._sagas.clear()
        self._context_bytes = 0

    def keep(self, judgement: Judgement, version: int) -> None:
        """A saga whose row was just written, and committed. Only one that goes on is kept."""
        before = self._sagas.get(judgement.saga_id)
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
        is_same = before is not None and not judgement.writes_context
        size_bytes = before.context_bytes if before is not None and is_same else len(codec.dumps(state.context))
        self._sagas[judgement.saga_id] = Left(saga, version, size_bytes)
        self._context_bytes += size_bytes
        while len(self._sagas) > self._sagas_max or self._context_bytes > self._context_bytes_max:
            self.forget(next(iter(self._sagas)))


class DatabaseTime:
    """The database's clock, as it was last read and has gone on since by our monotonic one."""

    def __init__(self) -> None:
        self._read_ms: int | None = None
        self._read_at_s = 0.0

    def was(self, now_ms: int, now_s: float) -> None:
        """It was just read."""
        self._read_ms, self._read_at_s = now_ms, now_s

    def now_ms(self, now_s: float) -> int | None:
        """What it says now, if our clocks agree; None: it was never read."""
        if self._read_ms is None:
            return None
        return self._read_ms + int((now_s - self._read_at_s) * 1000)
