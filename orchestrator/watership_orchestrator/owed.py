"""What a row owes: decided, committed, and not confirmed by the broker. Its reason begins with a code, for us; words for
people follow after a colon.
"""

from __future__ import annotations

from watership.machine.effects import SendCommand
from watership.machine.state import Phase, SagaState

OWED_LOOK_MS = 10_000
RETURNED = "returned"  # no queue took it: certainly never sent
EVENTS = "events"  # commands were confirmed; what steps emitted, or the saga's end, was not
UNCONFIRMED_YET = "unconfirmed: decided without a message, not yet confirmed as sent"


def awaited_commands(state: SagaState) -> frozenset[SendCommand]:
    """The commands whose replies a saga awaits."""
    return frozenset(
        SendCommand(name, action, action_state.attempt)
        for name, action, action_state in state.active_actions()
        if action_state.phase is Phase.AWAITED
    )


def returned_reason(command: SendCommand, words: str) -> str:
    """Of a row that owes a command which no queue took. It names the command: another one may be in doubt."""
    return f"{_returned(command)}{words}"


def is_unsent(owed_reason: str, command: SendCommand) -> bool:
    """Whether what is owed is this command, and it was certainly never delivered."""
    return owed_reason.startswith(_returned(command))


def is_in_doubt(owed_reason: str | None) -> bool:
    """Something owed may have been delivered: no later certainty about another command may overwrite that."""
    return owed_reason is not None and not owed_reason.startswith((f"{RETURNED}:", f"{EVENTS}:"))


def events_reason(words: str) -> str:
    """Of a row whose commands are confirmed, and which has not told the world all that it must."""
    return f"{EVENTS}: {words}"


def is_events(owed_reason: str) -> bool:
    """Whether only events are owed: no command goes out again for them."""
    return owed_reason.startswith(f"{EVENTS}:")


def look_at_ms(owed_reason: str | None, due_at_ms: int | None, now_ms: int) -> int | None:
    """When a row that owes something is looked at again; None: it owes nothing.

    A command that may be under way is given its time. For events alone, a retry or a pause that is due sooner does not wait.
    """
    if owed_reason is None:
        return None
    at_ms = now_ms + OWED_LOOK_MS
    return min(at_ms, due_at_ms) if due_at_ms is not None and is_events(owed_reason) else at_ms


def _returned(command: SendCommand) -> str:
    return f"{RETURNED}: {command.action} of {command.step}, attempt {command.attempt}: "
