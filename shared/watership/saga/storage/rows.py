"""Between a saga's state and its row: the one place that knows how a state is written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from watership import codec
from watership.errors import LeaseLost
from watership.machine.changes import (
    Change,
    Dispatched,
    LateAct,
    NothingToUndo,
    Overdue,
    Replied,
    Resent,
    Verified,
    change_from_data,
    change_to_data,
    failure_from_data,
    failure_to_data,
)
from watership.machine.state import TERMINAL, Action, ActionState, Outcome, Phase, SagaState, Status, StepState
from watership.saga.storage.protocol import Lease, LogEntry, SagaLogEntry, SagaStepStatus

# An action is written as the list of its values, in this order; one that was never touched is left out.
_values_of = attrgetter("phase", "attempt", "spent", "refusals", "doubtful", "outcome", "due_at_ms", "run")
_UNTOUCHED = _values_of(ActionState())
# Found by their words several times as fast as an enum finds them itself, and a row holds a dozen.
_STATUSES = {status.value: status for status in Status}
_PHASES = {phase.value: phase for phase in Phase}
_OUTCOMES: dict[str | None, Outcome | None] = {None: None, **{outcome.value: outcome for outcome in Outcome}}
_FLOW = ("signals", "pivoted", "deadline_at_ms", "emits")  # most sagas have none of these

_STEP_STATUS = {
    Outcome.DONE: SagaStepStatus.COMPLETED,
    Outcome.FAILED: SagaStepStatus.FAILED,
    Outcome.UNKNOWN: SagaStepStatus.UNKNOWN,
}


def state_to_json(state: SagaState) -> str:
    """What the row's other columns do not hold: the steps, the failure, the looks for a plan, the flow."""
    data: dict[str, Any] = {"steps": {name: _step_to_data(step) for name, step in state.steps.items()}}
    if state.failure is not None:
        data["failure"] = failure_to_data(state.failure)
    if state.plan_due_at_ms is not None or state.plan_looks:
        data["plan"] = [state.plan_due_at_ms, state.plan_looks]
    for name in _FLOW:
        if value := getattr(state, name):
            data[name] = value
    return codec.dumps(data).decode()


def context_to_json(state: SagaState) -> str:
    """The context as the row holds it."""
    return codec.dumps(state.context).decode()


def state_from_row(row: Mapping[str, Any]) -> SagaState:
    """The state that a row holds. ``row`` has the columns of `saga_table` by name."""
    data = codec.loads(row["state"])
    plan_due_at_ms, plan_looks = data.get("plan", (None, 0))
    failure = data.get("failure")
    return SagaState(
        saga_id=str(row["saga_id"]),
        name=row["name"],
        status=_STATUSES[row["status"]],
        plan_hash=row["plan_hash"],
        seq=row["seq"],
        context=codec.loads(row["context"]),
        steps={name: _step_from_data(step) for name, step in data["steps"].items()},
        failure=failure_from_data(failure) if failure else None,
        parked_reason=row["parked_reason"],
        paused=bool(row["paused"]),
        plan_due_at_ms=plan_due_at_ms,
        plan_looks=plan_looks,
        **{name: data[name] for name in _FLOW if name in data},
    )


def changes_to_json(changes: tuple[Change, ...]) -> str:
    """A log entry's changes."""
    return codec.dumps([change_to_data(change) for change in changes]).decode()


def changes_from_json(text: str) -> tuple[Change, ...]:
    """Reads what `changes_to_json` wrote."""
    return tuple(change_from_data(data) for data in codec.loads(text))


def current_step(state: SagaState) -> str | None:
    """Where the saga stands: the step that is awaited or delayed, else the one that failed."""
    for name, _, _ in state.active_actions():
        return name
    stopped = [name for name, step in state.steps.items() if step.compensate.phase is Phase.STOPPED]
    if stopped:
        return stopped[0]
    return state.failure.step if state.failure is not None else None


