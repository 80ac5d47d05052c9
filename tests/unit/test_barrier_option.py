"""``barrier=AsyncSession``: the transaction and the barrier around every handler, by the worker or in this process."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import di
import dishka
import pytest
from dependency_injector import containers, providers
from di import bind_by_type
from di.dependent import Dependent
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from watership import (
    ConfigurationError,
    Response,
    RetryPolicy,
    Saga,
    SagaMap,
    SagaStepHandler,
    SagaStepResult,
    StepEvent,
    barrier,
    bootstrap,
)
from watership.adapters.circuit_breaker import AioBreakerAdapter
from watership.adapters.containers import as_container
from watership.execution import Command, Execution, Hands, execute
from watership.machine import events as e
from watership.machine.nodes import RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, idempotency_key
from watership.testing import given
from watership_orchestrator.outbox import messages_of
from watership_worker import Worker

from tests.support.barred_saga import Declined, OrderSaga, Reserve, container_on, sagas
from tests.support.barred_step import (
    Bench,
    Order,
    Reserved,
    create_tables,
    foreign_keys_at_commit,
    orphan,
    take_effect,
)
from tests.support.judging import SAGA_ID, TOPOLOGY, Row, reply, start

TWICE = RetryPlan(attempts_max=2)


@pytest.fixture
async def engine(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(sqlite_url)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
async def container(engine: AsyncEngine) -> AsyncIterator[dishka.AsyncContainer]:
    async with container_on(engine) as container:
        yield container


class Guarded:
    """Deliveries of one step's commands to a worker that has the barrier around it."""

    def __init__(self, bench: Bench, container: object, handler: type[Any] = Reserve) -> None:
        self.bench, self.container, self.handler = bench, container, handler
        self.breaker = AioBreakerAdapter(fail_max=1)

    async def run(self, action: Action, attempt: int = 1, order_id: str = "o-1") -> Execution:
        key = idempotency_key(self.bench.saga_id, self.handler.__name__, action, 1)
        data = {"order_id": order_id}
        command = Command(self.bench.saga_id, "OrderSaga", self.handler.__name__, action, attempt, key, data, 5_000)
        hands = Hands(self.handler, Order, as_container(self.container), self.breaker, barrier=AsyncSession)
        return await execute(command, hands)


async def test_a_handler_does_its_business_and_no_more(engine: AsyncEngine, container: dishka.AsyncContainer) -> None:
    guarded = Guarded(Bench(engine), container)
    for attempt in (1, 1, 2):
        done = await guarded.run(Action.ACT, attempt)
        assert (done.outcome, done.patch, done.response) == (
            Outcome.DONE,
            {"reservation": "saga"},
            {"reservation": "saga"},
        )
        assert done.result is not None
        assert done.result.response == Reserved(reservation="saga"), "what it returned is stored as well"
    for _ in range(2):
        undone = await guarded.run(Action.COMPENSATE)
        assert (undone.outcome, undone.patch) == (Outcome.DONE, {"reservation": "saga", "released": True})
    refused = await guarded.run(Action.ACT)
    assert (refused.outcome, refused.certain) == (Outcome.FAILED, True)
    assert await guarded.bench.actions() == ["act", "compensate"]
    assert (await Guarded(Bench(engine), container).run(Action.ACT)).outcome is Outcome.DONE


class Telling(SagaStepHandler[Order, None]):
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def act(self, context: Order) -> SagaStepResult[Order, None]:
        await take_effect(self.session, context, "telling")
        return self._generate_step_result(None, events=[StepEvent("reserved", context.order_id)])


async def test_a_duplicate_tells_the_events_that_the_handler_returned(engine: AsyncEngine) -> None:
    async def session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as opened:
            yield opened

    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(session, provides=AsyncSession)
    provider.provide(Telling)
    container = dishka.make_async_container(provider)
    guarded = Guarded(Bench(engine), container, Telling)
    for _ in range(2):
        assert (await guarded.run(Action.ACT)).events == ({"name": "reserved", "data": "o-1"},)
    assert await guarded.bench.actions() == ["act"]
    await container.close()


async def test_a_breaker_takes_no_answer_for_a_failure(engine: AsyncEngine, container: dishka.AsyncContainer) -> None:
    guarded = Guarded(Bench(engine), container)
    assert (await guarded.run(Action.COMPENSATE)).outcome is Outcome.DONE, "empty"
    for _ in range(3):
        late = await guarded.run(Action.ACT)
        assert late.failure is not None
        assert late.failure.code == "act_refused", "and not circuit_open"


class Wrong(SagaStepHandler[Order, Any]):
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def act(self, context: Order) -> Any:
        await take_effect(self.session, context, "wrong")
        if context.order_id == "commits":
            await self.session.commit()
        elif context.order_id == "has a block":
            async with barrier(self.session):
                pass
        return 42


