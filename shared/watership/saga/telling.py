"""What a drive tells whoever watches its saga: each step that is done, and the end; from what was put on record alone."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from watership.machine import events as e
from watership.machine.apply import apply
from watership.machine.changes import CompensationBegan
from watership.machine.effects import NotifyStep, effects_of
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
        self._errors: dict[str, Exception] = {}  # by step: what its act raised last

    def tell(self, reaction: Reaction, happening: Happening) -> None:
        """Tells what a transition means to the watchers. It is on record."""
        execution, event = happening.execution, happening.event
        own = event if execution is not None and isinstance(event, e.StepReplied) else None
        if own is not None and execution is not None and execution.error is not None:
            self._errors[own.step] = execution.error
        for change in reaction.changes:
            if isinstance(change, CompensationBegan) and change.failure is not None:
                self._error = self._errors.get(change.failure.step or "")
        for effect in reaction.effects:
            if isinstance(effect, NotifyStep):
                ours = own is not None and own.step == effect.step and execution is not None
                result = execution.result if ours and execution is not None else None
                self._tell_step(effect, reaction.state, result)

    def _tell_step(self, effect: NotifyStep, state: SagaState, result: SagaStepResult[Any, Any] | None = None) -> None:
        self._watch.step_done(
            StepDone(effect.seq, effect.step, effect.response, effect.patch or {}, state.context, result)
        )

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
            for effect in effects_of(entry.seq, entry.changes):
                if isinstance(effect, NotifyStep):
                    self._tell_step(effect, state)
