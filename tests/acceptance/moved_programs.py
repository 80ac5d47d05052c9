"""Programs written for the saga API whose names we keep: moved over by changing what they import, and nothing else.

They are text, so that nothing about them has to please this repository. `test_moved_programs.py` runs them.
"""

BASIC = """\
import dataclasses
import uuid
import di
import watership
from watership.saga import bootstrap
from watership.saga.saga import Saga
from watership.saga.step import SagaStepHandler, SagaStepResult
from watership.saga.storage.memory import MemorySagaStorage
from watership.saga.models import SagaContext
from watership.response import Response
@dataclasses.dataclass
class Loan(SagaContext):
    loan_id: str
    titles: list[str]
    deposit: float
    shelf: str | None = None
    receipt: str | None = None
class HoldBooks(SagaStepHandler[Loan, Response]):
    def __init__(self, stacks):
        self._stacks = stacks
    async def act(self, context: Loan) -> SagaStepResult:
        shelf = await self._stacks.hold(
            context.loan_id, context.titles
        )
        context.shelf = shelf
        return self._generate_step_result(Response())
    async def compensate(self, context: Loan) -> None:
        if context.shelf:
            await self._stacks.put_back(
                context.shelf
            )
# the other step
class LoanSaga(Saga[Loan]):
    steps = [HoldBooks, TakeDeposit]
container_of_all = di.Container()
# the services
# the store
storage = MemorySagaStorage()
def bind_sagas(mapper: watership.SagaMap) -> None:
    mapper.bind(Loan, LoanSaga)
mediator = bootstrap.bootstrap(
    di_container=container_of_all,
    sagas_mapper=bind_sagas,
    saga_storage=storage,
)
"""

BASIC_EXECUTE = """\
context = Loan(loan_id="123", titles=["Watership Down"], deposit=100.0)
saga_id = uuid.uuid4()
async for done in mediator.stream(context, saga_id=saga_id):
    print(f"done {done.step_type.__name__}")
"""

RECOVERY = """\
from watership.saga.recovery import recover_saga
saga = LoanSaga()
saga_id = uuid.UUID("550e8400-e29b-41d4-a716-446655440000")
try:
    await recover_saga(
        saga=saga,
        saga_id=saga_id,
        context_builder=Loan,
        container=container_of_all,
        storage=storage,
    )
    print("went on")
except RuntimeError:
    print("was undone")
"""

SSE = """\
import fastapi
import json
import uuid
from watership.saga import bootstrap
def mediator_factory() -> watership.SagaMediator:
    return bootstrap.bootstrap(
        di_container=container_of_all,
        sagas_mapper=bind_sagas,
        saga_storage=storage,
    )
@app.post("/loans")
async def lend(
    request: LoanRequest,
    mediator: watership.SagaMediator = fastapi.Depends(mediator_factory),
):
    async def frames():
        saga_id = uuid.uuid4()
        context = Loan(...)
        yield f"data: {json.dumps({'type': 'start', 'saga_id': str(saga_id)})}\\n\\n"
        async for done in mediator.stream(context, saga_id=saga_id):
            yield f"data: {json.dumps({'type': 'step', 'step': done.step_type.__name__})}\\n\\n"
        yield f"data: {json.dumps({'type': 'complete'})}\\n\\n"
    return fastapi.responses.StreamingResponse(
        frames(), media_type="text/event-stream"
    )
"""

SQLALCHEMY_SETUP = """\
from sqlalchemy.ext.asyncio import create_async_engine, async_sessionmaker
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage, Base
from watership.saga import bootstrap
engine = create_async_engine("postgresql+asyncpg://user:pass@localhost/db")
sessions = async_sessionmaker(engine, expire_on_commit=False)
async def make_storage() -> SqlAlchemySagaStorage:
    return SqlAlchemySagaStorage(sessions())
storage = await make_storage()
"""

SQLALCHEMY_USE = """\
def bind_sagas(mapper: watership.SagaMap) -> None:
    mapper.bind(Loan, LoanSaga)
mediator = bootstrap.bootstrap(
    di_container=container_of_all,
    sagas_mapper=bind_sagas,
    saga_storage=storage,
)
context = Loan(...)
saga_id = uuid.uuid4()
async for done in mediator.stream(context, saga_id=saga_id):
    print(f"done {done.step_type.__name__}")
await storage.session.commit()
"""

RECOVERY_JOB = """\
import asyncio
from watership.saga.recovery import recover_saga
async def recover_now_and_then():
    saga = LoanSaga()
    while True:
        left_over = await find_left_over()
        for saga_id in left_over:
            try:
                await recover_saga(
                    saga=saga,
                    saga_id=saga_id,
                    context_builder=Loan,
                    container=container_of_all,
                    storage=storage,
                )
            except RuntimeError:
                pass
        await asyncio.sleep(60)
"""

FALLBACK = """\
import dataclasses
import uuid
import di
from di import dependent
import watership
from watership.saga import bootstrap
from watership.saga.fallback import Fallback
from watership.adapters.circuit_breaker import AioBreakerAdapter
from watership.saga.saga import Saga
from watership.saga.step import SagaStepHandler, SagaStepResult
from watership.saga.storage.memory import MemorySagaStorage
from watership.saga.models import SagaContext
from watership.response import Response
@dataclasses.dataclass
class Loan(SagaContext):
    loan_id: str
    shelf: str | None = None
class Held(Response):
    shelf: str
    library: str
class AskCityLibrary(SagaStepHandler[Loan, Held]):
    async def act(self, context: Loan) -> SagaStepResult[Loan, Held]:
        raise RuntimeError("the city library is closed")
class AskOtherLibrary(SagaStepHandler[Loan, Held]):
    async def act(self, context: Loan) -> SagaStepResult[Loan, Held]:
        shelf = f"other-shelf-{context.loan_id}"
        context.shelf = shelf
        return self._generate_step_result(
            Held(shelf=shelf, library="other")
        )
class LoanSaga(Saga[Loan]):
    steps = [
        Fallback(
            step=AskCityLibrary,
            fallback=AskOtherLibrary,
            circuit_breaker=AioBreakerAdapter(
                fail_max=2,
                timeout_duration=60,
            ),
        ),
    ]
container_of_all = di.Container()
storage = MemorySagaStorage()
def bind_sagas(mapper: watership.SagaMap) -> None:
    mapper.bind(Loan, LoanSaga)
mediator = bootstrap.bootstrap(
    di_container=container_of_all,
    sagas_mapper=bind_sagas,
    saga_storage=storage,
)
context = Loan(loan_id="123")
saga_id = uuid.uuid4()
async for done in mediator.stream(context, saga_id=saga_id):
    print(f"done {done.step_type.__name__}")
"""
