"""The checkers themselves: a run without fault breaks no law, and each law sees its own breach."""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from watership.machine import events as e
from watership.machine.changes import (
    Change,
    CompensationBegan,
    Completed,
    Dispatched,
    Elapsed,
    Operated,
    Replied,
    Signalled,
)
from watership.machine.effects import SendCommand
from watership.machine.react import react
from watership.machine.state import Action, Outcome, SagaState
from watership.saga.storage.rows import context_to_json, current_step, state_to_json

from tests.chaos import steps
from tests.chaos.evidence import ACCEPTED, Effect, Entry, Evidence, Said
from tests.chaos.laws import LAWS, breaches
from tests.chaos.orders import (
    ALWAYS,
    CENTS_AT_FIRST,
    SHELVES,
    STOCK_AT_FIRST,
    Answer,
    CarefulOrder,
    FlowOrder,
    Kind,
    Manner,
    Order,
    PlainOrder,
    role_of,
    sayings,
)
from tests.chaos.report import Figures, report
from tests.chaos.schedule import Struck, plan
from tests.chaos.system import Kill

PLANS = {found.saga: found for found in steps.worker.plans()}
CAREFUL, DECLINED, PLAIN, FLOW, REJECTED, CALLED_OFF = (uuid.UUID(int=number) for number in range(1, 7))
ORDERS: dict[uuid.UUID, tuple[str, Order]] = {
    CAREFUL: ("CarefulSaga", CarefulOrder(Kind.CAREFUL, 0, 2, 300)),
    DECLINED: ("CarefulSaga", CarefulOrder(Kind.CAREFUL, 1, 3, 500, "fails", "Ship", ALWAYS)),
    PLAIN: ("PlainSaga", PlainOrder(Kind.PLAIN, 2, 1, 700, "fails", "Charge", ALWAYS)),
    FLOW: ("FlowSaga", FlowOrder(Kind.FLOW, 3, 1, 900, answer=Answer.YES, manner=Manner.TWICE)),
    REJECTED: ("FlowSaga", FlowOrder(Kind.FLOW, 3, 2, 100, answer=Answer.NO)),
    CALLED_OFF: ("FlowSaga", FlowOrder(Kind.FLOW, 4, 2, 100, answer=Answer.NONE)),
}


FLOW_ENDS = ["COMPLETED", "COMPENSATED", "COMPENSATED"]


def run_without_fault() -> Evidence:
    """The evidence of some sagas that were driven by the machine itself, their effects noted as they were had."""
    found = Evidence()
    for kind in Kind:
        for shelf in range(SHELVES):
            where = (str(kind), shelf)
            found.pieces[where], found.cents[where] = STOCK_AT_FIRST, CENTS_AT_FIRST
            found.till[where] = found.vault[where] = 0
    found.plans = {made.hash: made for made in PLANS.values()}
    for saga_id, (name, order) in ORDERS.items():
        drive(found, saga_id, name, order)
    return found


def drive(found: Evidence, saga_id: uuid.UUID, name: str, order: Order) -> None:
    """One saga from its start to its end."""
    made, context = PLANS[name], vars(order) | {"trail": []}
    found.intents[saga_id], found.acks[saga_id] = {**context}, 1
    state, now_ms = SagaState(str(saga_id)), 1_000
    queue: list[e.Event] = [e.SagaStarted(name, context, made.hash)]
    while queue or not state.status.terminal:
        if not queue:
            queue = what_the_client_does(found, saga_id, order, state)
            now_ms = state.due_at_ms or now_ms
        now_ms += 1
        reaction = react(made, state, queue.pop(0), now_ms=now_ms)
        state = reaction.state
        if reaction.changes:
            found.log[saga_id].append(Entry(state.seq, now_ms, "test", reaction.changes))
        commands = [effect for effect in reaction.effects if isinstance(effect, SendCommand)]
        queue.extend(have_effect(found, saga_id, order, command) for command in commands)
    found.rows[saga_id] = row_of(state)
    found.told.append((saga_id, state.status.value))


