"""The checkers themselves: a run without fault breaks no law, and each law sees its own breach."""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from watership.machine import events as e
from watership.machine.changes import CompensationBegan, Dispatched
from watership.machine.effects import SendCommand
from watership.machine.react import react
from watership.machine.state import Action, Outcome, SagaState
from watership.saga.storage.rows import context_to_json, current_step, state_to_json

from tests.chaos import steps
from tests.chaos.evidence import Effect, Entry, Evidence
from tests.chaos.laws import LAWS, breaches
from tests.chaos.orders import ALWAYS, CENTS_AT_FIRST, SHELVES, STOCK_AT_FIRST, CarefulOrder, Kind, Order, PlainOrder
from tests.chaos.report import Figures, report
from tests.chaos.schedule import Struck, plan
from tests.chaos.system import Kill

PLANS = {found.saga: found for found in steps.worker.plans()}
CAREFUL, DECLINED, PLAIN = (uuid.UUID(int=number) for number in (1, 2, 3))
ORDERS: dict[uuid.UUID, tuple[str, Order]] = {
    CAREFUL: ("CarefulSaga", CarefulOrder(Kind.CAREFUL, 0, 2, 300)),
    DECLINED: ("CarefulSaga", CarefulOrder(Kind.CAREFUL, 1, 3, 500, "fails", "Ship", ALWAYS)),
    PLAIN: ("PlainSaga", PlainOrder(Kind.PLAIN, 2, 1, 700, "fails", "Charge", ALWAYS)),
}


def run_without_fault() -> Evidence:
    """The evidence of three sagas that were driven by the machine itself, their effects noted as they were had."""
    found = Evidence()
    for kind in Kind:
        for shelf in range(SHELVES):
            where = (str(kind), shelf)
            found.pieces[where], found.cents[where], found.till[where] = STOCK_AT_FIRST, CENTS_AT_FIRST, 0
    found.plans = {made.hash: made for made in PLANS.values()}
    for saga_id, (name, order) in ORDERS.items():
        drive(found, saga_id, name, order)
    return found


def drive(found: Evidence, saga_id: uuid.UUID, name: str, order: Order) -> None:
    """One saga from its start to its end."""
    made, context = PLANS[name], vars(order) | {"trail": []}
    found.intents[saga_id], found.acks[saga_id] = {**context}, 1
    state = SagaState(str(saga_id))
    queue: list[e.Event] = [e.SagaStarted(name, context, made.hash)]
    while queue or not state.status.terminal:
        event = queue.pop(0) if queue else e.TimePassed()
        reaction = react(made, state, event, now_ms=state.due_at_ms or 1_000)
        state = reaction.state
        found.log[saga_id].append(Entry(state.seq, 1_000 * state.seq, "test", reaction.changes))
        commands = [effect for effect in reaction.effects if isinstance(effect, SendCommand)]
        queue.extend(have_effect(found, saga_id, order, command) for command in commands)
    found.rows[saga_id] = row_of(state)
    found.told.append((saga_id, state.status.value))


def have_effect(found: Evidence, saga_id: uuid.UUID, order: Order, command: SendCommand) -> e.StepReplied:
    role = command.step.removeprefix("Careful").removeprefix("Plain")
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
    else:
        found.shipped[saga_id] = found.shipped.get(saga_id, 0) + sign
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
    assert [row["status"] for row in found.rows.values()] == ["COMPLETED", "COMPENSATED", "COMPENSATED"]
    assert sum(map(len, found.effects.values())) == 3 + 4 + 2
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
