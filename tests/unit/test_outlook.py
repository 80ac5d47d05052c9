"""What a saga may still ask of workers: nothing is ever sent that was not foreseen, and what is over is not foreseen."""

from __future__ import annotations

import random

from watership.machine import events as e
from watership.machine.effects import SendCommand
from watership.machine.nodes import FallbackPlan, Node, ParallelPlan, RetryPlan, SleepPlan, StepPlan, WaitPlan
from watership.machine.outlook import outlook
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import Action, Failure, Outcome, SagaState, Status

SEED, WALKS, EVENTS = 20261124, 1_500, 25
FORWARD = RetryPlan(attempts_max=None, delay_ms=1_000)
BOOM = Failure("boom", "Boom", "boom", ("boom",))


def random_plan(chance: random.Random) -> Plan:
    def step(name: str, *, forward: bool = False) -> StepPlan:
        return StepPlan(
            name,
            name,
            FORWARD if forward else RetryPlan(chance.randint(1, 2), delay_ms=chance.choice([0, 1_000])),
            RetryPlan(chance.randint(1, 2)),
            compensable=not forward and chance.random() < 0.7,
            verify_retry=RetryPlan(2, delay_ms=1_000) if chance.random() < 0.3 else None,
            rerun=chance.random() < 0.8,
        )

    def node(number: int) -> Node:
        kind = chance.random()
        if kind < 0.2:
            return FallbackPlan(step(f"P{number}"), step(f"F{number}"))
        if kind < 0.4:
            return ParallelPlan((step(f"A{number}"), step(f"B{number}")))
        if kind < 0.5:
            return SleepPlan(f"Z{number}", 5_000)
        return WaitPlan(f"W{number}", None, 5_000) if kind < 0.6 else step(f"S{number}")

    nodes = [node(number) for number in range(chance.randint(1, 3))]
    if chance.random() < 0.5:
        return Plan("Random", (*nodes, step("S9")))
    return Plan("Random", (*nodes, step("Pivot"), step("Last", forward=True)), pivot="Pivot")


def random_event(chance: random.Random, plan: Plan, state: SagaState, sent: list[SendCommand]) -> e.Event:
    kind = chance.random()
    if sent and kind < 0.65:
        awaited = [one for one in sent if state.awaits(one.step, one.action, one.attempt)]
        it = chance.choice(awaited if awaited and chance.random() < 0.8 else sent)
        outcome = chance.choice([Outcome.DONE, Outcome.DONE, Outcome.FAILED, Outcome.UNKNOWN])
        failure = None if outcome is Outcome.DONE else BOOM
        patch = {"n": chance.randint(0, 1)}
        run, again = f"{chance.random()}", chance.random() < 0.2
        return e.StepReplied(it.step, it.action, it.attempt, run, outcome, patch, None, failure, again)
    if sent and kind < 0.75:
        it = chance.choice(sent)
        if chance.random() < 0.5:
            return e.RunInterrupted(it.step, it.action, it.attempt)
        return e.DispatchRepeated(it.step, it.action, it.attempt, unsent=chance.random() < 0.5)
    if plan.waits and kind < 0.8:
        return e.SignalReceived(chance.choice(list(plan.waits)), {})
    if kind < 0.9:
        return e.TimePassed()
    return e.RetryRequested("ann", "why") if kind < 0.95 else e.CompensateRequested("ann", "why")


def test_nothing_is_sent_that_was_not_foreseen() -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown where a test fails
    seen: set[Action] = set()
    for walk in range(WALKS):
        chance = random.Random(SEED + walk)
        plan, state, now_ms = random_plan(chance), SagaState("random"), 1_000_000
        sent: list[SendCommand] = []
        event: e.Event = e.SagaStarted("Random", {"n": 0}, plan.hash)
        for _ in range(EVENTS):
            before, foreseen = state, outlook(plan, state if state.seq else None)
            reaction = react(plan, state, event, now_ms)
            state, now_ms = reaction.state, now_ms + chance.choice([0, 2_000, 400_000])
            commands = [effect for effect in reaction.effects if isinstance(effect, SendCommand)]
            if not before.status.terminal:
                asked = {(command.step, command.action) for command in commands}
                assert asked <= foreseen, (walk, asked - foreseen, event, before)
            seen.update(command.action for command in commands)
            sent += commands
            event = random_event(chance, plan, state, sent)
    assert seen == set(Action), "a walk that never goes there shows nothing"


def done(plan: Plan, *steps: str) -> SagaState:
    """The saga once these steps have acted, one after the other."""
    state = react(plan, SagaState("1"), e.SagaStarted("S", {}, plan.hash), 0).state
    for step in steps:
        state = react(plan, state, e.StepReplied(step, Action.ACT, 1, step, Outcome.DONE), 0).state
    return state


def test_what_is_behind_a_saga_is_not_foreseen() -> None:
    plan = Plan("S", (StepPlan("A", "a", compensable=False), StepPlan("B", "b"), StepPlan("C", "c")))
    whole = {("A", Action.ACT), ("B", Action.ACT), ("B", Action.COMPENSATE)}
    whole |= {("C", Action.ACT), ("C", Action.COMPENSATE)}
    assert outlook(plan, None) == outlook(plan, done(plan)) == whole
    assert outlook(plan, done(plan, "A", "B")) == whole - {("A", Action.ACT), ("B", Action.ACT)}
    turned = react(plan, done(plan, "A", "B"), e.CompensateRequested("ann", "why"), 0).state
    assert turned.status is Status.COMPENSATING
    assert outlook(plan, turned) == {("B", Action.COMPENSATE), ("C", Action.COMPENSATE)}, "C may be acting right now"


def test_past_its_pivot_nothing_is_undone() -> None:
    last = StepPlan("L", "l", FORWARD, compensable=False)
    plan = Plan("S", (StepPlan("A", "a"), StepPlan("P", "p", compensable=False), last), pivot="P")
    assert ("A", Action.COMPENSATE) in outlook(plan, done(plan, "A")), "the pivot is sent, and may fail"
    assert outlook(plan, done(plan, "A", "P")) == {("L", Action.ACT)}


def test_a_fallback_is_foreseen_until_its_primary_is_done() -> None:
    plan = Plan("S", (FallbackPlan(StepPlan("P", "p"), StepPlan("F", "f")), StepPlan("Z", "z")))
    assert ("F", Action.ACT) in outlook(plan, done(plan))
    assert outlook(plan, done(plan, "P")) == {("P", Action.COMPENSATE), ("Z", Action.ACT), ("Z", Action.COMPENSATE)}
