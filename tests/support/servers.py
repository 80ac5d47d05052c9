"""Where the tests get a real RabbitMQ and a real PostgreSQL, and how each test gets a clean piece of both.

Four ways, in this order: what the environment names, what this host runs on the default ports, containers, private
servers from the distribution's packages. There is no fifth, and no skip: without servers the run stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from tests.support import broker_admin
from tests.support.endpoints import (
    POSTGRESQL,
    RABBITMQ,
    TITLES,
    Endpoint,
    Unavailable,
    connect_postgresql,
    connect_rabbitmq,
    run,
    version,
)

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {RABBITMQ: "WATERSHIP_TEST_BROKER_URL", POSTGRESQL: "WATERSHIP_TEST_DATABASE_URL"}
HOST = {
    RABBITMQ: Endpoint("amqp://guest:guest@127.0.0.1:5672/", "this host, 127.0.0.1:5672"),
    POSTGRESQL: Endpoint("postgresql+asyncpg://postgres@127.0.0.1:5432/postgres", "this host, 127.0.0.1:5432"),
}
SERVERS = (RABBITMQ, POSTGRESQL)  # what every run that needs servers gets; MariaDB is brought up on demand
WAYS = {
    "environment": "set WATERSHIP_TEST_BROKER_URL and WATERSHIP_TEST_DATABASE_URL to servers that the tests may use",
    "host": "run them on this host: RabbitMQ on 127.0.0.1:5672 (guest, guest), PostgreSQL on 127.0.0.1:5432 (user"
    " postgres, trusted)",
    "docker": "run a Docker engine: the tests start rabbitmq:4-management and postgres:17 themselves",
    "apt": "on Debian or Ubuntu, be root: the tests install both by apt-get, and run them on private ports",
}


def prepare_template(url: str) -> None:
    """Bring the empty database at ``url`` to the current schema: every test's database is a copy of it.

    Postgres copies only a database that nobody is connected to: close every connection before you return.
    """
    # Imported here: a run that needs no server needs no migrations either.
    from watership.saga.storage import migrations

    run(migrations.upgrade(url))


@dataclasses.dataclass(frozen=True, slots=True)
class Servers:
    """The two servers of a test run. ``database_url`` is the door for administration; tests have databases of their own."""

    broker_url: str
    database_url: str
    description: str


class Session:
    """What one test run has on the servers, all of it under random names, and all of it gone after `close`."""

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self.keepers = contextlib.ExitStack()
        self._name = f"watership_test_{secrets.token_hex(4)}"
        self._prefix = f"t{secrets.token_hex(2)}"
        self._namespaces = self._databases = 0
        self._template = ""
        self._database_admin = endpoints[POSTGRESQL].url
        self._broker_url = endpoints[RABBITMQ].url
        if endpoints[RABBITMQ] is HOST[RABBITMQ]:
            self._move_to_a_virtual_host_of_our_own()
        shared = any(endpoint.shared for endpoint in endpoints.values())
        self._janitor = self._call_janitor() if shared else None
        found = [f"{TITLES[name]} {version(name, at.url)} ({at.where})" for name, at in endpoints.items()]
        self.servers = Servers(self._broker_url, self._database_admin, ", ".join(found))

    def new_namespace(self) -> str:
        """A namespace that nobody else uses: ``t`` and eight hexadecimal digits."""
        self._namespaces += 1
        return f"{self._prefix}{self._namespaces:04x}"

    def delete_namespace(self, namespace: str, step_queues: Iterable[str] = ()) -> None:
        """Delete the exchanges and queues of a namespace. Those of its steps have to be named: AMQP lists nothing."""
        keys = ["start", "control", "replies", "admin", "dead", *(f"step.{queue}" for queue in step_queues)]
        self._delete([f"{namespace}.{key}" for key in keys], [namespace, f"{namespace}.events", f"{namespace}.dead"])

    def create_database(self) -> str:
        """A fresh copy of the template; its URL, as SQLAlchemy writes it."""
        if not self._template:
            self._template = f"{self._name}_template"
            run(self._execute(f'CREATE DATABASE "{self._template}"'))
            prepare_template(self._url_of(self._template))
        self._databases += 1
        name = f"{self._name}_{self._databases}"
        run(self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._template}"'))
        return self._url_of(name)

    def drop_database(self, url: str) -> None:
        """Drop it, whoever is still connected."""
        run(self._execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)'))

    def close(self) -> None:
        """Leave nothing behind, and end the servers that were brought up for this run."""
        with self.keepers:
            if self._janitor is not None:
                self._janitor.communicate()
                if self._janitor.returncode != 0:
                    raise Unavailable("something of this run was left on the servers: see above")

    def _call_janitor(self) -> subprocess.Popen[str]:
        """Whoever removes what we make must outlive us: this process may be killed."""
        command = [sys.executable, "-m", "tests.support.janitor"]
        janitor = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True, start_new_session=True)
        assert janitor.stdin is not None
        orders = {"name": self._name, "prefix": self._prefix}
        urls = {"broker_url": self._broker_url, "database_url": self._database_admin}
        janitor.stdin.write(json.dumps(orders | urls) + "\n")
        janitor.stdin.flush()
        return janitor

    def _move_to_a_virtual_host_of_our_own(self) -> None:
        """On a broker that others use, a virtual host leaves nothing to chance; without the right to make one, names do."""
        ours = HOST[RABBITMQ].url + self._name
        for door in broker_admin.doors(self._broker_url):
            try:
                door.add_virtual_host(self._name, user="guest")
                version(RABBITMQ, ours)
            except (OSError, Unavailable):  # no such door, no right, or the door of another broker
                with contextlib.suppress(OSError):
                    door.delete_virtual_host(self._name)
            else:
                self._broker_url = ours
                return

    def _delete(self, queues: Iterable[str], exchanges: Iterable[str]) -> None:
        connection = connect_rabbitmq(self._broker_url)
        channel = connection.channel()
        for queue in queues:
            channel.queue_delete(queue)
        for exchange in exchanges:
            channel.exchange_delete(exchange)
        connection.close()

    def _url_of(self, database: str) -> str:
        return make_url(self._database_admin).set(database=database).render_as_string(hide_password=False)

    async def _execute(self, statement: str) -> None:
        connection = await connect_postgresql(self._database_admin)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def open_session(say: Callable[[str], None], ways: Sequence[str] = tuple(WAYS)) -> Session:
    """Find or start both servers. Raises Unavailable, with the four ways and why each is closed."""
    endpoints: dict[str, Endpoint] = {}
    why_not: dict[str, str] = {}
    with contextlib.ExitStack() as keepers:
        for way in ways:
            missing = [server for server in SERVERS if server not in endpoints]
            if not missing:
                break
            if way == "environment":
                found, why_not[way] = _from_environment(missing)
            elif way == "host":
                found, why_not[way] = _from_host(missing)
            else:
                try:
                    found = keepers.enter_context(kept(way, missing, say))
                except Unavailable as why:
                    found, why_not[way] = {}, str(why)
            endpoints |= found
        missing = [server for server in SERVERS if server not in endpoints]
        if missing:
            raise Unavailable(_explain(missing, why_not))
        session = Session({server: endpoints[server] for server in SERVERS})
        session.keepers = keepers.pop_all()
    return session


def _from_environment(wanted: Sequence[str]) -> tuple[dict[str, Endpoint], str]:
    """What the two variables name. Who names a server means that one: if it will not do, no other is tried."""
    found = {}
    for server in wanted:
        variable = VARIABLES[server]
        if url := os.environ.get(variable):
            try:
                _check(server, url)
            except Unavailable as why:
                raise Unavailable(f"{variable} is set, but that {TITLES[server]} cannot be used: {why}") from why
            found[server] = Endpoint(url, f"{variable}, {urlsplit(url).hostname}")
    absent = [VARIABLES[server] for server in wanted if server not in found]
    return found, f"{' and '.join(absent)} not set"


def _from_host(wanted: Sequence[str]) -> tuple[dict[str, Endpoint], str]:
    found, refusals = {}, []
    for server in wanted:
        try:
            _check(server, HOST[server].url)
        except Unavailable as why:
            refusals.append(f"{TITLES[server]}: {why}")
        else:
            found[server] = HOST[server]
    return found, "; ".join(refusals)


def _check(server: str, url: str) -> None:
    version(server, url)
    if server == POSTGRESQL and not run(_may_create_databases(url)):
        raise Unavailable("its user may not create databases, and every test makes its own")


async def _may_create_databases(url: str) -> bool:
    connection = await connect_postgresql(url)
    try:
        query = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
        return bool(await connection.fetchval(query))
    finally:
        await connection.close()


@contextlib.contextmanager
def kept(way: str, wanted: Sequence[str], say: Callable[[str], None]) -> Iterator[dict[str, Endpoint]]:
    """Have a keeper bring servers up. It ends them when its input closes: here, or when this process dies."""
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.support.keeper", way, *wanted],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C in the terminal goes to the tests alone
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with keeper:
        for line in keeper.stdout:
            message = json.loads(line)
            if "say" in message:
                say(message["say"])
            elif "failed" in message:
                raise Unavailable(message["failed"])
            else:
                yield {server: Endpoint(**endpoint) for server, endpoint in message["ready"].items()}
                return
        raise Unavailable("its keeper ended without a word")


def _explain(missing: Sequence[str], why_not: dict[str, str]) -> str:
    lines = [
        f"these tests need a real {' and a real '.join(TITLES[server] for server in missing)}. Four ways to get there:"
    ]
    for number, (way, advice) in enumerate(WAYS.items(), start=1):
        lines += [f"  {number}. {advice}", f"     (now: {why_not.get(way, 'not tried')})"]
    return "\n".join([*lines, "What needs no server runs by `make check`."])
