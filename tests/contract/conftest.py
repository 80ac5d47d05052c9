"""The stores that the suites of this folder run on: memory, SQLite, Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from watership.saga.storage.memory import MemorySagaStorage
from watership.saga.storage.protocol import SagaStorage
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

SQL = ["sqlite", pytest.param("postgres", marks=pytest.mark.servers)]
URLS = {"sqlite": "sqlite_url", "postgres": "database_url"}


@pytest.fixture(params=["memory", *SQL])
def storage_url(request: pytest.FixtureRequest) -> str | None:
    """None for memory."""
    return request.getfixturevalue(URLS[request.param]) if request.param in URLS else None


@pytest.fixture(params=SQL)
def sql_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(URLS[request.param])
    return url


@pytest.fixture
async def storage(storage_url: str | None) -> AsyncIterator[SagaStorage]:
    if storage_url is None:
        yield MemorySagaStorage()
        return
    made = SqlAlchemySagaStorage(storage_url)
    await made.create_tables()
    yield made
    await made.close()


@pytest.fixture
async def sql_storage(sql_url: str) -> AsyncIterator[SqlAlchemySagaStorage]:
    made = SqlAlchemySagaStorage(sql_url)
    await made.create_tables()
    yield made
    await made.close()
