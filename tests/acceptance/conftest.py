"""What the promises are tried on."""

from __future__ import annotations

import asyncio

import pytest

from watership.saga.storage import migrations


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def saga_database(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database for embedded sagas."""
    if request.param == "postgres":
        return str(request.getfixturevalue("database_url"))
    url = str(request.getfixturevalue("sqlite_url"))
    asyncio.run(migrations.upgrade(url))
    return url
