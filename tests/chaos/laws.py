"""The laws, as far as they can be seen from outside when a run is over: what was left behind, and the breaches in it.

Each law is a function from the evidence to its breaches, a sentence each; none is a run without fault. Pure.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from watership.machine.apply import apply, fold
from watership.machine.changes import CompensationBegan, Dispatched, Replied, Resent
from watership.machine.nodes import members
from watership.machine.plan import Plan
from watership.machine.state import Action, Phase, SagaState
from watership.saga.storage.rows import state_from_row

from tests.chaos import flow_laws
from tests.chaos.evidence import Effect, Evidence, end_of
from tests.chaos.orders import CENTS_AT_FIRST, FLOW_STEPS, SHELVES, STEPS, STOCK_AT_FIRST, Kind, allowed_ends

# A worker that is killed before it could report its run: what it had done after the saga was undone, nobody knows.
UNREPORTED_WITHIN_S = 60.0
TERMINAL = ("COMPLETED", "COMPENSATED")
BESIDE = ("FlowReserve", "FlowCharge")  # members of one group
GUARDED = (Kind.CAREFUL, Kind.STUCK, Kind.FLOW)

Law = Callable[[Evidence], Iterator[str]]


def nothing_is_lost(evidence: Evidence) -> Iterator[str]:
    """Every confirmed start has a saga (law 1), every saga was asked for, and runs on what it was given (law 11)."""
    for saga_id in evidence.acks.keys() - evidence.rows.keys():
        yield f"saga {saga_id} was confirmed to its client, and is not there"
    for saga_id, row in evidence.rows.items():
        asked = evidence.intents.get(saga_id)
        first = evidence.log[saga_id][0].changes[0] if evidence.log[saga_id] else None
        if asked is None:
            yield f"saga {saga_id} is there, and nobody started it"
        elif first is None or getattr(first, "context", None) != asked:
            yield f"saga {saga_id} ({row['name']}) does not run on the input that it was started with"


def nothing_is_stuck(evidence: Evidence) -> Iterator[str]:
    """Each saga has ended, or is parked for a reason that the run gave it; and it owes nothing (law 2)."""
    for saga_id, row in evidence.rows.items():
        end = end_of(row)
        if end not in (*TERMINAL, "parked"):
            yield f"saga {saga_id} is {end} at {row['step']}, to be looked at at {row['wake_at_ms']}"
        elif saga_id in evidence.intents and end not in allowed_ends(evidence.intents[saga_id]):
            yield f"saga {saga_id} ended {end} ({row['parked_reason']}); its order was {evidence.intents[saga_id]}"
        elif end == "parked" and not _is_expected(row["parked_reason"], evidence.intents.get(saga_id, {})):
            yield f"saga {saga_id} is parked for a reason that nobody gave it: {row['parked_reason']}"
        if row["owed"]:
            yield f"saga {saga_id} still owes: {row['owed_reason']}"


def _is_expected(reason: str, order: Mapping[str, Any]) -> bool:
    """A step that cannot be undone, or a pivot of which nobody knows: a person is needed, and the run saw to that."""
    if order.get("kind") == Kind.FLOW:
        return any(words in reason for words in ("the outcome of the pivot FlowCapture", "the pivot FlowCapture acted"))
    return "out of retries" in reason


def the_log_is_the_truth(evidence: Evidence) -> Iterator[str]:
    """Folding a saga's log gives its row, and no entry is missing (law 8)."""
    for saga_id, row in evidence.rows.items():
        entries = evidence.log[saga_id]
        if [entry.seq for entry in entries] != list(range(1, row["seq"] + 1)):
            yield f"saga {saga_id} is at entry {row['seq']}, and its log has {[entry.seq for entry in entries]}"
            continue
        try:
            state = fold(str(saga_id), (entry.changes for entry in entries))
        except ValueError as error:
            yield str(error)
            continue
        if state != state_from_row(row):
            yield f"saga {saga_id}: its log gives {state}, its row is {state_from_row(row)}"
    for saga_id in evidence.log.keys() - evidence.rows.keys():
        yield f"saga {saga_id} has a log and no row"


def strictly_backward(evidence: Evidence) -> Iterator[str]:
    """After a saga has turned around, no act is decided (law 3)."""
    for saga_id, changes in evidence.histories():
        turned = False
        for change in changes:
            turned = turned or isinstance(change, CompensationBegan)
            if turned and isinstance(change, Dispatched | Resent) and change.action is Action.ACT:
                yield f"saga {saga_id}: after its turn {change} was decided"