@pytest.mark.parametrize(
    ("order_id", "words"),
    [
        ("commits", "a commit inside a barrier's block"),
        ("has a block", "a second barrier in one run"),
        ("returns nonsense", "returned a int"),
    ],
)
async def test_a_wrong_handler_has_no_effect(engine: AsyncEngine, order_id: str, words: str) -> None:
    async def session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as opened:
            yield opened

    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(session, provides=AsyncSession)
    provider.provide(Wrong)
    guarded = Guarded(Bench(engine), dishka.make_async_container(provider), Wrong)
    failed = await guarded.run(Action.ACT, order_id=order_id)
    assert failed.outcome is Outcome.FAILED
    assert failed.failure is not None
    assert words in failed.failure.message
    assert (await guarded.bench.effects(), await guarded.bench.states()) == ([], {})


class Orphaned(SagaStepHandler[Order, None]):
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def act(self, context: Order) -> None:
        await self.session.execute(orphan())


async def test_a_commit_that_fails_leaves_the_effect_in_doubt(engine: AsyncEngine) -> None:
    await foreign_keys_at_commit(engine)
    async with container_on(engine, handler=Orphaned) as container:
        guarded = Guarded(Bench(engine), container, Orphaned)
        failed = await guarded.run(Action.ACT)
        assert failed.outcome is Outcome.UNKNOWN
        assert failed.failure is not None
        assert "FOREIGN KEY constraint failed" in failed.failure.message


class CountingSession(AsyncSession):
    """A session of the user's own, with something to do at each commit."""

    commits = 0

    async def commit(self) -> None:
        type(self).commits += 1
        await super().commit()


