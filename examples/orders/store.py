"""A service's own data: one SQLite file for each service. Not a part of Watership: use what your service has."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import aiosqlite

DIRECTORY = Path(os.environ.get("ORDERS_DATA_DIR", Path(tempfile.gettempdir()) / "watership-orders"))


class Store:
    """The tables of one service. They are made on first use."""

    def __init__(self, service: str, schema: str) -> None:
        self._path = DIRECTORY / f"{service}.db"
        self._schema = schema
        self._is_ready = False
        # SQLite writes one at a time, and waits unfairly: of fifty that wait, one may starve past its time-out.
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncGenerator[aiosqlite.Connection]:
        """All that is written in the block, or nothing of it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        async with self._turn, aiosqlite.connect(self._path, timeout=10, isolation_level=None) as connection:
            await connection.execute("BEGIN IMMEDIATE")
            if not self._is_ready:
                for statement in filter(str.strip, self._schema.split(";")):
                    await connection.execute(statement)
            try:
                yield connection
            except BaseException:
                await connection.rollback()
                raise
            await connection.commit()
            self._is_ready = True
