"""One server's address, and how to see that it answers: what every way of getting servers shares."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import asyncpg
import pika
import pika.exceptions
import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

T = TypeVar("T")

RABBITMQ = "rabbitmq"
POSTGRESQL = "postgresql"
MARIADB = "mariadb"  # for the barrier alone: a participant's database
TITLES = {RABBITMQ: "RabbitMQ", POSTGRESQL: "PostgreSQL", MARIADB: "MariaDB"}

# Quorum queues took a message TTL with RabbitMQ 3.10; DROP DATABASE … WITH (FORCE) came with PostgreSQL 13.
VERSION_MIN = {RABBITMQ: (3, 10), POSTGRESQL: (13, 0), MARIADB: (10, 6)}
ANSWER_WITHIN_S = 10.0


class Unavailable(Exception):
    """A server, or a way of getting one, is not to be had. The message says why in a few words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens. ``where`` is for people: "this host, 127.0.0.1:5672".

    ``shared``: others may have things on it, so that we must leave nothing behind.
    """

    url: str
    where: str
    shared: bool = True


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code, and leave the event loop of a test alone."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


def version(server: str, url: str) -> str:
    """The version of the server at ``url``. Raises Unavailable if none answers there, or one that is too old."""
    if server == RABBITMQ:
        found = _rabbitmq_version(url)
    else:
        found = run(_postgresql_version(url) if server == POSTGRESQL else _mariadb_version(url))
    major, minor = (int(part) for part in re.findall(r"\d+", f"{found}.0")[:2])
    if (major, minor) < VERSION_MIN[server]:
        needed = ".".join(str(part) for part in VERSION_MIN[server])
        raise Unavailable(f"it is version {found}, and {needed} is the oldest that will do")
    return found


def wait_until_answering(server: str, url: str, *, timeout_s: float, ended: Callable[[], bool]) -> None:
    """Ask until the server answers, give up when ``ended()`` says that its process is gone."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            version(server, url)
        except Unavailable as why:
            if ended():
                raise Unavailable(f"{TITLES[server]} ended while it started") from why
            if time.monotonic() > deadline:
                raise Unavailable(f"{TITLES[server]} did not answer within {timeout_s:.0f} s: {why}") from why
        else:
            return
        # A server that starts tells nobody when it is ready: asking again is the only signal there is.
        time.sleep(0.1)


def connect_rabbitmq(url: str) -> pika.BlockingConnection:
    """A connection for the tests' own errands. Raises Unavailable with the broker's reason."""
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = ANSWER_WITHIN_S
    parameters.connection_attempts = 1
    try:
        # A refused pika connection leaves its inner sockets open, for the garbage collector to complain of in whatever
        # test runs then: so it is asked first, by a socket of ours, whether anybody listens.
        socket.create_connection((parameters.host, parameters.port), ANSWER_WITHIN_S).close()
        return pika.BlockingConnection(parameters)
    except (pika.exceptions.AMQPError, OSError) as error:
        raise Unavailable(_first_line(error)) from error


async def connect_postgresql(url: str) -> asyncpg.Connection[asyncpg.Record]:
    """A connection for the tests' own errands, from a URL as SQLAlchemy writes it. Raises Unavailable."""
    try:
        return await asyncpg.connect(url.replace("+asyncpg", "", 1), timeout=ANSWER_WITHIN_S)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as error:
        raise Unavailable(_first_line(error)) from error


def _rabbitmq_version(url: str) -> str:
    connection = connect_rabbitmq(url)
    # The handshake brings the version; a blocking connection has no public name for what it brought.
    properties = connection._impl.server_properties
    connection.close()
    if properties.get("product") != "RabbitMQ":
        raise Unavailable(f"it says that it is {properties.get('product')}, not RabbitMQ")
    return str(properties["version"])


async def _postgresql_version(url: str) -> str:
    connection = await connect_postgresql(url)
    try:
        found = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return str(found).split()[0]  # "15.20 (Debian 15.20-0+deb12u1)"


async def _mariadb_version(url: str) -> str:
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"connect_timeout": ANSWER_WITHIN_S})
    try:
        async with engine.connect() as connection:
            return str((await connection.execute(sa.text("SELECT VERSION()"))).scalar_one())
    except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        raise Unavailable(_first_line(error)) from error
    finally:
        await engine.dispose()


def _first_line(error: BaseException) -> str:
    """The words of an error, or of the one inside it: pika wraps them in a representation."""
    text = str(error) or repr(error)
    refused = "Connection refused" in text or isinstance(error, ConnectionRefusedError)
    return "nothing listens there" if refused else text.splitlines()[0]
