"""Databases for the tests of the schema itself, which need one without tables."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support.endpoints import run


@contextlib.contextmanager
def empty_database(administration_url: str) -> Iterator[str]:
    """A PostgreSQL database with nothing in it; dropped at the end, whoever is still connected."""
    name = f"watership_empty_{secrets.token_hex(4)}"
    run(_execute(administration_url, f'CREATE DATABASE "{name}" TEMPLATE template0'))
    try:
        yield sa.make_url(administration_url).set(database=name).render_as_string(hide_password=False)
    finally:
        run(_execute(administration_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _execute(url: str, statement: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.exec_driver_sql(statement)
    await engine.dispose()
