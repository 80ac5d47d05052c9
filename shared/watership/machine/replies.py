"""What follows from a worker's reply: the part of `react` that knows outcomes. See the theory at the top of `react`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from watership.errors import InvalidPayload, LimitExceeded
from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.directions import Decision, dispatch, go_on, passed_over, turn_around
from watership.machine.nodes import DELAY_MS_MAX, FallbackPlan, RetryPlan, StepPlan, members
from watership.machine.state import (
    ACT,
    COMPENSATE,
    DONE,
    FAILED,
    IDLE,
    IN_DOUBT,
    RUNNING,
    STOPPED,
    UNKNOWN,
    VERIFY,
    Action,
    ActionState,
    Failure,
    Outcome,
    Status,
)

# A run that left behind what cannot be kept: as a worker tells it, and as the orchestrator does.
NOT_KEPT = {name for error in (LimitExceeded, InvalidPayload) for name in (error.code, error.__name__)}


def step_replied(d: Decision, event: e.StepReplied) -> None:
    """A worker reported one run of one action."""
    action = d.state.awaited(event.step, event.action, event.attempt)
    if action is None:
        _stale_reply(d, event)
    elif event.action is VERIFY:
        _verify_replied(d, event)
    else:
        doubtful = (event.redelivered or action.doubtful) and not event.certain
        outcome = event.outcome
        if outcome is FAILED and doubtful:
            outcome = UNKNOWN  # this run failed; another one of the same command may not have
        if event.action is ACT:
            _act_replied(d, event, outcome)
        else:
            _compensation_replied(d, event, outcome)


def _replied(d: Decision, event: e.StepReplied, outcome: Outcome, *, final: bool, in_doubt: bool = False) -> None:
    done = outcome is DONE
    d.record(
        c.Replied(
            event.step,
            event.action,
            event.attempt,
            event.run,
            outcome,
            final,
            event.patch if outcome is not FAILED else None,
            event.response if done else None,
            event.failure,
            event.redelivered or None,
            in_doubt or None,
            (event.action is ACT and _is_shared(d, event.step)) or None,
            [dict(emitted) for emitted in event.events] if done and event.events else None,
        )
    )


def _act_replied(d: Decision, event: e.StepReplied, outcome: Outcome) -> None:
    step = d.step_plan(event.step)
    clash = _clash(d, event.step, event.patch) if event.patch and outcome is DONE else None
    if outcome is UNKNOWN and step.verify_retry is not None and d.state.status is RUNNING:
        _replied(d, event, outcome, final=False, in_doubt=True)
        _ask(d, step)
        return
    again = outcome is not DONE and _may_act_again(d, step, outcome, event.failure)
    _replied(d, event, outcome, final=not again)
    if again:
        _act_again(d, step, event.failure)
    else:
        act_ended(d, step, outcome, clash or event.failure, clashed=clash is not None)


def _may_act_again(d: Decision, step: StepPlan, outcome: Outcome, failure: Failure | None) -> bool:
    act = d.state.step(step.name).act
    if d.state.status is not RUNNING or (outcome is UNKNOWN and not step.rerun):
        return False
    if _repeats_without_end(step.retry, outcome, failure):
        return False
    return step.retry.allows_another(act.attempt - act.spent, _lineage(failure))


def _repeats_without_end(retry: RetryPlan, outcome: Outcome, failure: Failure | None) -> bool:
    """What a run left behind cannot be kept, and a run that repeats it can be no better: nor is there a last attempt."""
    return retry.attempts_max is None and outcome is UNKNOWN and not NOT_KEPT.isdisjoint(_lineage(failure))


def _act_again(d: Decision, step: StepPlan, failure: Failure | None) -> None:
    act = d.state.step(step.name).act
    _try_again(d, step, ACT, act, step.retry, failure)


def act_ended(d: Decision, step: StepPlan, outcome: Outcome, failure: Failure | None, *, clashed: bool = False) -> None:
    """No further attempt of this act follows by itself: forward if it is done, else whatever its failure leads to."""
    if d.state.status is not RUNNING or (outcome is DONE and not clashed):
        go_on(d)
        return
    failure = failure or Failure("unknown", "", f"step {step.name} ended {outcome}", (), step.name)
    act = d.state.step(step.name).act
    whole = act.outcome or outcome  # of all its runs: the last one says nothing of those before
    taken_over = not clashed and _is_taken_over(d, step, failure)
    if whole is DONE and not clashed and (d.state.pivoted or taken_over):
        d.record(c.Verified(step.name, act.attempt, DONE))  # an earlier run was done, as its late reply said
        go_on(d)
    elif d.state.pivoted and not (d.is_pivot(step.name) and whole is FAILED):
        _stop(d, step, whole, failure)
    elif taken_over:
        go_on(d)
    else:
        turn_around(d, failure)


def _is_taken_over(d: Decision, step: StepPlan, failure: Failure) -> bool:
    assert d.plan is not None
    unit = d.plan.unit_of[step.name]
    return isinstance(unit, FallbackPlan) and step is unit.primary and unit.takes_over_from(failure.lineage)


def _stop(d: Decision, step: StepPlan, outcome: Outcome, failure: Failure) -> None:
    """Law 5: past the pivot nothing is undone, and an unknown pivot is never assumed: a person has to look."""
    act = d.state.step(step.name).act
    if outcome is not DONE:
        d.record(c.Stopped(step.name))
    where = (
        "the outcome of the pivot" if d.is_pivot(step.name) else f"past its pivot {d.plan and d.plan.pivot}, the act"
    )
    d.record(
        c.Parked(
            f"{where} {step.name} is {outcome} after {act.attempt} attempts ({_words(failure)}), and the saga can only go "
            f"forward: mend its cause, then `watership retry {d.state.saga_id} --reason …` (embedded: recover_saga)"
        )
    )


def _clash(d: Decision, step: str, patch: Mapping[str, Any] | None) -> Failure | None:
    """Two members of a parallel group that write one field differently: both are done, the group fails."""
    group = d.plan.group_of.get(step) if d.plan is not None and patch else None
    if group is None or d.plan is None or patch is None:
        return None
    for other in members(group):
        state = d.state.peek(other.name)
        if d.plan.unit_of[other.name] is d.plan.unit_of[step] or state is None or not state.own:
            continue  # itself, or the other half of its fallback: those never both stand
        fields = sorted(name for name in patch if name in state.own and state.own[name] != patch[name])
        if fields:
            words = f"steps {other.name} and {step} act in parallel and wrote {', '.join(fields)} differently"
            return Failure("parallel_clash", "ParallelClash", words, ("parallel_clash",), step)
    return None


# --- compensation --------------------------------------------------------------------------------------------------


def _compensation_replied(d: Decision, event: e.StepReplied, outcome: Outcome) -> None:
    step = d.step_plan(event.step)
    undoing = d.state.step(event.step).compensate
    retry = step.compensation_retry
    allowed = retry.allows_another(undoing.attempt - undoing.spent, _lineage(event.failure))
    again = outcome is not DONE and allowed and not _repeats_without_end(retry, outcome, event.failure)
    _replied(d, event, outcome, final=not again)
    if again:
        _try_again(d, step, COMPENSATE, undoing, retry, event.failure)
    elif outcome is DONE:
        go_on(d)
    else:
        why = _words(event.failure) if event.failure else f"it ended {outcome}"
        d.record(
            c.Parked(
                f"the compensation of step {event.step} is {'not tried again' if allowed else 'out of retries'} after "
                f"{event.attempt} attempts ({why}): "
                f"mend its cause, then `watership retry {d.state.saga_id} --reason …` (embedded: recover_saga)"
            )
        )


def _try_again(
    d: Decision, step: StepPlan, action: Action, state: ActionState, retry: RetryPlan, failure: Failure | None
) -> None:
    attempt = state.attempt + 1
    delay_ms = retry.delay_before_ms(attempt - state.spent, salt=f"{d.state.saga_id}:{step.name}:{action}")
    if failure is not None and failure.retry_after_ms is not None:
        delay_ms = max(delay_ms, min(failure.retry_after_ms, DELAY_MS_MAX))
    if delay_ms or d.state.parked_reason is not None:  # a parked saga sends nothing until a person says so
        d.record(c.Delayed(step.name, action, attempt, d.now_ms + delay_ms))
    else:
        dispatch(d, step, action, attempt=attempt)


# --- verification --------------------------------------------------------------------------------------------------


def _ask(d: Decision, step: StepPlan) -> None:
    """Law 5: an unknown act is asked about first."""
    asked = d.state.step(step.name).verify.attempt
    if d.state.parked_reason is None:
        dispatch(d, step, VERIFY, attempt=asked + 1)
    else:
        d.record(c.Delayed(step.name, VERIFY, asked + 1, d.now_ms))


def _verify_replied(d: Decision, event: e.StepReplied) -> None:
    step = d.step_plan(event.step)
    state = d.state.step(event.step)
    assert step.verify_retry is not None, "it was asked, so its plan says how often"
    again = event.outcome is UNKNOWN and step.verify_retry.allows_another(
        state.verify.attempt - state.verify.spent, _lineage(event.failure)
    )
    _replied(d, event, event.outcome, final=not again)
    if again:
        _try_again(d, step, VERIFY, state.verify, step.verify_retry, event.failure)
        return
    outcome = event.outcome
    if outcome is FAILED and state.act.doubtful:
        outcome = UNKNOWN  # no proof: another delivery of the same command may still run
    _resolve_doubt(d, step, outcome, event)


def _resolve_doubt(d: Decision, step: StepPlan, outcome: Outcome, answer: e.StepReplied) -> None:
    """What came of an act is known, or will not be: verify, then retry, then compensation (law 5)."""
    state = d.state.step(step.name)
    failure, done = state.doubt, outcome is DONE
    clash = _clash(d, step.name, answer.patch) if done else None
    d.record(
        c.Verified(
            step.name,
            state.act.attempt,
            outcome,
            answer.patch if done else None,
            answer.response if done else None,
            shared=True if done and _is_shared(d, step.name) else None,
            events=[dict(emitted) for emitted in answer.events] if done and answer.events else None,
        )
    )
    if not done and _may_act_again(d, step, outcome, failure):
        _act_again(d, step, failure)
    else:
        act_ended(d, step, outcome, clash or failure, clashed=clash is not None)


def _is_shared(d: Decision, step: str) -> bool:
    return d.plan is not None and step in d.plan.group_of


def run_lost(d: Decision, step: StepPlan) -> None:
    """A run that must not be begun again may have begun, and will not report: its outcome is unknown."""
    act = d.state.step(step.name).act
    failure = Failure(
        "run_lost", "RunLost", f"no reply came of step {step.name}, which must not run twice", (), step.name
    )
    lost = e.StepReplied(step.name, ACT, act.attempt, "", UNKNOWN, failure=failure, redelivered=True)
    _act_replied(d, lost, UNKNOWN)


# --- replies that nobody awaits ------------------------------------------------------------------------------------


def _stale_reply(d: Decision, event: e.StepReplied) -> None:
    d.ledger = f"{event.action} {event.step} attempt {event.attempt} was not awaited"
    state = d.state.peek(event.step)
    outcome = event.outcome
    if outcome is FAILED and event.redelivered and not event.certain:
        outcome = UNKNOWN  # as for an awaited one: this run failed, an earlier one may not have
    if event.known or event.action is not ACT or outcome is FAILED or state is None:
        return
    if event.attempt > state.act.attempt or d.plan is None or event.step not in d.plan.by_name:
        return  # never dispatched as far as this log knows: kept for a person to see
    if outcome is DONE and state.act.phase in (IN_DOUBT, STOPPED):
        d.ledger += ": it answers what was in doubt"
        _resolve_doubt(d, d.step_plan(event.step), DONE, event)
        return
    # What others may have written since stays as it is: its own compensation sees what it wrote.
    aside = passed_over(d, event.step) or _is_shared(d, event.step)
    stands = state.act.outcome is DONE and state.compensate.phase is IDLE
    if stands and not passed_over(d, event.step):
        return  # it ran twice; the saga wants it done, and it is
    patch = event.patch if event.outcome is not FAILED else None
    d.record(c.LateAct(event.step, event.attempt, event.run, outcome, patch, aside or None))
    d.ledger += ": merged, and undone"
    _undo_late(d, event.step)


def _undo_late(d: Decision, step: str) -> None:
    state = d.state.step(step)
    if state.act.active or not state.needs_undoing or d.state.parked_reason is not None:
        return
    if d.state.status is Status.COMPENSATED:
        turn_around(d, None)
    else:
        go_on(d)


def _lineage(failure: Failure | None) -> tuple[str, ...]:
    return failure.lineage if failure is not None else ()


def _words(failure: Failure) -> str:
    return f"{failure.type_name}: {failure.message}"
