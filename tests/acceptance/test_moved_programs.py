"""Programs that were written for the saga API whose names we keep run here, on every store.

The programs are in `moved_programs.py`. What each of them needs around it is put in by `supplied`, which names the line.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import itertools
import json
import sys
import textwrap
import types
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.acceptance.moved_programs import (
    BASIC,
    BASIC_EXECUTE,
    FALLBACK,
    RECOVERY,
    RECOVERY_JOB,
    SQLALCHEMY_SETUP,
    SQLALCHEMY_USE,
    SSE,
)

RECOVERED_ID = uuid.UUID("550e8400-e29b-41d4-a716-446655440000")
numbers = itertools.count(1)

# --- what the programs leave out -----------------------------------------------------------------------------------------

PAYMENT_STEP = """\
class TakeDeposit(SagaStepHandler[Loan, Response]):
    def __init__(self, till):
        self._till = till
    async def act(self, context: Loan) -> SagaStepResult:
        context.receipt = await self._till.charge(context.loan_id, context.deposit)
        return self._generate_step_result(Response())
    async def compensate(self, context: Loan) -> None:
        await self._till.refund(context.receipt)
"""

# Their handlers do not annotate their constructors, and a di.Container goes by annotations: so what is registered
# is how each handler is made.
REGISTER = """\
from di import bind_by_type
from di.dependent import Dependent
def _make_reserve(): return HoldBooks(services)
def _make_payment(): return TakeDeposit(services)
container_of_all.bind(bind_by_type(Dependent(_make_reserve, scope="request"), HoldBooks))
container_of_all.bind(bind_by_type(Dependent(_make_payment, scope="request"), TakeDeposit))
"""

CREATE_TABLES = """\
async with engine.begin() as _connection:
    await _connection.run_sync(Base.metadata.create_all)
"""

A_CONTEXT = 'Loan(loan_id="123", titles=["Watership Down"], deposit=100.0)'


class Services:
    """Inventory and payments: what was called, and what shall happen during a charge."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.on_charge: Callable[[], Awaitable[None]] | None = None

    async def hold(self, loan_id: str, titles: list[str]) -> str:
        self.calls.append(f"reserve {loan_id} {titles}")
        return f"reservation-{loan_id}"

    async def put_back(self, shelf: str) -> None:
        self.calls.append(f"release {shelf}")

    async def charge(self, loan_id: str, amount: float) -> str:
        self.calls.append(f"charge {loan_id} {amount}")
        if self.on_charge is not None:
            await self.on_charge()
        return f"payment-{loan_id}"

    async def refund(self, receipt: str | None) -> None:
        self.calls.append(f"refund {receipt}")


def supplied(program: str, line: str, text: str, *, instead: bool = False) -> str:
    """The program with a part that it leaves out, below its ``line`` or instead of what stands there."""
    assert program.count(line) == 1, f"the program has the line {program.count(line)} times: {line}"
    return program.replace(line, text if instead else line + text)


class Notebook:
    """Runs parts of a program one after another, in one module that can await at its top level."""

    def __init__(self, setup: str) -> None:
        self.module = types.ModuleType(f"moved_{next(numbers)}")
        self.services = self.module.__dict__["services"] = Services()
        self._setup = setup

    async def run(self, program: str) -> None:
        """Run a part; what creates a storage is this test's."""
        program = program.replace("storage = MemorySagaStorage()\n", self._setup)
        code = compile(program, self.module.__name__, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        done = eval(code, self.module.__dict__)
        if inspect.isawaitable(done):
            await done

    def __getitem__(self, name: str) -> Any:
        return self.module.__dict__[name]


def sql_setup(database_url: str) -> str:
    """The program's own set-up of a SQL storage, on this database."""
    setup = supplied(SQLALCHEMY_SETUP, "postgresql+asyncpg://user:pass@localhost/db", database_url, instead=True)
    return supplied(setup, "sessions = async_sessionmaker(engine, expire_on_commit=False)\n", CREATE_TABLES)


def basic() -> str:
    program = supplied(BASIC, "# the services\n", REGISTER)
    return supplied(program, "# the other step\n", PAYMENT_STEP)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def setup(request: pytest.FixtureRequest) -> str:
    """How the program gets its storage."""
    if request.param == "memory":
        return "storage = MemorySagaStorage()\n"
    return sql_setup(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "database_url"))


@pytest.fixture
async def notebook(setup: str) -> AsyncIterator[Notebook]:
    """A program that ends as a process does: nothing of it is left running."""
    made = Notebook(setup)
    sys.modules[made.module.__name__] = made.module
    yield made
    names = made.module.__dict__
    if "mediator" in names:
        await names["mediator"].close()
    if "engine" in names:
        await names["engine"].dispose()
    del sys.modules[made.module.__name__]


# --- the programs run -------------------------------------------------------------------------------------------------