def ended(state: SagaState) -> bool:
    """Whether nobody need look at the saga again: it is over, and no late act is being undone."""
    return state.status in TERMINAL and state.due_at_ms is None


def seq_before(state: SagaState, entries: Sequence[LogEntry]) -> int:
    """Where the log stood when ``entries`` were decided. Raises `ValueError` if they do not lead to ``state``."""
    seq = before = state.seq - len(entries)
    if len(entries) == 1 and entries[0].seq == state.seq:
        return before
    for entry in entries:
        seq += 1
        if entry.seq != seq:
            numbers = [entry.seq for entry in entries]
            raise ValueError(f"saga {state.saga_id}: the entries {numbers} do not lead to entry {state.seq}")
    return before


def lease_lost(lease: Lease) -> LeaseLost:
    """What a write under a former epoch gets."""
    return LeaseLost(
        f"saga {lease.saga_id}: another process drives it now (this lease, epoch {lease.epoch}, was lost); "
        f"nothing was written"
    )


def log_moved(lease: Lease, seq: int) -> ValueError:
    """What a write gets whose lease holds, and which was not decided on the log's newest entry: a bug of the caller."""
    return ValueError(f"saga {lease.saga_id}: its log is at entry {seq} already; nothing was written")


def history_lines(saga_id: Any, entries: list[LogEntry]) -> list[SagaLogEntry]:
    """What befell each step, one line a happening, in the log's order."""
    lines: list[SagaLogEntry] = []
    for entry in entries:
        at = datetime.fromtimestamp(entry.at_ms / 1000, tz=UTC)
        for change in entry.changes:
            line = _history_line(change)
            if line is not None:
                step, action, status, details = line
                lines.append(SagaLogEntry(saga_id, step, action, status, at, details))
    return lines


def _history_line(change: Change) -> tuple[str, str, SagaStepStatus, str | None] | None:
    match change:
        case Dispatched():
            return change.step, change.action.value, SagaStepStatus.STARTED, None
        case Resent():
            return change.step, change.action.value, SagaStepStatus.STARTED, "sent again"
        case Replied():
            details = f"{change.failure.type_name}: {change.failure.message}" if change.failure else None
            return change.step, change.action.value, _STEP_STATUS[change.outcome], details
        case Verified():
            return change.step, Action.ACT.value, _STEP_STATUS[change.outcome], "as its verification found"
        case Overdue():
            return change.step, Action.ACT.value, SagaStepStatus.UNKNOWN, "no reply in its time"
        case LateAct():
            return change.step, Action.ACT.value, _STEP_STATUS[change.outcome], "late"
        case NothingToUndo():
            return change.step, Action.COMPENSATE.value, SagaStepStatus.COMPLETED, "nothing to undo"
        case _:
            return None


def _step_to_data(step: StepState) -> list[Any]:
    act, undo, verify = _values_of(step.act), _values_of(step.compensate), _values_of(step.verify)
    rare: list[Any] = []
    if verify != _UNTOUCHED or step.own is not None:
        rare = [verify, step.own, failure_to_data(step.doubt) if step.doubt is not None else None]
    tail = [step.generation, step.undo_again] if rare or step.generation != 1 or step.undo_again else []
    return [act, undo if undo != _UNTOUCHED else None, *tail, *rare]


def _step_from_data(data: list[Any]) -> StepState:
    act = _action_from_data(data[0])
    undo = _action_from_data(data[1]) if data[1] is not None else ActionState()
    step = StepState(act, undo, *data[2:4])
    if len(data) > 4:
        verify, step.own, doubt = data[4:]
        step.verify = _action_from_data(verify)
        step.doubt = failure_from_data(doubt) if doubt is not None else None
    return step


def _action_from_data(data: list[Any]) -> ActionState:
    phase, attempt, spent, refusals, doubtful, outcome, due_at_ms, run = data
    return ActionState(_PHASES[phase], attempt, spent, refusals, doubtful, _OUTCOMES[outcome], due_at_ms, run)
