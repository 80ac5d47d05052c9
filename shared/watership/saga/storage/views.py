"""A saga as operators and clients see it: JSON data for `list` and `show`, alike embedded and distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from watership import codec
from watership.machine.changes import change_to_data, failure_to_data
from watership.saga.storage.protocol import LedgerLine, LogEntry, SagaRecord, SagaSummary
from watership.saga.storage.rows import current_step


def iso(at_ms: int) -> str:
    """A moment as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).isoformat(timespec="milliseconds")


def summary_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of a listing."""
    return {
        "saga_id": str(row["saga_id"]),
        "name": row["name"],
        "status": row["status"],
        "step": row["step"],
        "parked_reason": row["parked_reason"],
        "created_at": iso(row["created_at_ms"]),
        "updated_at": iso(row["updated_at_ms"]),
    }


def ledger_view(line: LedgerLine) -> dict[str, Any]:
    """One line of the ledger."""
    return {
        "saga_id": str(line.saga_id),
        "at": iso(line.at_ms),
        "reason": line.reason,
        "message": codec.loads(line.message),
    }


def saga_view(
    row: Mapping[str, Any], log: Sequence[Mapping[str, Any]], ledger: Sequence[LedgerLine] = ()
) -> dict[str, Any]:
    """A whole saga: its line, its context and failure, its log, each entry's changes as JSON data, and its ledger."""
    failure = codec.loads(row["state"]).get("failure")
    return {
        **summary_view(row),
        "seq": row["seq"],
        "plan_hash": row["plan_hash"],
        "context": codec.loads(row["context"]),
        "failure": failure,
        "due_at": iso(row["due_at_ms"]) if row["due_at_ms"] is not None else None,
        "owed_reason": row["owed_reason"],
        "log": [
            {"seq": entry["seq"], "at": iso(entry["at_ms"]), "cause": entry["cause"], "changes": entry["changes"]}
            for entry in log
        ],
        "ledger": [ledger_view(line) for line in ledger],
    }


def summary_to_view(summary: SagaSummary) -> dict[str, Any]:
    """One line of a listing, of an embedded store."""
    return {
        "saga_id": str(summary.saga_id),
        "name": summary.name,
        "status": summary.status.value,
        "step": summary.step,
        "parked_reason": summary.parked_reason,
        "created_at": summary.created_at.isoformat(timespec="milliseconds"),
        "updated_at": summary.updated_at.isoformat(timespec="milliseconds"),
    }


def record_view(record: SagaRecord, history: Sequence[LogEntry], ledger: Sequence[LedgerLine] = ()) -> dict[str, Any]:
    """A whole saga of an embedded store."""
    state = record.state
    return {
        "saga_id": str(record.saga_id),
        "name": state.name,
        "status": state.status.value,
        "step": current_step(state),
        "parked_reason": state.parked_reason,
        "created_at": iso(record.created_at_ms),
        "updated_at": iso(record.updated_at_ms),
        "seq": state.seq,
        "plan_hash": state.plan_hash,
        "context": state.context,
        "failure": failure_to_data(state.failure) if state.failure is not None else None,
        "due_at": iso(state.due_at_ms) if state.due_at_ms is not None else None,
        "owed_reason": None,
        "log": [
            {
                "seq": entry.seq,
                "at": iso(entry.at_ms),
                "cause": entry.cause,
                "changes": [change_to_data(change) for change in entry.changes],
            }
            for entry in history
        ],
        "ledger": [ledger_view(line) for line in ledger],
    }
