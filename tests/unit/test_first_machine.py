"""Law 8: what the first machine wrote is read by this one without a change of its meaning, and goes on from there."""

from __future__ import annotations

import json
import uuid

import pytest

from watership.machine import events as e
from watership.machine.apply import fold
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import MACHINE_VERSION, Outcome, Phase, SagaState, Status
from watership.saga.storage.rows import (
    changes_from_json,
    changes_to_json,
    context_to_json,
    current_step,
    state_from_row,
    state_to_json,
)

from tests.support.first_machine import FIRST_VERSION, Written, written

SAGAS = written()
by_title = pytest.mark.parametrize("saga", SAGAS, ids=[saga.title for saga in SAGAS])


def test_they_are_an_older_machine_s() -> None:
    assert FIRST_VERSION < MACHINE_VERSION
    assert {saga.row["status"] for saga in SAGAS} == set(Status) - {"FAILED"}


@by_title
def test_its_plan_has_the_name_that_it_had(saga: Written) -> None:
    plan = Plan.from_data(json.loads(saga.plan))
    assert plan.hash == saga.plan_hash
    assert plan.to_data() == json.loads(saga.plan)


@by_title
def test_its_log_folds_to_its_row_and_both_are_written_as_they_were(saga: Written) -> None:
    changes = [changes_from_json(entry["changes"]) for entry in saga.log]
    state = state_from_row(saga.row)
    assert fold(saga.saga_id, changes) == state
    assert [changes_to_json(entry) for entry in changes] == [entry["changes"] for entry in saga.log]
    assert state_to_json(state) == saga.row["state"]
    assert context_to_json(state) == saga.row["context"]
    assert (current_step(state), state.due_at_ms) == (saga.row["step"], saga.row["due_at_ms"])


@by_title
def test_it_goes_on_to_its_end(saga: Written) -> None:
    plan = Plan.from_data(json.loads(saga.plan))
    log = [changes_from_json(entry["changes"]) for entry in saga.log]
    state, now_ms = state_from_row(saga.row), saga.log[-1]["at_ms"]
    for _ in range(40):
        event = next_event(plan, state)
        if event is None:
            break
        now_ms = max(now_ms, state.due_at_ms or 0) if isinstance(event, e.TimePassed) else now_ms
        reaction = react(plan, state, event, now_ms)
        state = reaction.state
        log.append(reaction.changes)
    assert state.status == saga.end
    assert not any(step.needs_undoing for step in state.steps.values()) or state.status is Status.COMPLETED
    assert fold(saga.saga_id, log) == state


def next_event(plan: Plan, state: SagaState) -> e.Event | None:
    """Workers answer that all is well, a person lets it go on, time passes."""
    if state.parked_reason is not None:
        return e.RetryRequested("ann", "mended")
    if state.status is Status.PENDING:
        return e.PlanFound(plan.hash)
    for name, action, found in state.active_actions():
        if found.phase is Phase.AWAITED:
            return e.StepReplied(name, action, found.attempt, uuid.uuid4().hex, Outcome.DONE)
        return e.TimePassed()
    return None