def what_the_client_does(found: Evidence, saga_id: uuid.UUID, order: Order, state: SagaState) -> list[e.Event]:
    """Its signals, once the saga waits for one; else it lets time pass."""
    if "approval" in state.steps and saga_id == CALLED_OFF and saga_id not in found.called_off:
        found.called_off[saga_id] = ACCEPTED
        return [e.CompensateRequested("client", "changed their mind")]
    if "approval" not in state.steps or saga_id in found.said:
        return [e.TimePassed()]
    found.said[saga_id] = [Said(said.number, said.signal_id, vars(said.data), ACCEPTED) for said in sayings(order)]
    return [e.SignalReceived("approval", found.said[saga_id][0].data, None)]


def have_effect(found: Evidence, saga_id: uuid.UUID, order: Order, command: SendCommand) -> e.StepReplied:
    role = role_of(command.step)
    reply = e.StepReplied(command.step, command.action, command.attempt, "run", Outcome.DONE)
    if order.trouble_at == role and command.action is Action.ACT:
        return dataclasses.replace(reply, outcome=Outcome.FAILED)
    sign = 1 if command.action is Action.ACT else -1
    where = (str(order.kind), order.shelf)
    if role == "Reserve":
        found.pieces[where] -= sign * order.pieces
    elif role == "Charge":
        found.cents[where] -= sign * order.cents
        found.till[where] += sign * order.cents
    elif role == "Capture":
        found.till[where] -= order.cents
        found.vault[where] += order.cents
    else:
        found.shipped[saga_id] = found.shipped.get(saga_id, 0) + sign
    if order.kind != Kind.PLAIN:
        found.barred[saga_id, command.step, command.action.value] = "done"
        if sign < 0:
            found.barred[saga_id, command.step, "act"] = "undone"
    number = sum(map(len, found.effects.values())) + 1
    found.effects[saga_id].append(
        Effect(number, str(order.kind), command.step, command.action.value, command.attempt, "key", 7, float(number))
    )
    return reply


def row_of(state: SagaState) -> dict[str, Any]:
    return {
        "saga_id": uuid.UUID(state.saga_id),
        "name": state.name,
        "status": state.status.value,
        "plan_hash": state.plan_hash,
        "seq": state.seq,
        "context": context_to_json(state),
        "state": state_to_json(state),
        "step": current_step(state),
        "parked_reason": state.parked_reason,
        "paused": state.paused,
        "owed": False,
        "owed_reason": None,
        "wake_at_ms": None,
    }


def test_a_run_without_fault_breaks_no_law() -> None:
    found = run_without_fault()
    assert [row["status"] for row in found.rows.values()] == ["COMPLETED", "COMPENSATED", "COMPENSATED", *FLOW_ENDS]
    assert sum(map(len, found.effects.values())) == 3 + 4 + 2 + 4 + 4 + 4
    assert breaches(found) == []


def swap_undoings(found: Evidence) -> None:
    """The two compensations of the declined order change places, in the participants' ledger."""
    lines = found.effects[DECLINED]
    lines[-1], lines[-2] = (
        dataclasses.replace(lines[-1], effect_id=lines[-2].effect_id),
        dataclasses.replace(lines[-2], effect_id=lines[-1].effect_id),
    )


def swap_dispatches(found: Evidence) -> None:
    """The log says that the first step was told to compensate before the second."""
    entries = found.log[DECLINED]
    for index, entry in enumerate(entries):
        changes = [
            dataclasses.replace(change, step="CarefulReserve")
            if isinstance(change, Dispatched) and change.action is Action.COMPENSATE
            else change
            for change in entry.changes
        ]
        entries[index] = dataclasses.replace(entry, changes=tuple(changes))


def act_after_the_turn(found: Evidence) -> None:
    entries = found.log[DECLINED]
    number = next(i for i, entry in enumerate(entries) if any(isinstance(c, CompensationBegan) for c in entry.changes))
    decided = Dispatched("CarefulShip", Action.ACT, 9, 1)
    entries[number] = dataclasses.replace(entries[number], changes=(*entries[number].changes, decided))


def reply_twice(found: Evidence) -> None:
    entries = found.log[CAREFUL]
    entries[1] = dataclasses.replace(entries[1], changes=(entries[1].changes[0], *entries[1].changes))


def acted_late(found: Evidence) -> None:
    """A plain step acts after it was undone."""
    found.effects[PLAIN].append(Effect(99, Kind.PLAIN, "PlainReserve", "act", 1, "key", 7, 99.0))
    found.pieces[Kind.PLAIN, 2] -= 1


