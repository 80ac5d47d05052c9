"""The machine against a hostile world: random plans, workers that die or answer twice, late replies, clocks, people.

The world knows what was really done; the machine knows only what it is told. After every event the laws must hold,
and from wherever it stands the saga must come to an end once workers answer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from watership import codec
from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.apply import apply
from watership.machine.effects import PublishEvent, SendCommand
from watership.machine.plan import Plan
from watership.machine.react import Reaction, lead_on, react
from watership.machine.state import UNTOUCHED, Action, ActionState, Failure, Outcome, Phase, SagaState, Status
from watership.saga.storage import rows

from tests.support import machine_laws as laws
from tests.support.random_plans import OFTEN, plans

OUTCOMES = st.sampled_from(list(Outcome))
CODES = st.sampled_from(["boom", "boom", "fatal"])
ANY = st.integers(0, 10**6)
TURNS_MAX = 1_000


@dataclasses.dataclass
class Delivery:
    """A command that was sent. ``runs`` counts those that its workers began; ``refused``: one said "not served"."""

    command: SendCommand
    runs: int = 0
    refused: bool = False


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000_000
        self.state = SagaState("random")
        self.log: list[tuple[c.Change, ...]] = []
        self.folded = SagaState("random")
        self.led: SagaState | None = None  # the same saga as a drive has it: one state, led on
        self.deliveries: list[Delivery] = []
        self.replies: list[e.StepReplied] = []
        self.really_acted: set[str] = set()
        self.began: Counter[tuple[str, int]] = Counter()
        self.had_late_act = False
        self.signals_sent = 0

    @initialize(plan=plans(), known=st.sampled_from([True, True, True, False]))
    def start(self, plan: Plan, known: bool) -> None:
        self.plan = plan
        look_ms = None if known else self.now_ms + 1_000
        self.happens(e.SagaStarted("Random", {"n": 0}, plan.hash, look_ms))

    # --- what happens

    def happens(self, event: e.Event) -> Reaction:
        before = self.state
        as_it_was = before.copy()
        reaction = react(self.plan, before, event, self.now_ms)
        assert reaction == react(self.plan, before, event, self.now_ms), "react is a function"
        assert before == as_it_was, "what a state shares with its successor is not changed"
        assert reaction.state.seq == before.seq + bool(reaction.changes)
        if self.led is not None:
            assert reaction == lead_on(self.plan, self.led, event, self.now_ms), "led on itself, it decides the same"
        self.led = self.led or reaction.state.copy()
        self.state = reaction.state
        if reaction.changes:
            self.log.append(reaction.changes)
            self.folded.seq += 1
            listed = codec.loads(codec.dumps([c.change_to_list(change) for change in reaction.changes]))
            assert tuple(c.change_from_list(values) for values in listed) == reaction.changes
            for change in rows.changes_from_json(rows.changes_to_json(reaction.changes)):
                apply(self.folded, change)
        sent = [effect for effect in reaction.effects if isinstance(effect, SendCommand)]
        self.deliveries += [Delivery(command) for command in sent]
        if before.parked_reason and reaction.state.parked_reason and not isinstance(event, e.DispatchRepeated):
            assert not any(isinstance(change, c.Dispatched) for change in reaction.changes), "parked, and it sends"
        self.had_late_act |= any(isinstance(change, c.LateAct) for change in reaction.changes)
        laws.no_act_after_the_turn(before, reaction.changes)
        laws.outcomes_only_rise(before, reaction.state)
        laws.only_forward_from_the_pivot(self.plan, before, reaction.state, reaction.changes)
        if not self.had_late_act:
            laws.in_reverse_order(self.plan, reaction.state, reaction.changes)
        return reaction

    def reply(self, delivery: Delivery, outcome: Outcome, *, effect: bool = True, code: str = "boom") -> None:
        command, redelivered = delivery.command, delivery.runs > 0
        if command.action is Action.VERIFY:
            outcome = self.verified(command.step, outcome)
        elif command.action is Action.ACT and redelivered and not self.plan.by_name[command.step].rerun:
            outcome, effect = Outcome.UNKNOWN, False  # its worker refuses to run it a second time
        self.run(delivery, effect=outcome is Outcome.DONE or (outcome is Outcome.UNKNOWN and effect), begins=effect)
        failure = None if outcome is Outcome.DONE else Failure(code, "Boom", "boom", (code,), command.step)
        number = len(self.replies)
        done = outcome is Outcome.DONE and command.action is Action.ACT
        event = e.StepReplied(
            command.step,
            command.action,
            command.attempt,
            f"run-{number}",
            outcome,
            {"n": number} if number % 3 else {command.step: number},
            {"r": number},
            failure,
            redelivered,
            events=tuple({"name": "e", "data": n} for n in range(number % 3)) if done else (),
        )
        self.replies.append(event)
        awaited = self.state.awaits(event.step, event.action, event.attempt)
        told = [effect for effect in self.happens(event).effects if isinstance(effect, PublishEvent)]
        if awaited:
            assert [dict(one) for one in event.events] == [{"name": one.name, "data": one.data} for one in told]

    def verified(self, step: str, wanted: Outcome) -> Outcome:
        """Who verifies does not lie: NOT_DONE says that there is no effect now. A run that is still under way may have one."""
        return Outcome.UNKNOWN if wanted is Outcome.FAILED and step in self.really_acted else wanted

    def run(self, delivery: Delivery, *, effect: bool, begins: bool = True) -> None:
        command = delivery.command
        delivery.runs += 1
        if command.action is Action.COMPENSATE:
            return
        if command.action is Action.ACT and begins and not self.plan.by_name[command.step].rerun:
            self.began[command.step, command.attempt] += 1
            assert self.began[command.step, command.attempt] == 1, "rerun=False, and it runs twice"
        if not effect:
            return
        state = self.state.step(command.step)
        # Later than that nobody can know of it, unless it is told: that is what barriers are for.
        if command.action is Action.VERIFY:
            knowable = state.act.phase is Phase.IN_DOUBT
        elif state.act.doubtful:
            knowable = state.act.active or state.act.phase is Phase.IN_DOUBT
        else:
            knowable = state.act.phase is Phase.AWAITED and not delivery.refused
        if knowable and (command.action is Action.VERIFY or command.attempt == state.act.attempt):
            self.really_acted.add(command.step)

    # --- workers

    def awaited(self) -> list[Delivery]:
        return [
            delivery
            for delivery in self.deliveries
            if self.state.awaits(delivery.command.step, delivery.command.action, delivery.command.attempt)
        ]

    @precondition(lambda self: self.awaited())
    @rule(which=ANY, outcome=OUTCOMES, effect=st.booleans(), code=CODES)
    def a_worker_answers(self, which: int, outcome: Outcome, effect: bool, code: str) -> None:
        awaited = self.awaited()
        self.reply(awaited[which % len(awaited)], outcome, effect=effect, code=code)

    @precondition(lambda self: self.awaited())
    @rule(which=ANY)
    def a_step_goes_well(self, which: int) -> None:
        awaited = self.awaited()
        self.reply(awaited[which % len(awaited)], Outcome.DONE)

    @precondition(lambda self: self.deliveries)
    @rule(which=ANY, outcome=OUTCOMES, effect=st.booleans())
    def any_delivery_is_answered(self, which: int, outcome: Outcome, effect: bool) -> None:
        self.reply(self.deliveries[which % len(self.deliveries)], outcome, effect=effect)

    @precondition(lambda self: self.deliveries)
    @rule(which=ANY)
    def a_worker_acts_and_dies(self, which: int) -> None:
        delivery = self.deliveries[which % len(self.deliveries)]
        may_run = delivery.runs == 0 or self.plan.by_name[delivery.command.step].rerun
        if may_run and delivery.command.action is not Action.VERIFY:
            self.run(delivery, effect=True)

    @precondition(lambda self: self.replies)
    @rule(which=ANY)
    def a_reply_comes_again(self, which: int) -> None:
        reply = self.replies[which % len(self.replies)]
        assert not self.state.awaits(reply.step, reply.action, reply.attempt) or self.may_come_again(reply)
        if not self.state.awaits(reply.step, reply.action, reply.attempt):
            self.happens(dataclasses.replace(reply, known=True))

    def may_come_again(self, reply: e.StepReplied) -> bool:
        """A reply is recorded once: unless it was stale when it came, its attempt is never awaited again."""
        applied = [change for entry in self.log for change in entry if isinstance(change, c.Replied | c.LateAct)]
        return reply.run not in {change.run for change in applied if isinstance(change, c.Replied)}

    @precondition(lambda self: self.awaited())
    @rule(which=ANY, most=st.integers(1, 3), reason=st.sampled_from([None, None, "it no longer fits"]))
    def nobody_serves_it(self, which: int, most: int, reason: str | None) -> None:
        awaited = self.awaited()
        delivery = awaited[which % len(awaited)]
        it = delivery.command
        redelivered = delivery.runs > 0
        delivery.runs += 1
        delivery.refused = True
        self.happens(e.StepNotServed(it.step, it.action, it.attempt, self.now_ms + 500, most, redelivered, reason))

    @precondition(lambda self: self.awaited())
    @rule()
    def the_process_that_drives_it_dies(self) -> None:
        """Embedded: another process takes the saga up, and knows of each run only that it may have begun."""
        for name, action, state in list(self.state.active_actions()):
            if state.phase is Phase.AWAITED:
                self.happens(e.RunInterrupted(name, action, state.attempt))

    # --- time, messages

    @rule(jump_ms=st.sampled_from([1, 500, 1_000, 1_000, 10_000, 10**7, -2_000]))
    def time_passes(self, jump_ms: int) -> None:
        self.now_ms += jump_ms
        self.look()

    def look(self) -> None:
        if self.state.status is Status.PENDING:
            return
        before = self.state
        self.happens(e.TimePassed())
        assert self.state.due_at_ms is None or self.state.due_at_ms > self.now_ms, "time stands still"
        late = before.deadline_at_ms is not None and before.deadline_at_ms <= self.now_ms
        if late and before.status is Status.RUNNING and before.parked_reason is None:
            assert self.state.status is not Status.RUNNING, "its deadline passed, and it goes on"

    @precondition(lambda self: self.awaited())
    @rule(which=ANY, lost=st.booleans(), most=st.sampled_from([60, 2]))
    def it_is_sent_again(self, which: int, lost: bool, most: int) -> None:
        awaited = self.awaited()
        delivery = awaited[which % len(awaited)]
        it = delivery.command
        lost = lost and delivery.runs == 0 and self.is_newest(delivery)
        if lost:
            self.deliveries.remove(delivery)
        self.happens(e.DispatchRepeated(it.step, it.action, it.attempt, lost, most))

    def is_newest(self, delivery: Delivery) -> bool:
        same = [other for other in self.deliveries if other.command == delivery.command]
        return same[-1] is delivery

    @precondition(lambda self: self.state.status is Status.COMPENSATING and self.awaited())
    @rule(which=ANY)
    def an_act_is_withdrawn(self, which: int) -> None:
        awaited = self.awaited()
        delivery = awaited[which % len(awaited)]
        if delivery.runs == 0 and self.is_newest(delivery) and delivery.command.action is Action.ACT:
            self.deliveries.remove(delivery)
            self.happens(e.DispatchWithdrawn(delivery.command.step, Action.ACT, delivery.command.attempt))

    @precondition(lambda self: self.awaited())
    @rule(which=ANY)
    def its_process_leaves_before_it_begins(self, which: int) -> None:
        awaited = self.awaited()
        delivery = awaited[which % len(awaited)]
        it = delivery.command
        if delivery.runs == 0 and self.is_newest(delivery):
            self.deliveries.remove(delivery)
            self.happens(e.DispatchPutOff(it.step, it.action, it.attempt))

    @precondition(lambda self: self.plan.waits and self.state.status is not Status.PENDING)
    @rule(which=ANY, ok=OFTEN, trouble=st.sampled_from([None, None, None, "ok: not a bool"]))
    def a_signal_comes(self, which: int, ok: bool, trouble: str | None) -> None:
        name = [*self.plan.waits, "nobody"][which % (len(self.plan.waits) + 1)]
        self.signals_sent += 1
        before = self.state
        reaction = self.happens(e.SignalReceived(name, {"ok": ok, "n": self.signals_sent}, trouble))
        if reaction.refused is not None:
            assert not reaction.changes
            assert reaction.ledger == reaction.refused, "what is refused is kept in the ledger"
        else:
            assert name in self.plan.waits
            assert before.status is Status.RUNNING or before.steps[name].act.phase is Phase.WAITING
            assert reaction.changes

    # --- people

    @precondition(lambda self: self.state.parked_reason is not None)
    @rule()
    def an_operator_retries(self) -> None:
        self.happens(e.RetryRequested("op", "why"))
        assert self.state.parked_reason is None

    @rule(seq=st.sampled_from([1, 1, 1, None]))
    def an_operator_cancels(self, seq: int | None) -> None:
        before = self.state
        reaction = self.happens(e.CompensateRequested("op", "why", seq))
        if before.pivoted:
            assert reaction.refused is not None

    @precondition(lambda self: self.state.status is Status.PENDING)
    @rule(found=st.booleans())
    def a_plan_is_looked_for(self, found: bool) -> None:
        self.happens(e.PlanFound(self.plan.hash) if found else e.PlanMissing(self.now_ms + 1_000, 2))

    # --- the laws

    @invariant()
    def the_laws_hold(self) -> None:
        laws.nothing_is_stuck(self.state)
        assert self.folded == self.state, "law 8"
        assert ActionState() == UNTOUCHED, "it is shared, and nobody changes it"
        laws.signals_are_taken_once(self.log)
        laws.events_are_told_apart(self.log)
        if self.state.seq:
            laws.the_row_is_the_state(self.state)
            laws.compensated_means_undone(self.plan, self.state, self.log, self.really_acted)
            laws.completed_means_done_once(self.plan, self.state, self.log)

    def teardown(self) -> None:
        """From here on workers answer, and people help: it must end."""
        if not self.state.seq:
            return
        for _ in range(TURNS_MAX):
            if self.state.parked_reason is not None:
                self.an_operator_retries()
            elif self.state.status is Status.PENDING:
                self.happens(e.PlanFound(self.plan.hash))
            elif awaited := self.awaited():
                self.reply(awaited[-1], Outcome.DONE)
            elif self.state.due_at_ms is not None:
                self.now_ms = max(self.now_ms, self.state.due_at_ms)
                self.look()
            else:
                break
            laws.nothing_is_stuck(self.state)
        assert self.state.status.terminal, f"it never ends: {self.state}"
        self.the_laws_hold()
        laws.the_log_is_the_truth(self.state, self.log)


World.TestCase.settings = settings(
    max_examples=350,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestWorld: Any = World.TestCase


def test_a_state_and_its_successor_never_change_each_other() -> None:
    first = SagaState("one", status=Status.RUNNING)
    apply(first, c.Dispatched("A", Action.ACT, 1, 10))
    second = first.successor()
    apply(first, c.Dispatched("A", Action.ACT, 2, 20))
    apply(first, c.SignalKept("go", 1))
    apply(second, c.Replied("A", Action.ACT, 1, "run", Outcome.DONE, True, {"n": 1}))
    assert first.steps["A"].act.attempt == 2
    assert (first.context, first.signals) == ({}, {"go": 1})
    assert (second.steps["A"].act.attempt, second.steps["A"].act.outcome) == (1, Outcome.DONE)
    assert (second.context, second.signals) == ({"n": 1}, {})
