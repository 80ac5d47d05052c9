"""Starts that were written in transactions, as an embedded store takes them up: read, or parked with the reason."""

from __future__ import annotations

from typing import Any

from watership import codec
from watership.errors import InvalidPayload
from watership.machine import events as e
from watership.machine.react import react
from watership.machine.state import SagaState
from watership.saga.compile import Definition
from watership.saga.models import shape_of
from watership.saga.storage.protocol import LEASE_MS, LogEntry, SagaStorage, StartRow

UNREADABLE = "unreadable"


def readable(row: StartRow, definition: Definition) -> dict[str, Any]:
    """The context of a start. Raises `InvalidPayload` or `LimitExceeded` if it cannot be read, or is not its saga's."""
    what = f"the context of saga {row.saga} {row.saga_id}"
    context = codec.decode(row.context.encode(), what=what)
    if not isinstance(context, dict):
        raise InvalidPayload(f"{what} must be a JSON object, it is a {type(context).__name__}")
    codec.encode_context(context, what=what)
    try:
        shape_of(definition.context_type).load(context)
    except Exception as error:
        raise InvalidPayload(f"{what} does not fit {definition.context_type.__name__}: {error}") from error
    return context


async def park(storage: SagaStorage, row: StartRow, reason: str) -> None:
    """Makes the saga, parked: its caller has committed long since, so there is nobody to refuse it to."""
    now_ms = await storage.now_ms()
    made = react(None, SagaState(str(row.saga_id)), e.SagaStarted(row.saga, {}, UNREADABLE, now_ms), now_ms)
    parked = react(None, made.state, e.ContextRefused(reason), now_ms)
    parked.state.seq = 1  # both in one entry, so in one write: it is never seen unparked
    entry = LogEntry(1, now_ms, "start", (*made.changes, *parked.changes))
    input_hash = codec.input_hash(row.saga, {"unreadable": row.context})
    lease = await storage.create(row.saga_id, parked.state, entry, input_hash=input_hash, lease_ms=LEASE_MS)
    if lease is not None:
        await storage.release(lease)
        return
    said = codec.dumps({"saga": row.saga}).decode()
    await storage.keep_in_ledger(row.saga_id, f"its id is taken, and {reason}", said)