def change_log(
    saga_id: uuid.UUID, kind: type[Change], make: Callable[[Any], list[Change]]
) -> Callable[[Evidence], None]:
    """A breach: in a saga's log, other changes stand where one of this kind stood."""

    def breach(found: Evidence) -> None:
        entries = found.log[saga_id]
        assert any(isinstance(change, kind) for entry in entries for change in entry.changes)
        found.log[saga_id] = [
            dataclasses.replace(
                entry,
                changes=tuple(
                    new for change in entry.changes for new in (make(change) if isinstance(change, kind) else [change])
                ),
            )
            for entry in entries
        ]

    return breach


def swap_effects(found: Evidence) -> None:
    """The pivot had its effect before the steps before it."""
    lines = found.effects[FLOW]
    lines[0], lines[2] = (
        dataclasses.replace(lines[0], effect_id=lines[2].effect_id),
        dataclasses.replace(lines[2], effect_id=lines[0].effect_id),
    )


def sleep_less(found: Evidence) -> None:
    """All that was logged of the saga was so at its beginning."""
    found.log[FLOW] = [dataclasses.replace(entry, at_ms=1_001) for entry in found.log[FLOW]]


def capture_and_go_back(found: Evidence) -> None:
    """The money of an order that was rejected is in the vault."""
    number = sum(map(len, found.effects.values())) + 1
    found.effects[REJECTED].append(Effect(number, Kind.FLOW, "FlowCapture", "act", 1, "key", 7, 99.0))


def hear_otherwise(saga_id: uuid.UUID, number: int, **heard: Any) -> Callable[[Evidence], None]:
    """A breach: a client's signal was another one, or its answer."""

    def breach(found: Evidence) -> None:
        found.said[saga_id][number - 1] = dataclasses.replace(found.said[saga_id][number - 1], **heard)

    return breach


def refuse_in_time(found: Evidence) -> None:
    """A cancel is refused, and the saga never turned nor ended."""
    found.called_off[DECLINED] = "refused: too late"
    found.log[DECLINED].clear()


RIVAL = {"by": "Bob", "approved": False}
TURN = CompensationBegan(None)
FLOW_BREACHES: list[tuple[str, Callable[[Evidence], Any]]] = [
    ("all_is_behind_the_barrier", lambda found: found.barred.pop((CAREFUL, "CarefulShip", "act"))),
    ("all_is_behind_the_barrier", lambda found: found.barred.update({(CAREFUL, "CarefulShip", "act"): "empty"})),
    ("all_is_behind_the_barrier", lambda found: found.barred.update({(CAREFUL, "CarefulShip", "compensate"): "done"})),
    ("books_balance", lambda found: found.vault.update({(Kind.FLOW, 3): 0})),
    ("careful_effects_once", lambda found: found.effects[FLOW].append(found.effects[FLOW][-1])),
    ("forward_order", change_log(FLOW, Replied, lambda change: [] if change.step == "FlowCharge" else [change])),
    ("forward_order", change_log(FLOW, Elapsed, lambda _: [])),
    ("no_pause_ends_early", sleep_less),
    ("only_forward_past_the_pivot", change_log(FLOW, Completed, lambda change: [change, TURN])),
    ("only_forward_past_the_pivot", change_log(FLOW, Completed, lambda _: [Operated("ann", "compensate", "")])),
    ("only_forward_past_the_pivot", capture_and_go_back),
    ("effects_come_in_order", swap_effects),
    ("signals_count_once", change_log(FLOW, Signalled, lambda change: [change, change])),
    ("signals_count_once", change_log(FLOW, Signalled, lambda change: [dataclasses.replace(change, data=RIVAL)])),
    ("signals_count_once", change_log(FLOW, Signalled, lambda _: [])),
    ("signals_count_once", hear_otherwise(FLOW, 1, data=RIVAL)),
    ("signals_count_once", hear_otherwise(FLOW, 2, told="refused: it came too late")),
    ("cancels_are_kept", change_log(CALLED_OFF, Operated, lambda _: [])),
    ("cancels_are_kept", lambda found: found.called_off.update({CAREFUL: ACCEPTED})),
    ("cancels_are_kept", lambda found: found.called_off.pop(CALLED_OFF)),
    ("cancels_are_kept", refuse_in_time),
]
BREACHES: list[tuple[str, Callable[[Evidence], Any]]] = [
    ("nothing_is_lost", lambda found: found.acks.update({uuid.UUID(int=9): 1})),
    ("nothing_is_lost", lambda found: found.intents[CAREFUL].update(pieces=9)),
    ("nothing_is_stuck", lambda found: found.rows[CAREFUL].update(status="RUNNING")),
    ("nothing_is_stuck", lambda found: found.rows[CAREFUL].update(owed=True, owed_reason="unconfirmed")),
    ("nothing_is_stuck", lambda found: found.rows[DECLINED].update(parked_reason="somebody must look")),
    ("nothing_is_stuck", lambda found: found.rows[DECLINED].update(status="COMPLETED")),
    ("the_log_is_the_truth", lambda found: found.log[CAREFUL].pop()),
    ("the_log_is_the_truth", lambda found: found.rows[CAREFUL].update(context="{}")),
    ("strictly_backward", act_after_the_turn),
    ("reverse_order", swap_dispatches),
    ("one_outcome_for_an_attempt", reply_twice),
    ("careful_effects_once", lambda found: found.effects[CAREFUL].append(found.effects[CAREFUL][0])),
    ("careful_effects_once", lambda found: found.effects[DECLINED].pop()),
    ("careful_effects_once", lambda found: found.effects[CAREFUL].pop()),
    ("careful_effects_in_order", swap_undoings),
    ("plain_effects_undone", acted_late),
    ("books_balance", lambda found: found.cents.update({(Kind.CAREFUL, 0): 1})),
    ("books_balance", lambda found: found.pieces.update({(Kind.PLAIN, 5): 1})),
    ("books_balance", lambda found: found.shipped.update({CAREFUL: 2})),
    ("clients_were_told_the_truth", lambda found: found.told.append((CAREFUL, "COMPENSATED"))),
    *FLOW_BREACHES,
]