class WrappedSession(AsyncSession):
    """One whose commit is wrapped where it is made, as an instrumentation does."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.commit = self._counted  # type: ignore[method-assign]

    async def _counted(self) -> None:
        CountingSession.commits += 1
        await super().commit()


@pytest.mark.parametrize("session_class", [CountingSession, WrappedSession])
async def test_a_sessions_own_commit_is_called(engine: AsyncEngine, session_class: type[AsyncSession]) -> None:
    CountingSession.commits = 0
    async with container_on(engine, session_class=session_class) as container:
        guarded = Guarded(Bench(engine), container)
        assert (await guarded.run(Action.ACT)).outcome is Outcome.DONE
    assert CountingSession.commits == 1
    assert await guarded.bench.actions() == ["act"]


@pytest.mark.parametrize("library", ["di", "dependency-injector"])
async def test_every_container_gives_one_session_for_a_command(engine: AsyncEngine, library: str) -> None:
    async def session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as opened:
            yield opened

    if library == "di":
        made: Any = di.Container()
        made.bind(bind_by_type(Dependent(session, scope="request"), AsyncSession))
    else:

        class Providers(containers.DeclarativeContainer):
            session_of_command = providers.ContextLocalResource(session)

        made = Providers()
    guarded = Guarded(Bench(engine), made)
    for _ in range(2):
        done = await guarded.run(Action.ACT)
        assert (done.outcome, done.patch) == (Outcome.DONE, {"reservation": "saga"}), done.error
    assert await guarded.bench.actions() == ["act"]


async def test_a_container_that_makes_a_session_each_time_is_found_out(engine: AsyncEngine) -> None:
    class Resolver:
        async def resolve(self, wanted: type[Any]) -> Any:
            return AsyncSession(engine) if wanted is AsyncSession else wanted(AsyncSession(engine))

    guarded = Guarded(Bench(engine), Resolver())
    failed = await guarded.run(Action.ACT)
    assert failed.outcome is Outcome.FAILED
    assert failed.failure is not None
    assert "the container makes a new one each time" in failed.failure.message
    assert await guarded.bench.effects() == []


def test_a_barrier_needs_a_container_and_a_type() -> None:
    for make in (Worker, bootstrap):
        with pytest.raises(ConfigurationError, match="barrier=AsyncSession needs di_container"):
            make(sagas_mapper=sagas, barrier=AsyncSession)
        with pytest.raises(ConfigurationError, match="pass the session's type: barrier=AsyncSession"):
            make(SimpleNamespace(resolve=Reserve), sagas, barrier=AsyncSession())  # type: ignore[arg-type]  # the mistake


# --- sagas in this process


async def test_a_saga_is_applied_or_undone_once(engine: AsyncEngine, container: dishka.AsyncContainer) -> None:
    async with bootstrap(container, sagas, barrier=AsyncSession) as mediator:
        done = uuid.uuid4()
        results = [result async for result in mediator.stream(Order("o-1"), saga_id=done)]
        assert [result.response for result in results] == [Reserved(reservation="saga"), None]
        undone = uuid.uuid4()
        result = await mediator.run(Order("declined"), saga_id=undone)
        assert (result.status, type(result.error)) == ("COMPENSATED", Declined)
        assert result.context.released
    assert await Bench(engine, done).actions() == ["act"]
    assert await Bench(engine, undone).effects() == [("act", "saga", None), ("compensate", "saga", "saga")]


async def test_a_saga_in_this_process_with_blocks_of_its_own(engine: AsyncEngine) -> None:
    """The first attempt is lost after its commit: the second answers what it stored, to the saga and to its watcher."""
    attempts: list[int] = []

    class Lost(SagaStepHandler[Order, Reserved]):
        retry = RetryPolicy(max_attempts=2, delay_s=0, jitter=0)

        async def act(self, context: Order) -> Response | None:
            attempts.append(len(attempts) + 1)
            async with AsyncSession(engine) as session, session.begin(), barrier(session) as block:
                block.response = await take_effect(session, context, f"attempt {len(attempts)}")
            if len(attempts) == 1:
                raise TimeoutError("lost after its commit")
            return block.response

    class LostSaga(Saga[Order]):
        steps = [Lost]

    mapper, saga_id = SagaMap(), uuid.uuid4()
    mapper.bind(Order, LostSaga)
    context = Order("o-1")
    async with bootstrap(sagas_mapper=mapper) as mediator:
        results = [result async for result in mediator.stream(context, saga_id=saga_id)]
    assert attempts == [1, 2]
    assert context.reservation == "attempt 1"
    assert [result.response for result in results] == [Reserved(reservation="attempt 1")]
    assert await Bench(engine, saga_id).effects() == [("act", "attempt 1", None)]


async def test_a_transaction_takes_the_option_too(engine: AsyncEngine, container: dishka.AsyncContainer) -> None:
    saga_id = uuid.uuid4()
    saga = OrderSaga()
    async with saga.transaction(Order("o-1"), container, saga_id=saga_id, barrier=AsyncSession) as transaction:
        assert [result.step_type async for result in transaction] == [Reserve, OrderSaga.steps[1]]
    assert await Bench(engine, saga_id).actions() == ["act"]


# --- what a certain outcome is to the machine


def step(name: str) -> StepPlan:
    return StepPlan(name, queue=name, retry=TWICE if name == "B" else RetryPlan())


@pytest.mark.parametrize("certain", [False, True])
def test_a_certain_failure_leaves_no_doubt_though_its_command_came_twice(certain: bool) -> None:
    story = given(Plan("OrderSaga", (step("A"),))).started()
    story.when(e.StepReplied("A", Action.ACT, 1, "r", Outcome.FAILED, redelivered=True, certain=certain))
    assert story.state.step("A").act.outcome is (Outcome.FAILED if certain else Outcome.UNKNOWN)
    story.expect_status("COMPENSATED" if certain else "COMPENSATING")


@pytest.mark.parametrize("certain", [False, True])
def test_a_refused_late_act_is_kept_and_undoes_nothing(certain: bool) -> None:
    story = (
        given(Plan("OrderSaga", (step("A"),))).started().when_unknown("A").when_done("A").expect_status("COMPENSATED")
    )
    story.when(e.StepReplied("A", Action.ACT, 1, "late", Outcome.FAILED, redelivered=True, certain=certain))
    story.expect_ledger("act A attempt 1 was not awaited")
    story.expect_status("COMPENSATED" if certain else "COMPENSATING")


@pytest.mark.parametrize("certain", [False, True])
def test_the_orchestrator_hears_it_from_the_wire(certain: bool) -> None:
    row = Row(Plan("OrderSaga", (step("A"),)))
    row.batch(start())
    it = row.batch(reply("A", "failed", redelivered=True, certain=certain))
    assert it.state is not None
    assert it.state.saga_id == str(SAGA_ID)
    assert it.state.step("A").act.outcome is (Outcome.FAILED if certain else Outcome.UNKNOWN)


@pytest.mark.parametrize(("outcome", "acted"), [("done", True), ("unknown", False)])
def test_a_command_says_whether_the_log_has_the_act_as_done(outcome: str, acted: bool) -> None:
    """What the barrier makes of it is in test_barrier.py."""
    plan = Plan("OrderSaga", (step("A"), step("C")))
    row = Row(plan)
    began = row.batch(start())
    turned = row.batch(reply("A", outcome), *([reply("C", "failed")] if acted else []))
    said = []
    for it in (began, turned):
        (body,) = (json.loads(out.message.body) for out in messages_of(it, plan, TOPOLOGY) if out.command is not None)
        said.append((body["action"], body["acted"]))
    assert said == [("act", False), ("compensate", acted)]
