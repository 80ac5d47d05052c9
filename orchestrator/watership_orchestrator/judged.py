"""What judging a batch's arrivals for one saga came to: what must be written, what must be sent, what is refused. Pure."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

from watership.machine.effects import Effect, NotifyEnd, NotifyParked, SendCommand
from watership.machine.state import Action, SagaState, Status
from watership.saga.storage.protocol import LogEntry
from watership_orchestrator.arrivals import Rejection
from watership_orchestrator.owed import UNCONFIRMED_YET, awaited_commands, events_reason, is_events, is_in_doubt
from watership_orchestrator.records import WaitingSignal


@dataclasses.dataclass(slots=True)
class Judgement:
    """What a batch does to one saga. ``state`` None: there is no such saga, and none is made."""

    saga_id: uuid.UUID
    state: SagaState | None
    input_hash: str
    reply_to: str | None
    traceparent: str | None
    progress: bool = True  # who is told the end is told each step, too
    is_new: bool = False
    entries: list[LogEntry] = dataclasses.field(default_factory=list)
    notices: list[Effect] = dataclasses.field(default_factory=list)
    commands: set[SendCommand] = dataclasses.field(default_factory=set)
    ledger: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    refusals: dict[int, str] = dataclasses.field(default_factory=dict)  # by id() of the arrival
    known_to: list[str] = dataclasses.field(default_factory=list)  # who started it again, and would know
    owed_before: str | None = None  # the reason, if what the row awaited before this batch was not confirmed
    awaited_before: frozenset[SendCommand] = frozenset()
    looked: bool = False
    by_message: bool = False
    unbacked: bool = False  # from the commit on, perhaps no message and no row would bring it again
    early: list[WaitingSignal] = dataclasses.field(default_factory=list)  # came before the saga runs
    told: dict[int, str] = dataclasses.field(default_factory=dict)  # what came of a row, by id() of its arrival
    context_before: Mapping[str, Any] | None = None  # as the row has it

    @property
    def moved(self) -> bool:
        """Something must be written."""
        return bool(self.entries)

    @property
    def writes_context(self) -> bool:
        """The row's context is not the saga's any more. Told by whether its values are the very same: True equals 1."""
        before, after = self.context_before, self.state.context if self.state is not None else None
        if before is None or after is None or len(before) != len(after):
            return True
        return any(before.get(name, before) is not item for name, item in after.items())

    def came_since(self, entries: int, ledger: int, rejections: int) -> str:
        """What came of a row, in words: there were so many of each before it."""
        if len(self.rejections) > rejections:
            return f"refused: {self.rejections[-1].reason}"
        if len(self.ledger) > ledger:
            return f"in the ledger: {self.ledger[-1][0]}"
        if len(self.entries) > entries:
            return f"applied: entry {self.entries[-1].seq} of the saga's log"
        return "it changes nothing: the saga has it already"

    def owed_reason(self) -> str | None:
        """Why the row owes something from this commit on; None: nothing, or its message brings it back."""
        by_message = self.by_message and not self.unbacked
        if by_message and self.owed_before is None:
            return None  # the hot path: what follows is brought back by its message
        sends = self.commands_to_send()
        if (sends or self.notices) and not by_message:
            return self.owed_before if is_in_doubt(self.owed_before) else UNCONFIRMED_YET
        if self.owed_before is None or self.state is None or is_events(self.owed_before):
            return self.owed_before  # events are in the log, and owed until a look has seen them confirmed
        forgotten = self.awaited_before.intersection(awaited_commands(self.state)).difference(sends)
        ended = self.state.status.terminal or self.state.parked_reason is not None
        told = any(isinstance(notice, NotifyEnd | NotifyParked) for notice in self.notices)
        if forgotten or (ended and not told):
            return self.owed_before
        return events_reason("they were owed with a command that has been answered since") if self.state.emits else None

    @property
    def settles(self) -> bool:
        """All that it awaits goes out with this batch: once that is confirmed, its row owes nothing."""
        if self.looked:
            return self.moved or self.owed_before is not None
        return self.unbacked and self.moved and self.owed_before is None

    def commands_to_send(self) -> list[SendCommand]:
        """What the final state awaits of what was decided: a command that was overtaken is not sent."""
        state = self.state
        if state is None:
            return []
        awaited = [c for c in self.commands if state.awaits(c.step, c.action, c.attempt)]
        if state.status is Status.COMPENSATING:  # law 3: one that was to be sent again, and then the saga turned
            awaited = [c for c in awaited if c.action is Action.COMPENSATE]
        return sorted(awaited, key=lambda c: (c.step, c.action))