@pytest.mark.parametrize(("law", "breach"), BREACHES, ids=[f"{law}-{i}" for i, (law, _) in enumerate(BREACHES)])
def test_each_law_sees_its_breach(law: str, breach: Callable[[Evidence], Any]) -> None:
    found = run_without_fault()
    breach(found)
    assert law in {broken.law for broken in breaches(found)}


def test_every_law_has_a_breach_here() -> None:
    assert {law.__name__ for law in LAWS} == {law for law, _ in BREACHES}


def test_what_a_killed_worker_could_not_report_is_excused() -> None:
    found = run_without_fault()
    acted_late(found)
    found.kills.append(Kill("worker", 7, 100.0))
    assert breaches(found) == []


def test_the_report_tells_what_was_done_and_what_came_of_it() -> None:
    found = run_without_fault()
    found.rows[CAREFUL].update(status="RUNNING")
    struck = [Struck("kill broker", "down", 1.0), Struck("kill broker", "in its way", 2.0, missed=True)]
    text = report(found, struck, Figures(7, 60.0, None, {"dropped": 3}), breaches(found))
    for words in ("seed 7", "1 (and 1 that could not be)", "RUNNING 1", "not drained", "nothing_is_stuck: saga"):
        assert words in " ".join(text.split())


@dataclasses.dataclass
class Every:
    """As much of a nemesis as a plan needs."""

    name: str
    every_s: tuple[float, float] = (5.0, 10.0)
    for_s: tuple[float, float] = (1.0, 20.0)


def test_a_plan_comes_from_its_seed_alone_and_leaves_nobody_out() -> None:
    for seed in random.Random(20261125).sample(range(1_000_000), 50):
        nemeses = [Every("one"), Every("two", every_s=(500.0, 900.0))]
        strikes = plan(seed, nemeses, 60.0)
        assert strikes == plan(seed, nemeses, 60.0) != plan(seed + 1, nemeses, 60.0)
        assert {strike.nemesis for strike in strikes} == {"one", "two"}
        assert all(strike.at_s >= 0 and strike.at_s + strike.for_s <= 60.0 for strike in strikes)
        assert [strike for strike in strikes if strike.nemesis == "one"] == plan(seed, nemeses[:1], 60.0)
