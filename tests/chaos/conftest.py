"""Chaos runs last, and on servers of its own where it can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.chaos.ground import GivenGround, Ground, PrivateGround, private_ground, why_not_private
from tests.chaos.guardian import Guardian

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is quick, and tells more when it fails, comes first."""
    items.sort(key=lambda item: HERE in item.path.parents)


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    """Whoever ends what this process starts, however this process ends."""
    found = Guardian()
    yield found
    found.close()


@pytest.fixture
async def private(guardian: Guardian) -> AsyncIterator[PrivateGround]:
    """Private servers; skips, with the reason, where there can be none."""
    if refusal := why_not_private():
        pytest.skip(f"no private servers on this host: {refusal}")
    async with private_ground(guardian, small_disk=False) as ground:
        yield ground


@pytest.fixture
async def ground(request: pytest.FixtureRequest, guardian: Guardian) -> AsyncIterator[Ground]:
    """Private servers if they can be had; else what the other tests have, and those are not struck themselves."""
    if not (refusal := why_not_private()):
        async with private_ground(guardian, small_disk=True) as ground:
            yield ground
        return
    print(f"no private servers on this host: {refusal}")  # noqa: T201 - shown where a test fails
    session = request.getfixturevalue("server_session")
    database_url, namespace = request.getfixturevalue("database_url"), request.getfixturevalue("namespace")
    books_url = session.create_database()
    yield GivenGround(namespace, request.getfixturevalue("broker_url"), database_url, books_url)
    session.drop_database(books_url)
