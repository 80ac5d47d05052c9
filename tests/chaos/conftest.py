"""Chaos runs last, and on servers of its own where it can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos import books, steps
from tests.chaos.ground import GivenGround, Ground, PrivateGround, private_ground, run_sql, why_not_private
from tests.chaos.guardian import Guardian
from tests.support.endpoints import run
from tests.support.servers import Session

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is quick, and tells more when it fails, comes first."""
    items.sort(key=lambda item: HERE in item.path.parents)


@pytest.fixture(scope="module")
def guardian() -> Iterator[Guardian]:
    """Whoever ends what this process starts, however this process ends."""
    found = Guardian()
    yield found
    found.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def private(guardian: Guardian) -> AsyncIterator[PrivateGround]:
    """Private servers for all tests of a file; skips, with the reason, where there can be none."""
    if refusal := why_not_private():
        pytest.skip(f"no private servers on this host: {refusal}")
    async with private_ground(guardian, small_disk=False) as ground:
        yield ground


@pytest.fixture
def given(
    server_session: Session, broker_url: str, database_url: str, namespace: str, step_queues: set[str]
) -> Iterator[GivenGround]:
    """The servers that the other tests have; the books are there."""
    step_queues.update(steps.worker.queues())
    books_url = server_session.create_database()
    run(run_sql(books_url, *books.SCHEMA))
    yield GivenGround(namespace, broker_url, database_url, books_url)
    server_session.drop_database(books_url)


@pytest.fixture
def instead(request: pytest.FixtureRequest) -> GivenGround | None:
    """The given servers where there can be no private ones."""
    refusal = why_not_private()
    if not refusal:
        return None
    print(f"no private servers on this host: {refusal}")  # noqa: T201 - shown where a test fails
    found: GivenGround = request.getfixturevalue("given")
    return found


@pytest.fixture
async def ground(instead: GivenGround | None, guardian: Guardian) -> AsyncIterator[Ground]:
    """Private servers if they can be had; else what the other tests have, and those are not struck themselves."""
    if instead is not None:
        yield instead
        return
    async with private_ground(guardian, small_disk=True) as ground:
        yield ground