def reverse_order(evidence: Evidence) -> Iterator[str]:
    """A compensation begins when all that came after its step is undone (law 4), by the log.

    One that has begun may have had its effect: its retries do not wait for an act that came late meanwhile.
    """
    for saga_id, changes in evidence.histories():
        plan = evidence.plan_of(saga_id)
        if plan is None:
            continue
        state = SagaState(str(saga_id))
        for change in changes:
            if isinstance(change, Dispatched) and change.action is Action.COMPENSATE and not _is_retry(state, change):
                for later in _later(plan, change.step):
                    after = state.peek(later)
                    if after is not None and (after.needs_undoing or after.act.active):
                        yield f"saga {saga_id}: {change.step} was told to compensate before {later} was undone"
            try:
                apply(state, change)
            except ValueError:
                break  # a broken log: `the_log_is_the_truth` tells


def _is_retry(state: SagaState, change: Dispatched) -> bool:
    found = state.peek(change.step)
    return found is not None and found.compensate.phase is Phase.DELAYED


def one_outcome_for_an_attempt(evidence: Evidence) -> Iterator[str]:
    """At most one reply to an attempt is applied (law 6)."""
    for saga_id, changes in evidence.histories():
        replies = Counter((c.step, c.action, c.attempt) for c in changes if isinstance(c, Replied))
        for (step, action, attempt), count in replies.items():
            if count > 1:
                yield f"saga {saga_id}: {count} outcomes of {action} {step}, attempt {attempt}, were applied"


def careful_effects_once(evidence: Evidence) -> Iterator[str]:
    """With careful participants: all steps acted once, or each that acted is undone once, after it acted."""
    for saga_id, row, effects in evidence.sagas_of(*GUARDED):
        steps = FLOW_STEPS if evidence.intents[saga_id]["kind"] == Kind.FLOW else STEPS
        acts, undos = _by_step(effects, "act"), _by_step(effects, "compensate")
        twice = [step for found in (acts, undos) for step, lines in found.items() if len(lines) > 1]
        if twice:
            yield f"saga {saga_id}: {', '.join(twice)} had an effect twice"
        backward = [step for step, lines in undos.items() if step not in acts or lines[0] < acts[step][0]]
        if backward:
            yield f"saga {saga_id}: {', '.join(backward)} was undone, and had not acted"
        end = end_of(row)
        if end == "COMPLETED" and (len(acts) != len(steps) or undos):
            yield f"saga {saga_id} is COMPLETED; what acted: {sorted(acts)}, what was undone: {sorted(undos)}"
        if end == "COMPENSATED" and acts.keys() != undos.keys():
            yield f"saga {saga_id} is COMPENSATED; what acted: {sorted(acts)}, what was undone: {sorted(undos)}"


def all_is_behind_the_barrier(evidence: Evidence) -> Iterator[str]:
    """Each effect of a careful participant has its row in the product's barrier, and each row that is done its effect."""
    effects = {
        (saga_id, effect.step, effect.action) for saga_id, _, lines in evidence.sagas_of(*GUARDED) for effect in lines
    }
    settled = {key for key, state in evidence.barred.items() if state in ("done", "undone")}
    for saga_id, step, action in effects - settled:
        state = evidence.barred.get((saga_id, step, action))
        yield f"saga {saga_id}: {action} {step} had its effect, and the barrier's row of it is {state}"
    for saga_id, step, action in settled - effects:
        yield f"saga {saga_id}: {action} {step} is done by the barrier's row, and had no effect"


def careful_effects_in_order(evidence: Evidence) -> Iterator[str]:
    """What acted before an earlier step was undone is undone before it (law 4), by the participants' own ledger."""
    for saga_id, _, effects in evidence.sagas_of(Kind.CAREFUL, Kind.STUCK):
        acts, undos = _by_step(effects, "act"), _by_step(effects, "compensate")
        for early, late in _pairs(undos):
            undone = undos[early][0]
            if late in acts and acts[late][0] < undone < undos[late][0]:
                yield f"saga {saga_id}: {early} was undone before {late}, which had acted"


def plain_effects_undone(evidence: Evidence) -> Iterator[str]:
    """With plain participants: all steps acted, or each that acted was undone after its last act.

    But for what a killed worker did late and could not report (`unreported`): nothing but a barrier helps there.
    """
    excused = _unreported(evidence)
    for saga_id, row, effects in evidence.sagas_of(Kind.PLAIN):
        acts, undos = _by_step(effects, "act"), _by_step(effects, "compensate")
        if row["status"] == "COMPLETED" and (len(acts) != len(STEPS) or undos):
            yield f"saga {saga_id} is COMPLETED; what acted: {sorted(acts)}, what was undone: {sorted(undos)}"
        for step, line in _left_behind(row, acts, undos):
            if line not in excused:
                yield f"saga {saga_id} is COMPENSATED, and {step} acted after it was undone last (effect {line})"


def unreported(evidence: Evidence) -> int:
    """How many effects of plain participants were left behind by workers that were killed before they could report."""
    killed = _unreported(evidence)
    return sum(
        line in killed
        for _, row, effects in evidence.sagas_of(Kind.PLAIN)
        for _, line in _left_behind(row, _by_step(effects, "act"), _by_step(effects, "compensate"))
    )