async def test_basic(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    await notebook.run(basic() + BASIC_EXECUTE)
    assert capsys.readouterr().out == "done HoldBooks\ndone TakeDeposit\n"
    assert notebook["context"].shelf == "reservation-123"
    assert notebook["context"].receipt == "payment-123"
    assert notebook["done"].saga_id == notebook["saga_id"]
    status, context, _ = await notebook["storage"].load_saga_state(notebook["saga_id"])
    assert status == "completed"
    assert context["receipt"] == "payment-123"


async def test_basic_when_a_step_fails(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    async def decline() -> None:
        raise PermissionError("card declined")

    notebook.services.on_charge = decline
    with pytest.raises(PermissionError, match="card declined"):
        await notebook.run(basic() + BASIC_EXECUTE)
    assert capsys.readouterr().out == "done HoldBooks\n"
    assert notebook.services.calls == ["reserve 123 ['Watership Down']", "charge 123 100.0", "release reservation-123"]


async def interrupt(notebook: Notebook, *, declined: bool) -> None:
    """Stop the program in the middle of the charge; when it is declined, what follows is compensation."""
    await notebook.run(basic())
    charging, go_on = asyncio.Event(), asyncio.Event()

    async def on_charge() -> None:
        charging.set()
        await go_on.wait()
        if declined:
            raise PermissionError("card declined")

    notebook.services.on_charge = on_charge
    saga = notebook["mediator"].run(eval(A_CONTEXT, notebook.module.__dict__), saga_id=RECOVERED_ID)
    running = asyncio.ensure_future(saga)
    await charging.wait()
    closing = asyncio.ensure_future(notebook["mediator"].close())
    await asyncio.sleep(0)
    if not declined:  # it never learns how the charge ended
        for task in [task for task in asyncio.all_tasks() if task.get_name() == f"saga {RECOVERED_ID}"]:
            task.cancel()
    go_on.set()
    await closing
    with contextlib.suppress(Exception):
        await running
    notebook.services.calls.clear()
    notebook.services.on_charge = None


async def test_recovery_goes_on_forward(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    await interrupt(notebook, declined=False)
    await notebook.run(RECOVERY)
    assert capsys.readouterr().out == "went on\n"
    assert notebook.services.calls == ["charge 123 100.0"]  # what was reserved is not reserved again


async def test_recovery_goes_on_back(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    await interrupt(notebook, declined=True)
    assert (await notebook["storage"].load_saga_state(RECOVERED_ID))[0] == "compensating"
    await notebook.run(RECOVERY)
    assert capsys.readouterr().out == "was undone\n"
    assert notebook.services.calls == ["release reservation-123"]


async def test_background_recover_now_and_then(notebook: Notebook) -> None:
    await interrupt(notebook, declined=False)
    finds: asyncio.Queue[None] = asyncio.Queue()

    async def find_left_over() -> list[uuid.UUID]:
        finds.put_nowait(None)
        return [RECOVERED_ID]

    async def sleep(seconds: float) -> None:
        await finds.get()
        job.cancel()
        await asyncio.sleep(seconds)

    notebook.module.__dict__["find_left_over"] = find_left_over
    await notebook.run(RECOVERY_JOB)
    notebook.module.__dict__["asyncio"] = types.SimpleNamespace(sleep=sleep)  # a minute is long
    job = asyncio.ensure_future(notebook["recover_now_and_then"]())
    await asyncio.wait([job])
    assert job.cancelled()
    assert (await notebook["storage"].load_saga_state(RECOVERED_ID))[0] == "completed"


async def test_fallback(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    await notebook.run(FALLBACK)
    assert capsys.readouterr().out == "done AskOtherLibrary\n"
    assert notebook["context"].shelf == "other-shelf-123"
    assert notebook["done"].response.library == "other"


async def test_fastapi_sse(notebook: Notebook) -> None:
    a_request = """\
        class LoanRequest(pydantic.BaseModel):
            loan_id: str
        app = fastapi.FastAPI()
        """
    await notebook.run(basic() + "import fastapi, pydantic\n" + textwrap.dedent(a_request))
    await notebook.run(supplied(SSE, "Loan(...)", A_CONTEXT, instead=True))
    transport = httpx.ASGITransport(notebook["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/loans", json={"loan_id": "123"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [json.loads(frame.removeprefix("data: ")) for frame in answer.text.split("\n\n") if frame]
    assert [frame["type"] for frame in frames] == ["start", "step", "step", "complete"]
    assert [frame.get("step") for frame in frames[1:3]] == ["HoldBooks", "TakeDeposit"]


async def test_sqlalchemy_storage(setup: str, notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    program = basic()
    await notebook.run(program[: program.index("# the store")] + setup)
    use = supplied(SQLALCHEMY_USE, "Loan(...)", A_CONTEXT, instead=True)
    if "engine" not in notebook.module.__dict__:
        use = supplied(use, "await storage.session.commit()\n", "", instead=True)  # memory has no session
    await notebook.run(use)
    assert capsys.readouterr().out == "done HoldBooks\ndone TakeDeposit\n"
