"""What a drive tells whoever watches its saga: each step that is done, and the end; from what was put on record alone."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from watership.machine import events as e
from watership.machine.apply import apply
from watership.machine.changes import CompensationBegan, Replied, Verified
from watership.machine.effects import tells_step
from watership.machine.react import Reaction
from watership.machine.state import SagaState
from watership.saga.runs import Happening
from watership.saga.step import SagaStepResult
from watership.saga.storage.protocol import SagaStorage
from watership.saga.watch import SagaEnd, SagaWatch, StepDone

log = logging.getLogger("watership.driver")


class Teller:
    """Fills one saga's watch."""

    def __init__(self, saga_id: uuid.UUID, watch: SagaWatch) -> None:
        self._saga_id = saga_id
        self._watch = watch
        self._error: Exception | None = None
        self._errors: dict[str, Exception] | None = None  # by step: what its act raised last

    def tell(self, reaction: Reaction, happening: Happening) -> None:
        """Tells what a transition means to the watchers. It is on record."""
        execution, event = happening.execution, happening.event
        own = event.step if execution is not None and isinstance(event, e.StepReplied) else None
        if own is not None and execution is not None and execution.error is not None:
            self._errors = {**(self._errors or {}), own: execution.error}
        for change in reaction.changes:
            if tells_step(change):
                result = execution.result if execution is not None and own == change.step else None
                self._tell_step(reaction.seq, change, reaction.state, result)
            elif type(change) is CompensationBegan and change.failure is not None:
                self._error = (self._errors or {}).get(change.failure.step or "")

    def _tell_step(
        self, seq: int, change: Replied | Verified, state: SagaState, result: SagaStepResult[Any, Any] | None = None
    ) -> None:
        self._watch.step_done(StepDone(seq, change.step, change.response, change.patch or {}, state.context, result))

    def end(self, state: SagaState) -> None:
        """Tells how it ended, or that it is parked."""
        if state.parked_reason is not None:
            log.warning("saga %s %s is parked: %s", state.name, self._saga_id, state.parked_reason)
        self._watch.ended(
            SagaEnd(state.name, state.status, state.context, state.failure, state.parked_reason, self._error)
        )

    async def replay(self, storage: SagaStorage) -> None:
        """Tells what the log has that the watchers have not seen."""
        state = SagaState(str(self._saga_id))
        for entry in await storage.history(self._saga_id):
            for change in entry.changes:
                apply(state, change)
            for change in entry.changes:
                if tells_step(change):
                    self._tell_step(entry.seq, change, state)
