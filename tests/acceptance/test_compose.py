"""`docker-compose.yml` as it stands: one command brings all up, and all orders end right, whatever is killed on the way.

Run by `make test-containers`, on any Docker engine with Compose v2; the first run pulls and builds the images. It is in
no other run: `make test` brings up what servers it needs in its own way. Where there is no engine, it fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pika
import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1_200)]

ROOT = Path(__file__).resolve().parents[2]
COMMAND_WITHIN_S = 900
ENDED_WITHIN_S = 180
ORDERS = 1_000
LOG_LINES = 200

# sku, card, address, and how such an order ends
KINDS = [
    ("book", "visa", "12 Hazel Lane", "COMPLETED"),
    ("lamp", "visa", "3 Down Road", "COMPLETED"),
    ("unicorn", "visa", "7 Meadow Way", "COMPENSATED"),
    ("book", "declined", "5 River Walk", "COMPENSATED"),
    ("lamp", "visa", "1 Harbour, Gull island", "COMPLETED"),
]
BOOKS = """
import json, sqlite3
one = lambda service, query: sqlite3.connect(f"/data/{service}.db").execute(query).fetchone()[0]
print(json.dumps({
    "reserved": one("inventory", "SELECT count(*) FROM reservation"),
    "charged": one("payments", "SELECT count(*) FROM charge WHERE NOT refunded"),
    "shipped": one("shipping", "SELECT count(*) FROM parcel"),
    "by post": one("shipping", "SELECT count(*) FROM parcel WHERE carrier = 'Post'"),
}))
"""


class Compose:
    """`docker compose` for a project of this test's own, with no setting of whoever runs it."""

    def __init__(self) -> None:
        self.project = f"watership-test-{secrets.token_hex(4)}"
        self._env = {
            name: value for name, value in os.environ.items() if not name.startswith(("WATERSHIP_", "COMPOSE_"))
        }

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output; what fails fails the test, with what it wrote."""
        return self.run("docker", "compose", "--env-file", os.devnull, "-p", self.project, *arguments, stdin=stdin)

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Any command, likewise."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._env,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def execute(self, service: str, *command: str, stdin: str | None = None) -> str:
        """A command in the first container of a service."""
        return self("exec", "-T", "--index", "1", service, *command, stdin=stdin)

    def port(self, service: str, port: int) -> int:
        """The port of this machine that Docker chose."""
        host, _, found = self("port", service, str(port)).strip().rpartition(":")
        assert host == "127.0.0.1", "reachable from elsewhere"
        return int(found)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self("ps", "--quiet", service).split()

    def left_over(self) -> str:
        """The project's containers and volumes, whatever their state."""
        mine = f"label=com.docker.compose.project={self.project}"
        volumes = self.run("docker", "volume", "ls", "--quiet", "--filter", mine)
        return self.run("docker", "ps", "--all", "--quiet", "--filter", mine) + volumes


@pytest.fixture(scope="module")
def compose(request: pytest.FixtureRequest) -> Iterator[Compose]:
    compose = Compose()
    compose.run("docker", "compose", "version")
    compose.run("docker", "info")
    failed_before = request.session.testsfailed
    try:
        compose("up", "--build", "--wait")
        yield compose
        if request.session.testsfailed > failed_before:
            reporter = request.config.pluginmanager.getplugin("terminalreporter")
            reporter.write_line(compose("logs", "--no-color", "--tail", str(LOG_LINES)))
    finally:
        compose("down", "--volumes", "--timeout", "10")
    assert not compose.left_over()


def some_orders() -> dict[uuid.UUID, tuple[dict[str, Any], str]]:
    """Contexts, and how each will end."""
    orders = {}
    for number in range(ORDERS):
        sku, card, address, end = KINDS[number % len(KINDS)]
        context = {"order_id": f"{number}", "sku": sku, "quantity": 1, "total_cents": 100 + number, "currency": "EUR"}
        orders[uuid.uuid4()] = ({**context, "card": card, "address": address}, end)
    return orders


def start_by_pika(port: int, orders: dict[uuid.UUID, tuple[dict[str, Any], str]]) -> None:
    """Starts sagas from this machine, with a client that is not ours."""
    url = f"amqp://watership:watership@127.0.0.1:{port}/"
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(type="start-saga", delivery_mode=2)
        for saga_id, (context, _) in orders.items():
            body = {"v": 1, "saga": "OrderSaga", "saga_id": str(saga_id), "context": context}
            channel.basic_publish("watership", "start", json.dumps(body).encode(), properties, mandatory=True)


