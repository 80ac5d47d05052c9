"""The machine against a hostile world: random plans, workers that die or answer twice, late replies, clocks, people.

The world knows what was really done; the machine knows only what it is told. After every event the laws must hold,
and from wherever it stands the saga must come to an end once workers answer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from watership.machine import changes as c
from watership.machine import events as e
from watership.machine.apply import fold
from watership.machine.effects import SendCommand
from watership.machine.nodes import FallbackPlan, RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import Action, Failure, Outcome, Phase, SagaState, Status, highest

RETRY = st.builds(RetryPlan, attempts_max=st.integers(1, 3), delay_ms=st.sampled_from([0, 1_000]))
OUTCOMES = st.sampled_from(list(Outcome))
ANY = st.integers(0, 10**6)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    def step(name: str) -> StepPlan:
        often = st.sampled_from([True, True, True, False])
        return StepPlan(name, name, draw(RETRY), draw(RETRY), 1_000, 1_000, compensable=draw(often))

    codes = st.sampled_from([(), ("boom",), ("other",)])
    return Plan(
        "Random",
        tuple(
            FallbackPlan(step(f"P{n}"), step(f"F{n}"), draw(codes)) if draw(st.booleans()) else step(f"S{n}")
            for n in range(draw(st.integers(1, 4)))
        ),
    )


@dataclasses.dataclass
class Delivery:
    """A command that was sent. ``runs`` counts those that its workers began."""

    command: SendCommand
    runs: int = 0


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000_000
        self.state = SagaState("random")
        self.log: list[tuple[c.Change, ...]] = []
        self.deliveries: list[Delivery] = []
        self.replies: list[e.StepReplied] = []
        self.really_acted: set[str] = set()
        self.had_late_act = False

    @initialize(plan=plans(), known=st.sampled_from([True, True, True, False]))
    def start(self, plan: Plan, known: bool) -> None:
        self.plan = plan
        self.order = [step.name for step in plan.steps()]
        look_ms = None if known else self.now_ms + 1_000
        self.happens(e.SagaStarted("Random", {"n": 0}, plan.hash, look_ms))

    # --- what happens

    def happens(self, event: e.Event) -> None:
        before = self.state
        reaction = react(self.plan, before, event, self.now_ms)
        assert reaction == react(self.plan, before, event, self.now_ms), "react is a function"
        assert reaction.state.seq == before.seq + bool(reaction.changes)
        self.state = reaction.state
        if reaction.changes:
            written = [c.change_to_data(change) for change in reaction.changes]
            assert tuple(map(c.change_from_data, written)) == reaction.changes
            self.log.append(reaction.changes)
        sent = [effect for effect in reaction.effects if isinstance(effect, SendCommand)]
        self.deliveries += [Delivery(command) for command in sent]
        if before.parked_reason and reaction.state.parked_reason and not isinstance(event, e.DispatchRepeated):
            assert not any(isinstance(change, c.Dispatched) for change in reaction.changes), "parked, and it sends"
        self.had_late_act |= any(isinstance(change, c.LateAct) for change in reaction.changes)
        self.check_no_act_after_the_turn(before, reaction.changes)
        self.check_reverse_order(reaction.changes)
        self.check_outcomes_only_rise(before)

    def check_no_act_after_the_turn(self, before: SagaState, changes: tuple[c.Change, ...]) -> None:
        turned = before.status in (Status.COMPENSATING, Status.COMPENSATED)
        for change in changes:
            turned = turned or isinstance(change, c.CompensationBegan)
            sends = isinstance(change, c.Dispatched | c.Resent) and change.action is Action.ACT
            assert not (turned and sends), "law 3"

    def check_reverse_order(self, changes: tuple[c.Change, ...]) -> None:
        if self.had_late_act or self.state.status is not Status.COMPENSATING:
            return
        for change in changes:
            if isinstance(change, c.Dispatched) and change.action is Action.COMPENSATE and change.attempt == 1:
                for later in self.order[self.order.index(change.step) + 1 :]:
                    state = self.state.steps.get(later)
                    assert state is None or not (state.act.active or state.needs_undoing), "law 4"

    def check_outcomes_only_rise(self, before: SagaState) -> None:
        for name, old in before.steps.items():
            new = self.state.steps[name]
            assert highest(old.act.outcome, new.act.outcome) == new.act.outcome
            if old.generation == new.generation:
                assert highest(old.compensate.outcome, new.compensate.outcome) == new.compensate.outcome
            assert new.generation >= old.generation
            assert new.compensate.attempt >= old.compensate.attempt, "attempts are counted on"

    def reply(self, delivery: Delivery, outcome: Outcome) -> None:
        command, redelivered = delivery.command, delivery.runs > 0
        self.run(delivery, effect=outcome is not Outcome.FAILED)
        failure = None if outcome is Outcome.DONE else Failure("boom", "Boom", "boom", ("boom",), command.step)
        patch = {"n": len(self.replies)}
        event = e.StepReplied(
            command.step,
            command.action,
            command.attempt,
            f"run-{len(self.replies)}",
            outcome,
            patch,
            None,
            failure,
            redelivered,
        )
        self.replies.append(event)
        self.happens(event)

    def run(self, delivery: Delivery, *, effect: bool) -> None:
        delivery.runs += 1
        if not effect or delivery.command.action is not Action.ACT:
            return
        state = self.state.step(delivery.command.step)
        # Later than that nobody can know of it, unless it is told: that is what barriers are for.
        if state.act.active and delivery.command.attempt == state.act.attempt:
            self.really_acted.add(delivery.command.step)

    # --- rules

    def awaited(self) -> list[Delivery]:
        return [
            delivery
            for delivery in self.deliveries
            if self.state.awaits(delivery.command.step, delivery.command.action, delivery.command.attempt)
        ]

    @precondition(lambda self: self.awaited())
    @rule(which=ANY, outcome=OUTCOMES)
    def a_worker_answers(self, which: int, outcome: Outcome) -> None:
        awaited = self.awaited()
        self.reply(awaited[which % len(awaited)], outcome)

    @precondition(lambda self: self.awaited())
    @rule(which=ANY)
    def a_step_goes_well(self, which: int) -> None:
        self.a_worker_answers(which, Outcome.DONE)

    @precondition(lambda self: self.deliveries)
    @rule(which=ANY, outcome=OUTCOMES)
    def any_delivery_is_answered(self, which: int, outcome: Outcome) -> None:
        self.reply(self.deliveries[which % len(self.deliveries)], outcome)

    @precondition(lambda self: self.awaited())
    @rule(which=ANY)
    def a_worker_acts_and_dies(self, which: int) -> None:
        awaited = self.awaited()
        self.run(awaited[which % len(awaited)], effect=True)

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
    @rule(which=ANY, most=st.integers(1, 3))
    def nobody_serves_it(self, which: int, most: int) -> None:
        awaited = self.awaited()
        delivery = awaited[which % len(awaited)]
        it = delivery.command
        redelivered = delivery.runs > 0
        delivery.runs += 1
        self.happens(e.StepNotServed(it.step, it.action, it.attempt, self.now_ms + 500, most, redelivered))

    @rule(jump_ms=st.sampled_from([1, 1_000, 10_000]))
    def time_passes(self, jump_ms: int) -> None:
        self.now_ms += jump_ms
        self.look()

    def look(self) -> None:
        if self.state.status is not Status.PENDING:
            self.happens(e.TimePassed())
            assert self.state.due_at_ms is None or self.state.due_at_ms > self.now_ms, "time stands still"

    @precondition(lambda self: self.awaited())
    @rule(which=ANY, lost=st.booleans())
    def it_is_sent_again(self, which: int, lost: bool) -> None:
        awaited = self.awaited()
        delivery = awaited[which % len(awaited)]
        it = delivery.command
        lost = lost and delivery.runs == 0 and self.is_newest(delivery)
        if lost:
            self.deliveries.remove(delivery)
        self.happens(e.DispatchRepeated(it.step, it.action, it.attempt, unsent=lost))

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

    @precondition(lambda self: self.state.parked_reason is not None)
    @rule()
    def an_operator_retries(self) -> None:
        self.happens(e.RetryRequested("op", "why"))
        assert self.state.parked_reason is None

    @rule(seq=st.sampled_from([None, None, 1]))
    def an_operator_cancels(self, seq: int | None) -> None:
        self.happens(e.CompensateRequested("op", "why", seq))

    @precondition(lambda self: self.state.status is Status.PENDING)
    @rule(found=st.booleans())
    def a_plan_is_looked_for(self, found: bool) -> None:
        self.happens(e.PlanFound(self.plan.hash) if found else e.PlanMissing(self.now_ms + 1_000, 2))

    # --- the laws

    @invariant()
    def nothing_is_stuck(self) -> None:
        state = self.state
        if state.seq and (not state.status.terminal or any(state.active_actions())):
            assert state.parked_reason is not None or state.due_at_ms is not None, "law 2"

    @invariant()
    def the_log_is_the_truth(self) -> None:
        assert fold("random", self.log) == self.state, "law 8"

    @invariant()
    def what_is_compensated_is_undone(self) -> None:
        if self.state.status is not Status.COMPENSATED:
            return
        for name, step in self.state.steps.items():
            assert not step.needs_undoing
            assert not step.act.active
            assert step.act.may_have_run or name not in self.really_acted, f"{name} acted, and is forgotten"
            if step.act.may_have_run and self.plan.by_name[name].compensable:
                assert self.undone_after_its_last_effect(name), f"{name} is not undone"

    @invariant()
    def what_is_completed_is_done_once(self) -> None:
        if self.state.status is not Status.COMPLETED:
            return
        for node in self.plan.nodes:
            assert isinstance(node, FallbackPlan | StepPlan)
            one = node.primary if isinstance(node, FallbackPlan) else node
            step, stands = self.state.steps[one.name], self.state.steps[one.name]
            if isinstance(node, FallbackPlan) and node.fallback.name in self.state.steps:
                stands = self.state.steps[node.fallback.name]
                known_of = step.act.may_have_run
                assert not known_of or not step.needs_undoing or any(self.state.active_actions()) or self.parked
            assert stands.act.outcome is Outcome.DONE
            assert stands.compensate.phase is Phase.IDLE
            assert stands.generation == 1

    @property
    def parked(self) -> bool:
        return self.state.parked_reason is not None

    def undone_after_its_last_effect(self, name: str) -> bool:
        changes = [change for entry in self.log for change in entry if getattr(change, "step", None) == name]
        effects = (c.Replied, c.LateAct, c.Overdue, c.Dropped)
        last = max(
            index
            for index, change in enumerate(changes)
            if isinstance(change, effects)
            and getattr(change, "action", Action.ACT) is Action.ACT
            and getattr(change, "outcome", Outcome.UNKNOWN) is not Outcome.FAILED
        )
        sent: dict[int, int] = {}
        for index, change in enumerate(changes):
            if isinstance(change, c.Dispatched) and change.action is Action.COMPENSATE:
                sent.setdefault(change.attempt, index)
        return any(
            isinstance(change, c.Replied)
            and change.action is Action.COMPENSATE
            and change.outcome is Outcome.DONE
            and sent[change.attempt] > last
            for change in changes
        )

    def teardown(self) -> None:
        """From here on workers answer, and people help: it must end."""
        if not self.state.seq:
            return
        for _ in range(200):
            if self.parked:
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
            self.nothing_is_stuck()
        assert self.state.status.terminal, f"it never ends: {self.state}"
        self.what_is_compensated_is_undone()
        self.what_is_completed_is_done_once()
        self.the_log_is_the_truth()


World.TestCase.settings = settings(
    max_examples=350,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestWorld: Any = World.TestCase
