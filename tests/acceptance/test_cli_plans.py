"""`watership plans` on databases of embedded sagas: what is in flight stays on its plan, and code is compared with it."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from watership import SagaResult, bootstrap
from watership.saga.compile import compile_saga

from tests.support.command import Command, Ran
from tests.support.parcels import FirstSaga, Parcel, SecondSaga, first, second

HERE = "tests.support.parcels"
SAGAS = 7
FIRST, SECOND = compile_saga(FirstSaga).plan.hash, compile_saga(SecondSaga).plan.hash


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "database_url")
    return found


@pytest.fixture
def command(tmp_path: Path, url: str) -> Command:
    command = Command(tmp_path, {"WATERSHIP_DATABASE_URL": url})
    command.good("db", "upgrade")
    return command


async def start_first(url: str) -> list[uuid.UUID]:
    """Sagas of the first version that wait, in a process that ends."""
    ids = [uuid.UUID(int=number) for number in range(1, SAGAS + 1)]
    async with bootstrap(sagas_mapper=first, database_url=url) as mediator:
        for saga_id in ids:
            await mediator.start(Parcel(f"A-{saga_id.int}"), saga_id=saga_id)
    return ids


async def finish_with_second(url: str, ids: list[uuid.UUID]) -> list[SagaResult[Any]]:
    """A process of the second version says go, and sees them to their end; and starts one of its own."""
    async with bootstrap(sagas_mapper=second, database_url=url) as mediator:
        for saga_id in ids:
            await mediator.signal(saga_id, "go", True)
        results: list[SagaResult[Any]] = [await mediator.result(saga_id) for saga_id in ids]
        results.append(await mediator.run(Parcel("B")))
        return results


def compat(command: Command, *names: str, code: int = 0, more: tuple[str, ...] = ()) -> Ran:
    ran = command.run("plans", "compat", *(f"{HERE}:{name}" for name in names), *more, columns=160)
    assert ran.code == code, ran
    return ran


def test_a_new_version_is_compared_and_finishes_what_the_old_one_began(command: Command, url: str) -> None:
    ids = asyncio.run(start_first(url))
    (view,) = command.good("plans", "list", "--json").json
    assert [line["plan"] for line in view["plans"]] == [FIRST]
    assert view["plans"][0]["in_flight"] == {"embedded": {"RUNNING": SAGAS}}
    assert "RUNNING" in command.good("plans", "list", columns=160).out

    assert "compatible: this code can finish the 7 sagas in flight" in compat(command, "first").err
    assert compat(command, "second", more=("--json",)).json["findings"] == []
    assert compat(command, "SecondSaga").code == 0

    forgot = compat(command, "hasty", code=1, more=("--json",)).json
    assert [(one["kind"], one["step"], one["sagas"]) for one in forgot["findings"]] == [
        ("handler_missing", "Weigh", SAGAS),
        ("handler_missing", "Ship", SAGAS),
    ]
    assert len(forgot["findings"][0]["examples"]) == 5
    assert "nothing serves step Ship any more" in compat(command, "hasty", code=1).out

    misfit = compat(command, "addressed", code=1)
    assert "contexts do not fit Addressed" in misfit.out
    assert "address: " in misfit.out
    assert str(ids[0]) in misfit.out

    results = asyncio.run(finish_with_second(url, ids))
    assert [result.status for result in results] == ["COMPLETED"] * (SAGAS + 1)
    assert [result.context.trail for result in results[:-1]] == [["Reserve", "Weigh", "Pack", "Ship"]] * SAGAS
    assert results[-1].context.trail == ["Pack", "Reserve", "Send"]
    assert compat(command, "hasty", more=("--json",)).json["plans"] == [], "nothing is in flight, so nothing is live"


def test_a_sample_says_that_it_stopped(command: Command, url: str) -> None:
    asyncio.run(start_first(url))
    ran = compat(command, "hasty", code=1, more=("--sample", "3"))
    assert "3 of 7 sagas in flight were read" in ran.out
    assert compat(command, "second", more=("--sample", "3", "--json")).json["complete"] is False
    assert compat(command, "second", more=("--sample", "7", "--json")).json["complete"] is True


def test_a_plan_is_shown_in_words(command: Command, url: str) -> None:
    asyncio.run(start_first(url))
    shown = command.good("plans", "show", FIRST[:6], columns=120).out
    assert FIRST in shown
    for words in ("Reserve", "acts once, 1 min 0 s at most; undone up to 3 times", "waits for the signal go", "order"):
        assert words in shown, shown
    view = command.good("plans", "show", FIRST, "--json").json
    assert view["saga"] == "ParcelSaga"
    assert [node["kind"] for node in view["definition"]["nodes"]] == ["step", "step", "wait", "step", "step"]
    assert "no plan in the namespace" in command.bad("plans", "show", "0123456789")
    assert "4 to 32 hex digits" in command.bad("plans", "show", "ab")


def test_what_cannot_be_compared_exits_with_2(command: Command) -> None:
    for target, words in (
        ("nowhere:it", "there is no module nowhere"),
        (HERE, "write MODULE:NAME"),
        (f"{HERE}:missing", "has no missing"),
        (f"{HERE}:NUMBER", "is a int"),
        (f"{HERE}:nothing", "binds no saga"),
    ):
        ran = command.run("plans", "compat", target)
        assert ran.code == 2, ran
        assert words in ran.err
    ran = command.run("plans", "compat", f"{HERE}:first", "--database-url", "sqlite+aiosqlite:///other.db")
    assert ran.code == 2
    assert "there is no database file" in ran.err


def test_which_plan_foreign_starts_get_is_chosen_where_there_are_foreign_starts(command: Command, url: str) -> None:
    asyncio.run(start_first(url))
    asyncio.run(finish_with_second(url, []))
    assert "say --newest" in command.bad("plans", "use", "ParcelSaga", "--reason", "x", code=2)
    assert "say why" in command.bad("plans", "use", "ParcelSaga", FIRST, "--reason", " ", code=2)
    if url.startswith("sqlite"):
        assert "run embedded" in command.bad("plans", "use", "ParcelSaga", FIRST, "--reason", "x")
        return
    assert "is one of saga ParcelSaga" in command.bad("plans", "use", "Other", FIRST, "--reason", "x")
    assert "was chosen" in command.bad("plans", "use", "ParcelSaga", "--newest", "--reason", "x")
    assert FIRST in command.good("plans", "use", "ParcelSaga", FIRST[:8], "--reason", "the second one is bad").out
    (view,) = command.good("plans", "list", "--json").json
    assert view["foreign_starts"]["plan"] == FIRST
    assert view["foreign_starts"]["reason"] == "the second one is bad"
    assert "@" in view["foreign_starts"]["actor"]
    assert "the second one is bad" in command.good("plans", "list", columns=200).out
    assert SECOND in command.good("plans", "use", "ParcelSaga", "--newest", "--reason", "mended").out
    assert command.good("plans", "list", "--json").json[0]["foreign_starts"] == {"plan": SECOND, "why": "newest"}


def test_help_pages_fit(tmp_path: Path) -> None:
    bare = Command(tmp_path)
    for name in ((), ("list",), ("show",), ("use",), ("compat",)):
        page = bare.good("plans", *name, "--help").out
        assert max(len(line) for line in page.splitlines()) <= 100
    assert "nowhere to look for plans" in bare.bad("plans", "list")
    ran = bare.run("plans", "compat", f"{HERE}:first")
    assert ran.code == 2
    assert "WATERSHIP_DATABASE_URL" in ran.err
