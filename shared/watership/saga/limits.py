"""What arrives at a saga in this process, held against its context as it stands (law 10): nothing takes it over its limit.

A step's own run and a signal's sender have looked already, each at its part; what came in between, only the driver sees.
"""

from __future__ import annotations

import dataclasses

from watership import codec
from watership.errors import error_lineage
from watership.machine import events as e
from watership.machine.plan import Plan
from watership.machine.state import Failure, Outcome, SagaState


def within_limits(plan: Plan | None, state: SagaState, event: e.Event) -> e.Event:
    """The event as the machine may have it: a signal whose data has no room does not fit; a reply's changes go unkept."""
    if isinstance(event, e.StepReplied):
        return _reply(state, event) if event.patch else event
    return _signal(plan, state, event) if isinstance(event, e.SignalReceived) and plan is not None else event


def _signal(plan: Plan, state: SagaState, event: e.SignalReceived) -> e.SignalReceived:
    wait = plan.waits.get(event.name)
    if wait is None or wait.into is None or event.trouble is not None:
        return event
    over = codec.over_the_limit(state.context, {wait.into: event.data}, what=wait.into)
    return event if over is None else dataclasses.replace(event, trouble=str(over))


def _reply(state: SagaState, event: e.StepReplied) -> e.StepReplied:
    """The step may have acted, and its changes cannot be kept: unknown, so undone (law 5)."""
    assert event.patch is not None, "what changes nothing has room"
    over = codec.over_the_limit(state.context, event.patch, what=f"saga {state.saga_id}, step {event.step}")
    if over is None:
        return event
    lineage = tuple(str(code) for code in error_lineage(type(over)))
    failure = Failure(over.code, type(over).__name__, str(over), lineage, event.step)
    return dataclasses.replace(
        event, outcome=Outcome.UNKNOWN, patch=None, response=None, failure=failure, events=(), certain=False
    )
