"""An operator's answer is one message: what is too big for one is told without its data. On SQLite, which needs no server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from watership import codec
from watership.machine.changes import (
    Change,
    Created,
    LateAct,
    Replied,
    SignalKept,
    Signalled,
    Verified,
    change_from_data,
    change_to_data,
)
from watership.machine.state import Action, Failure, Outcome
from watership.messages import AdminAnswer, AdminRequest, AdminVerb
from watership.saga.storage.rows import changes_to_json
from watership.saga.storage.schema import Base, dead_letter_table, ledger_table, log_table, saga_table
from watership_orchestrator.admin import Admin
from watership_orchestrator.fitting import BEGINNING

SAGA_ID = uuid.UUID(int=5)
SHOW = AdminRequest(verb=AdminVerb.SHOW, saga_id=SAGA_ID)
BIG = {"text": "x" * 200_000}  # less than any one of them may have
DONE = Outcome.DONE


@pytest.fixture
async def database() -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


async def insert(database: AsyncEngine, table: sa.Table, *rows: dict[str, Any]) -> None:
    async with database.begin() as connection:
        await connection.execute(sa.insert(table), list(rows))


async def keep(database: AsyncEngine, *log: Change) -> None:
    """A saga with a log that has an entry for each change."""
    of_all = {"saga_id": SAGA_ID, "namespace": "test", "driver": "orchestrator", "name": "OrderSaga"}
    stands = {"status": "COMPLETED", "seq": len(log), "context": codec.dumps(BIG).decode(), "state": "{}"}
    rest = {"input_hash": "h", "machine_version": 1, "created_at_ms": 1, "updated_at_ms": 1}
    await insert(database, saga_table, {**of_all, **stands, **rest})
    entries = [
        {"saga_id": SAGA_ID, "seq": seq, "at_ms": seq, "cause": "test", "changes": changes_to_json((change,))}
        for seq, change in enumerate(log, start=1)
    ]
    await insert(database, log_table, *entries)


async def ask(database: AsyncEngine, request: AdminRequest) -> Any:
    """What is answered, if that can be sent and read as one message."""
    body = (await Admin(database, "test").read(request)).to_body()
    codec.decode(body, what="the answer")
    answer = AdminAnswer.model_validate_json(body)
    assert answer.error is None
    return answer.data


async def test_a_saga_that_was_tried_again_for_weeks_is_shown(database: AsyncEngine) -> None:
    failure = Failure("down", "Down", "x" * 2_000, ("down",), "B")
    tried = [
        Replied("B", Action.ACT, attempt, "r", Outcome.FAILED, final=False, failure=failure) for attempt in range(6_000)
    ]
    done = Replied("A", Action.ACT, 1, "r", DONE, final=True, response=BIG)
    await keep(database, Created("OrderSaga", {}, "hash"), *tried[:3_000], done, *tried[3_000:])
    seqs = [entry["seq"] for entry in (await ask(database, SHOW))["log"]]
    assert seqs == sorted(seqs)
    assert seqs[:BEGINNING] == list(range(1, BEGINNING + 1))
    assert 3_002 in seqs, "the step that is done"
    newest = [seq for seq in seqs if seq > 3_002]
    assert newest == list(range(newest[0], 6_003)), "the newest, without a gap"
    assert len(newest) > 500


def bare(change: Change) -> dict[str, Any]:
    """The change as data, without what it carries."""
    carried = {"context", "patch", "response", "events", "data"}
    return {name: value for name, value in change_to_data(change).items() if name not in carried}


BIG_CHANGES: list[Change] = [
    Created("OrderSaga", BIG, "hash"),
    Replied("A", Action.ACT, 1, "r", DONE, final=True, patch=BIG),
    Replied("A", Action.ACT, 1, "r", DONE, final=True, response=BIG),
    Replied("A", Action.ACT, 1, "r", DONE, final=True, events=[{"name": "moved", "data": BIG}]),
    Verified("A", 1, DONE, patch=BIG, response=BIG, events=[{"name": "moved", "data": BIG}]),
    LateAct("A", 1, "r", DONE, patch=BIG),
    SignalKept("approval", BIG),
    Signalled("approval", BIG, "approval"),
]


@pytest.mark.parametrize("change", BIG_CHANGES, ids=[f"{change.kind}-{n}" for n, change in enumerate(BIG_CHANGES)])
async def test_a_log_too_big_for_one_message_tells_what_happened_without_its_data(
    database: AsyncEngine, change: Change
) -> None:
    await keep(database, *[change] * 6)
    shown = await ask(database, SHOW)
    assert shown["context"] == BIG
    assert [entry["seq"] for entry in shown["log"]] == [1, 2, 3, 4, 5, 6]
    for entry in shown["log"]:
        (data,) = entry["changes"]
        assert bare(change_from_data(data)) == bare(change)


async def test_a_log_that_fits_is_told_whole(database: AsyncEngine) -> None:
    changes = [BIG_CHANGES[0], BIG_CHANGES[1]]
    await keep(database, *changes)
    shown = await ask(database, SHOW)
    assert [entry["changes"] for entry in shown["log"]] == [[change_to_data(change)] for change in changes]


LATE = {"step": "A", "outcome": "done", "patch": BIG, "response": BIG, "events": [{"name": "moved", "data": BIG}]}
SIGNAL = {"name": "approval", "data": BIG}


@pytest.mark.parametrize("verb", [AdminVerb.SHOW, AdminVerb.LEDGER])
async def test_a_ledger_too_big_for_one_message_tells_what_came_without_its_data(
    database: AsyncEngine, verb: AdminVerb
) -> None:
    await keep(database, *BIG_CHANGES)
    of_all = {"namespace": "test", "saga_id": SAGA_ID, "at_ms": 1, "reason": "it came late"}
    messages = [LATE, SIGNAL, "not an object", LATE]
    await insert(
        database, ledger_table, *({**of_all, "message": codec.dumps(message).decode()} for message in messages)
    )
    found = await ask(database, AdminRequest(verb=verb, saga_id=SAGA_ID))
    lines = found["ledger"] if verb is AdminVerb.SHOW else found
    late, signal = {"step": "A", "outcome": "done"}, {"name": "approval"}
    assert [line["message"] for line in lines] == [late, "not an object", signal, late], "the newest first"


# JSON writes a control character as six.
@pytest.mark.parametrize(("byte", "shown_as"), [(b"\0", "\N{REPLACEMENT CHARACTER}"), (b"\1", "\1"), (b"x", "x")])
async def test_a_dead_letters_body_is_cut_to_what_one_message_takes(
    database: AsyncEngine, byte: bytes, shown_as: str
) -> None:
    letter = {
        "namespace": "test",
        "queue": "test.start",
        "reason": "rejected",
        "kind": "?",
        "headers": "{}",
        "at_ms": 1,
    }
    await insert(database, dead_letter_table, {**letter, "body": byte * 2_000_000})
    shown = await ask(database, AdminRequest(verb=AdminVerb.DEAD_SHOW, letter_id=1))
    assert (shown["body_bytes"], set(shown["body"])) == (2_000_000, {shown_as})
