"""What the laws say of groups, pivots, pauses and signals, told from a saga's log. Pure.

The laws of the machine's own tests, where they have the words already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from watership.machine import changes as c
from watership.machine.nodes import ParallelPlan, members
from watership.machine.plan import Plan
from watership.machine.state import Outcome, SagaState, Status
from watership.messages import Signal

from tests.simulation.evidence import Entry
from tests.support import machine_laws

Changes = tuple[c.Change, ...]
Offence = tuple[str, str]


def offences(
    plan: Plan, before: SagaState, after: SagaState, earlier: Sequence[Entry], new: Entry
) -> Iterator[Offence]:
    """Each law that a new entry breaks, by name, and in words."""
    changes = new.changes
    late = any(isinstance(change, c.LateAct) for entry in (*earlier, new) for change in entry.changes)
    if not late:
        yield from _told("law_04_reverse_order", machine_laws.in_reverse_order, plan, after, changes)
    yield from _told("law_03_strictly_backward", machine_laws.no_act_after_the_turn, before, changes)
    yield from _told("law_05_outcomes_only_rise", machine_laws.outcomes_only_rise, before, after)
    forward = machine_laws.only_forward_from_the_pivot
    yield from _told("law_05_only_forward_from_the_pivot", forward, plan, before, after, changes)
    yield from _law_09_deadline(before, after, new)
    yield from _law_09_pauses_last(before, new)


def _told(law: str, check: Callable[..., None], *arguments: object) -> Iterator[Offence]:
    try:
        check(*arguments)
    except AssertionError as error:
        yield law, str(error) or check.__name__.replace("_", " ")


def _law_09_deadline(before: SagaState, after: SagaState, new: Entry) -> Iterator[Offence]:
    """A saga is turned around at its deadline: not before, and not only later."""
    deadline_at_ms = before.deadline_at_ms
    for change in new.changes:
        failure = change.failure if isinstance(change, c.CompensationBegan) else None
        early = deadline_at_ms is None or new.at_ms < deadline_at_ms
        if failure is not None and failure.code == "deadline_passed" and early:
            yield "law_09_one_clock", f"its deadline is {deadline_at_ms}, and it is turned around at {new.at_ms}"
    passed = deadline_at_ms is not None and deadline_at_ms <= new.at_ms and before.status is Status.RUNNING
    if new.cause == "time" and passed and before.parked_reason is None and after.status is Status.RUNNING:
        yield "law_09_one_clock", f"its deadline was {deadline_at_ms}, and at {new.at_ms} it goes on"


def _law_09_pauses_last(before: SagaState, new: Entry) -> Iterator[Offence]:
    for change in new.changes:
        pause = before.peek(change.step) if isinstance(change, c.Elapsed) else None
        due_at_ms = pause.act.due_at_ms if pause is not None else None
        if isinstance(change, c.Elapsed) and (due_at_ms is None or new.at_ms < due_at_ms):
            yield "law_09_one_clock", f"{change.step} lasts until {due_at_ms}, and ended at {new.at_ms}"


# --- signals


def signal_offences(
    before: SagaState, earlier: Sequence[Entry], new: Entry, sent: Mapping[str, Signal]
) -> Iterator[Offence]:
    """A signal does what its author sent, once, and the first of its name counts."""
    law = "law_06_signals_are_taken_once"
    yield from _told(law, machine_laws.signals_are_taken_once, [entry.changes for entry in (*earlier, new)])
    for change in new.changes:
        if not isinstance(change, c.SignalKept | c.Signalled):
            continue
        name = change.name if isinstance(change, c.SignalKept) else change.step
        if isinstance(change, c.Signalled) and name in before.signals:
            data = before.signals[name]
        else:
            signal = sent.get(new.cause.removeprefix("signal:"))
            if signal is None or (str(signal.saga_id), signal.name) != (before.saga_id, name):
                yield law, f"{name} has a signal by {new.cause}, and nobody sent it"
                continue
            data = signal.data
        if change.data != data:
            yield law, f"{name} has {change.data!r}, and was sent {data!r}"


# --- the end


def end_offences(plan: Plan, state: SagaState, entries: Sequence[Entry]) -> Iterator[Offence]:
    """What must be so of a saga that ended."""
    log = [entry.changes for entry in entries]
    yield from _told("promise_fully_undone", machine_laws.compensated_means_undone, plan, state, log, set())
    yield from _told("promise_fully_applied", machine_laws.completed_means_done_once, plan, state, log)
    yield from _told("law_08_the_log_is_the_truth", machine_laws.events_are_told_apart, log)
    if state.status is not Status.COMPLETED:
        return
    for change in (change for changes in log for change in changes):
        if isinstance(change, c.Signalled) and change.into is not None and state.context[change.into] != change.data:
            yield "promise_fully_applied", f"the signal {change.step} is not in the context"
    for node in plan.nodes:
        if isinstance(node, ParallelPlan):
            yield from _clash(plan, state, node)


def _clash(plan: Plan, state: SagaState, group: ParallelPlan) -> Iterator[Offence]:
    """Two members that write one field differently: the group fails. Past the pivot, a person lets it stand."""
    if state.pivoted and plan.pivot is not None and plan.places[plan.pivot] < plan.nodes.index(group):
        return
    written: dict[str, dict[str, object]] = {}
    for unit in group.nodes:
        for step in members(unit):
            of_step = state.peek(step.name)
            if of_step is None or of_step.act.outcome is not Outcome.DONE or of_step.compensate.attempt:
                continue  # it does not stand
            for field, value in (of_step.own or {}).items():
                written.setdefault(field, {})[members(unit)[0].name] = value
    for field, values in written.items():
        if len(set(map(str, values.values()))) > 1:
            yield "promise_fully_applied", f"members of a group wrote {field} differently, and both stand: {values}"
