"""What the orchestrator's tables hold, as values: judged and made by those that know no SQL, read and written by the store."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import ClassVar

from watership.machine.state import SagaState
from watership.saga.storage.protocol import LogEntry
from watership.values import value
from watership_orchestrator.arrivals import Shelf, Waiting


@dataclasses.dataclass(slots=True)
class StoredSaga:
    """A locked row: its state, and what the row has beside it."""

    saga_id: uuid.UUID
    state: SagaState
    input_hash: str
    owed: bool
    owed_reason: str | None
    reply_to: str | None
    progress: bool
    traceparent: str | None


@value
class NewRow:
    """A saga to be made."""

    writes_context: ClassVar[bool] = True
    saga_id: uuid.UUID
    state: SagaState
    input_hash: str
    reply_to: str | None
    traceparent: str | None
    owed_reason: str | None = None
    progress: bool = True


@value
class ChangedRow:
    """A saga that moved. ``owed_reason``: what it sends has no message that would bring it. ``looked``: by the reaper.

    ``writes_context`` False: its context is as it was, and the row keeps what it has.
    """

    saga_id: uuid.UUID
    state: SagaState
    owed_reason: str | None
    looked: bool
    writes_context: bool = True


@value
class Advance:
    """A saga that moved, decided on its row as it was when it had this ``version``."""

    row: ChangedRow
    version: int
    entries: Sequence[LogEntry]


@value
class Advanced:
    """What was written of such: ``sagas``, whose rows have this ``version`` now, by a clock that said ``now_ms``."""

    sagas: frozenset[uuid.UUID]
    version: int
    now_ms: int


@value
class LedgerLine:
    """A message that moved nothing, and why."""

    saga_id: uuid.UUID
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class WaitingStart:
    """A start as a client wrote it: nothing of it is checked yet. ``plan`` and ``context`` should be JSON."""

    start_id: int
    saga_id: uuid.UUID
    saga: str
    plan_hash: str | None
    plan: str | None
    context: str
    traceparent: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class WaitingSignal:
    """A signal that came before its saga. ``data`` is JSON."""

    saga_id: uuid.UUID
    signal_id: str
    name: str
    data: str
    at_ms: int = 0

    @property
    def row(self) -> Waiting:
        """How it is named as a row."""
        return Waiting(Shelf.SIGNAL, (self.saga_id, self.signal_id))


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that the broker gave up on, or that we refused. ``headers`` is JSON. ``judge``: the machine shall."""

    queue: str
    reason: str
    kind: str
    message_id: str | None
    saga_id: uuid.UUID | None
    reply_to: str | None
    headers: str
    body: bytes
    judge: bool = False
    judged: str | None = None
    id: int = 0
    actor: str | None = None
    actor_reason: str | None = None
