"""A MariaDB for the tests of the barrier: what the environment names, a container, or the distribution's package.

Unlike the broker and Postgres it is brought up only when a test asks for it, and never sought on this host.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support.endpoints import MARIADB, Unavailable, run, version
from tests.support.servers import kept

VARIABLE = "WATERSHIP_TEST_MARIADB_URL"
WAYS = f"set {VARIABLE}, or run a Docker engine, or be root on Debian or Ubuntu"


@contextlib.contextmanager
def mariadb(say: Callable[[str], None]) -> Iterator[str]:
    """The URL of a server, ``mysql+aiomysql://…``, with the right to make databases. Raises Unavailable."""
    if url := os.environ.get(VARIABLE):
        version(MARIADB, url)
        yield url
        return
    why_not = []
    with contextlib.ExitStack() as keeper:
        for way in ("docker", "apt"):
            try:
                found = keeper.enter_context(kept(way, [MARIADB], say))
            except Unavailable as why:
                why_not.append(f"{way}: {why}")
            else:
                yield found[MARIADB].url
                return
    raise Unavailable(f"the barrier's tests need a real MariaDB: {WAYS} (now: {'; '.join(why_not)})")


@contextlib.contextmanager
def empty_mariadb_database(administration_url: str) -> Iterator[str]:
    """A database with nothing in it; dropped at the end."""
    name = f"watership_{secrets.token_hex(4)}"
    run(_execute(administration_url, f"CREATE DATABASE {name}"))
    try:
        yield sa.make_url(administration_url).set(database=name).render_as_string(hide_password=False)
    finally:
        run(_execute(administration_url, f"DROP DATABASE {name}"))


async def _execute(url: str, statement: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(statement)
    await engine.dispose()