async def until(database: asyncpg.Connection[Any], what: str, enough: Callable[[Counter[str]], bool]) -> None:
    """Waits until the sagas, counted by status, are enough."""
    found: Counter[str] = Counter()
    try:
        async with asyncio.timeout(ENDED_WITHIN_S):
            while not enough(found):
                await asyncio.sleep(0.1)
                rows = await database.fetch("SELECT status, count(*) FROM watership_saga GROUP BY status")
                found = Counter({row["status"]: row["count"] for row in rows})
    except TimeoutError:
        still = await database.fetch(
            "SELECT saga_id, status, step, parked_reason, owed_reason FROM watership_saga "
            "WHERE status NOT IN ('COMPLETED', 'COMPENSATED') LIMIT 5"
        )
        pytest.fail(f"not {what} after {ENDED_WITHIN_S} s, but {dict(found)}; some that go on: {still}")


def ended(found: Counter[str]) -> int:
    return found["COMPLETED"] + found["COMPENSATED"]


async def test_all_orders_end_right_while_a_worker_and_an_orchestrator_are_killed(compose: Compose) -> None:
    assert len(compose.containers("orchestrator")) == 2
    orders = some_orders()
    database = await asyncpg.connect(
        host="127.0.0.1",
        port=compose.port("postgres", 5432),
        user="watership",
        password="watership",
        database="watership",
    )
    try:
        starting = asyncio.ensure_future(asyncio.to_thread(start_by_pika, compose.port("rabbitmq", 5672), orders))
        await until(database, "under way", lambda found: ended(found) >= ORDERS // 20)
        victims = [compose.containers("payments")[0], compose.containers("orchestrator")[1]]
        await asyncio.to_thread(compose.run, "docker", "kill", "--signal", "KILL", *victims)
        open_sagas = "SELECT count(*) FROM watership_saga WHERE status NOT IN ('COMPLETED', 'COMPENSATED')"
        assert await database.fetchval(open_sagas), "they were killed too late to matter"
        await asyncio.to_thread(compose, "up", "--wait")
        await starting
        await until(database, "all ended", lambda found: ended(found) == ORDERS)
        rows = await database.fetch("SELECT saga_id, status FROM watership_saga")
    finally:
        await database.close()
    assert {row["saga_id"]: row["status"] for row in rows} == {saga_id: end for saga_id, (_, end) in orders.items()}
    completed = sum(end == "COMPLETED" for _, end in orders.values())
    books = json.loads(compose.execute("payments", "python", "-c", BOOKS))
    # Once the first carrier's breaker is open, parcels that it could have taken go by post as well.
    assert books.pop("by post") >= ORDERS // len(KINDS)
    assert books == {"reserved": completed, "charged": completed, "shipped": completed}


def test_the_command_line_works_in_a_container(compose: Compose) -> None:
    orders = list(some_orders().values())[:20]
    lines = "\n".join(json.dumps({**context, "order_id": f"cli-{context['order_id']}"}) for context, _ in orders)
    started = compose.execute("orchestrator", "watership", "start", "OrderSaga", "--context", "@-", stdin=lines).split()
    assert len(set(started)) == len(orders)
    listed = json.loads(compose.execute("orchestrator", "watership", "list", "--json", "--limit", "20"))
    assert {saga["saga_id"] for saga in listed} == set(started)
    placed = compose.execute("orchestrator", "python", "-m", "examples.orders.place_orders")
    assert Counter(word for word in placed.split() if word.isupper()) >= Counter(COMPLETED=3, COMPENSATED=2)


def test_the_limits_are_on_the_queues(compose: Compose) -> None:
    answer = compose.execute("rabbitmq", "rabbitmqctl", "--quiet", "--formatter=json", "list_queues", "name", "policy")
    policies = {queue["name"]: queue["policy"] for queue in json.loads(answer) if ".worker." not in queue["name"]}
    orchestrator = {f"watership.{key}": "watership-orchestrator" for key in ("control", "replies", "admin", "dead")}
    steps = {f"watership.step.{key}": "watership-step" for key in ("inventory", "payments", "shipping")}
    assert policies == {"watership.start": "watership-start", **orchestrator, **steps}


def test_a_service_runs_as_nobody_and_can_write_nowhere(compose: Compose) -> None:
    program = "import os, pathlib; print(os.getuid()); pathlib.Path('/opt/watership/here').touch()"
    seen = compose.execute("orchestrator", "sh", "-c", f'python -c "{program}" 2>&1 || true')
    assert int(seen.split()[0]) >= 10_000
    assert "Read-only file system" in seen