def _left_behind(
    row: Mapping[str, Any], acts: Mapping[str, list[int]], undos: Mapping[str, list[int]]
) -> Iterator[tuple[str, int]]:
    """The effects of a saga that is COMPENSATED after which there is no undoing, with their steps."""
    if row["status"] == "COMPENSATED":
        for step, lines in acts.items():
            yield from ((step, line) for line in lines if line > max(undos.get(step, [0])))


def _unreported(evidence: Evidence) -> set[int]:
    """Effects whose worker was killed soon after: it may not have been able to report them."""
    killed = {kill.pid: kill.at_s for kill in evidence.kills}
    return {
        effect.effect_id
        for effects in evidence.effects.values()
        for effect in effects
        if effect.pid in killed and -1.0 < killed[effect.pid] - effect.at_s < UNREPORTED_WITHIN_S
    }


def books_balance(evidence: Evidence) -> Iterator[str]:
    """Money and stock are where the sagas' ends say (careful), or where each single effect says (the others)."""
    pieces, charged, captured = (Counter[tuple[str, int]]() for _ in range(3))
    for saga_id, order in evidence.intents.items():
        where, row, effects = (
            (order["kind"], order["shelf"]),
            evidence.rows.get(saga_id),
            evidence.effects.get(saga_id, []),
        )
        end = end_of(row) if row is not None else ""
        by_its_end = order["kind"] in (Kind.CAREFUL, Kind.FLOW) and end != "parked"
        taken = 1 if end == "COMPLETED" else 0
        if by_its_end and evidence.shipped.get(saga_id, 0) != taken:
            yield f"saga {saga_id}: {evidence.shipped.get(saga_id, 0)} parcels left, and it {taken=}"
        reserved, paid, kept = (
            taken if by_its_end else _net(effects, step) for step in ("Reserve", "Charge", "Capture")
        )
        pieces[where] += reserved * order["pieces"]
        charged[where] += paid * order["cents"]
        captured[where] += kept * order["cents"] if order["kind"] == Kind.FLOW else 0
    for where in ((str(kind), shelf) for kind in Kind for shelf in range(SHELVES)):
        if evidence.pieces[where] != STOCK_AT_FIRST - pieces[where]:
            yield f"{where}: {evidence.pieces[where]} pieces left, and it should be {STOCK_AT_FIRST - pieces[where]}"
        money = evidence.cents[where], evidence.till[where], evidence.vault[where]
        if money != (CENTS_AT_FIRST - charged[where], charged[where] - captured[where], captured[where]):
            yield f"{where}: account, till and vault {money}, sold for {charged[where]}, captured {captured[where]}"


def clients_were_told_the_truth(evidence: Evidence) -> Iterator[str]:
    """How a client was told that its saga ended is how it ended."""
    for saga_id, told in evidence.told:
        row = evidence.rows.get(saga_id)
        if row is None or end_of(row) != told:
            yield f"saga {saga_id}: its client was told {told}, it is {end_of(row) if row else 'not there'}"


LAWS: tuple[Law, ...] = (
    nothing_is_lost,
    nothing_is_stuck,
    the_log_is_the_truth,
    strictly_backward,
    reverse_order,
    one_outcome_for_an_attempt,
    careful_effects_once,
    all_is_behind_the_barrier,
    careful_effects_in_order,
    plain_effects_undone,
    books_balance,
    clients_were_told_the_truth,
    *flow_laws.LAWS,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Breach:
    """A law that was broken, and how."""

    law: str
    how: str


def breaches(evidence: Evidence) -> list[Breach]:
    """All breaches of all laws."""
    return [Breach(law.__name__, how) for law in LAWS for how in law(evidence)]


def _later(plan: Plan, step: str) -> list[str]:
    names = [[member.name for member in members(node)] for node in plan.nodes]
    position = next(index for index, node in enumerate(names) if step in node)
    return [name for node in names[position + 1 :] for name in node]


def _by_step(effects: list[Effect], action: str) -> dict[str, list[int]]:
    """The effects' numbers, which are in their order, for each step that had one."""
    found: dict[str, list[int]] = {}
    for effect in effects:
        if effect.action == action:
            found.setdefault(effect.step, []).append(effect.effect_id)
    return found


def _pairs(undos: dict[str, list[int]]) -> Iterator[tuple[str, str]]:
    """Steps that were undone, the earlier with the later one. Those of a group are undone together."""
    place = {
        step: 0 if step in BESIDE else next(i for i, role in enumerate(STEPS) if step.endswith(role)) for step in undos
    }
    yield from ((early, late) for early in undos for late in undos if place[early] < place[late])


def _net(effects: list[Effect], role: str) -> int:
    lines = [effect.action for effect in effects if effect.step.endswith(role)]
    return lines.count("act") - lines.count("compensate")
