"""Who runs the saga: Watership in its ways, and its peers, each as the processes of one run.

Every peer runs in `.venv-peers`, at the best honest setting that we found: `settings` says it in the results.
"""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.ours.saga import STEPS
from tests.benchmarks.running import Program
from tests.support.servers import ROOT, Session

PEERS = ROOT / ".venv-peers"
PEERS_PYTHON = PEERS / "bin" / "python"
RESTATE = PEERS / "restate" / "node_modules" / ".bin" / "restate-server"
OUR_PROCESSES = ("client", "orchestrator", "worker", "reaper")


class Ground:
    """What one run stands on: a namespace, a database and a folder of its own, all gone after it."""

    def __init__(self, session: Session, folder: Path) -> None:
        self._session, self.folder = session, folder
        self.broker_url = session.servers.broker_url
        self.namespace = session.new_namespace()
        self.database_url = session.create_database()

    @property
    def plain_database_url(self) -> str:
        """As libraries other than SQLAlchemy write it, or its psycopg dialect."""
        return self.database_url.replace("+asyncpg", "")

    def clear(self) -> None:
        """Deletes all of it."""
        self._session.delete_namespace(self.namespace, STEPS)
        self._session.drop_database(self.database_url)


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run the saga. ``programs`` makes the processes of a run of so many seconds."""

    name: str
    title: str
    settings: str
    processes: int
    programs: Callable[[Ground, float], list[Program]]
    needs: tuple[Path, ...] = ()

    @property
    def missing(self) -> str | None:
        """Why it cannot be run here, if so."""
        absent = [path.name for path in self.needs if not path.exists()]
        return f"{', '.join(absent)} is not installed in .venv-peers" if absent else None


# --- Watership


AT_ONCE = 2_000


def services(
    ground: Ground, orchestrators: int = 1, workers: int = 1, worker: str = "saga", more: dict[str, str] | None = None
) -> list[Program]:
    """The services of a distributed Watership."""
    common = {
        "WATERSHIP_BROKER_URL": ground.broker_url,
        "WATERSHIP_DATABASE_URL": ground.database_url,
        "WATERSHIP_NAMESPACE": ground.namespace,
        **(more or {}),
    }
    command = (sys.executable, "-m", "watership.cli")
    target = f"tests.benchmarks.ours.{worker}:worker"
    programs = [Program("orchestrator", (*command, "orchestrator"), common) for _ in range(orchestrators)]
    programs += [Program("worker", (*command, "worker", target), common) for _ in range(workers)]
    return [*programs, Program("reaper", (*command, "reaper"), common)]


def load(ground: Ground, seconds: float, **options: object) -> Program:
    """The client that starts sagas and counts their ends: `ours/load.py`."""
    command = [sys.executable, "-m", "tests.benchmarks.ours.load", "--broker-url", ground.broker_url]
    command += ["--namespace", ground.namespace, "--seconds", str(seconds)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return Program("client", tuple(command), is_driver=True)


def distributed(orchestrators: int = 1, workers: int = 1, at_once: int = AT_ONCE) -> Contender:
    """All services on RabbitMQ and Postgres."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        return [*services(ground, orchestrators, workers), load(ground, seconds, at_once=at_once)]

    names = f"{orchestrators} orchestrator{'s' * (orchestrators > 1)}, {workers} worker{'s' * (workers > 1)}"
    return Contender(
        f"watership-{orchestrators}-{workers}" + (f"-{at_once}" if at_once != AT_ONCE else ""),
        f"Watership, distributed ({names})",
        f"RabbitMQ quorum queues and Postgres; a reaper too; {at_once:,} sagas on their way",
        orchestrators + workers + 2,  # the client and the reaper
        programs,
    )


# What is set beside the peers: as many processes as fill two cores.
FILLING = distributed(2, 1)


def awaited(at_once: int) -> Contender:
    """The distributed system behind the mediator that users have: each saga is awaited by `mediator.run`."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        options = ("--broker-url", ground.broker_url, "--namespace", ground.namespace)
        return [*services(ground), _embedded(seconds, at_once, *options, group="client")]

    settings = f"`mediator.run`, {at_once} at once"
    return Contender(f"watership-run-{at_once}", "Watership, distributed, awaited", settings, 4, programs)


def embedded(storage: str, processes: int = 1, at_once: int = 40) -> Contender:
    """`bootstrap` in a process: sagas on Postgres, on SQLite or in memory."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        url = {"postgres": ground.database_url, "sqlite": f"sqlite+aiosqlite:///{ground.folder}/s.db"}.get(storage)
        options = ("--database-url", url) if url else ()
        return [_embedded(seconds, at_once, *options) for _ in range(processes)]

    titles = {"postgres": "Postgres", "sqlite": "SQLite", "memory": "memory"}
    settings = f"`bootstrap(…)`, {at_once} sagas at once in each process"
    return Contender(
        f"embedded-{storage}-{processes}-{at_once}",
        f"Watership, embedded, {titles[storage]}",
        settings,
        processes,
        programs,
    )


def _embedded(seconds: float, at_once: int, *options: str, group: str = "process") -> Program:
    command = (sys.executable, "-m", "tests.benchmarks.ours.embedded", "--at-once", str(at_once))
    return Program(group, (*command, "--seconds", str(seconds), *options), is_driver=True)


# --- the peers


def _peer(module: str, seconds: float, at_once: int, *options: str, group: str = "process", **env: str) -> Program:
    command = (str(PEERS_PYTHON), "-m", f"tests.benchmarks.peers.{module}", "--at-once", str(at_once))
    return Program(group, (*command, "--seconds", str(seconds), *options), env, is_driver=True)


def python_cqrs(storage: str, processes: int = 1, at_once: int = 16) -> Contender:
    """python-cqrs in processes of its own."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        options = ("--database-url", ground.database_url) if storage == "postgres" else ()
        return [_peer("python_cqrs", seconds, at_once, *options) for _ in range(processes)]

    where = "on Postgres" if storage == "postgres" else "in memory"
    pool = f", a pool of {at_once} connections" if storage == "postgres" else ""
    settings = f"its logger at WARNING{pool}, {at_once} sagas at once in each process"
    name = f"cqrs-{storage}-{processes}-{at_once}"
    return Contender(name, f"python-cqrs, {where}", settings, processes, programs, (PEERS_PYTHON,))


def dbos(processes: int = 1, at_once: int = 16) -> Contender:
    """DBOS in processes of its own."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        url = ground.database_url.replace("+asyncpg", "+psycopg")
        return [_peer("dbos_workflow", seconds, at_once, "--database-url", url) for _ in range(processes)]

    settings = (
        f"asynchronous workflow and steps, log level WARNING, a pool of {at_once}, {at_once} workflows at once each"
    )
    return Contender(f"dbos-{processes}-{at_once}", "DBOS, on Postgres", settings, processes, programs, (PEERS_PYTHON,))


def restate(processes: int = 1, at_once: int = 32) -> Contender:
    """A Restate server of its own and services on hypercorn."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        admin, ingress, node, *ports = _free_ports(3 + processes)
        server = (
            str(RESTATE), "--no-logo", "--base-dir", str(ground.folder / "restate"), "--bind-ip", "127.0.0.1",
            "--bind-port", str(node), "--node-name", "bench",
        )  # fmt: skip
        environment = {
            "RESTATE_ADMIN__BIND_PORT": str(admin),
            "RESTATE_INGRESS__BIND_PORT": str(ingress),
            "RESTATE_LOG_FILTER": "warn",
            "RESTATE_LISTEN_MODE": "tcp",
            "DO_NOT_TRACK": "1",
            "RESTATE_DISABLE_TELEMETRY": "true",
        }
        found = [Program("server", server, environment)]
        for number, port in enumerate(ports):
            app = "tests.benchmarks.peers.restate_service:app"
            serve = (str(PEERS / "bin" / "hypercorn"), "--bind", f"127.0.0.1:{port}", "--log-level", "WARNING", app)
            found.append(Program("service", serve, {"NUMBER": str(number)}))
        options = ("--admin-url", f"http://127.0.0.1:{admin}", "--ingress-url", f"http://127.0.0.1:{ingress}")
        urls = ",".join(f"http://127.0.0.1:{port}" for port in ports)
        return [*found, _peer("restate_client", seconds, at_once, *options, "--service-urls", urls, group="client")]

    settings = (
        f"the npm package's server, {processes} hypercorn process{'es' * (processes > 1)}, {at_once} calls at once"
    )
    return Contender(
        f"restate-{processes}-{at_once}", "Restate", settings, processes + 2, programs, (PEERS_PYTHON, RESTATE)
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def relay(at_once: int = 500) -> Contender:
    """Bare aio-pika: the messages alone."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        options = ("--broker-url", ground.broker_url, "--prefix", f"{ground.namespace}.relay")
        backs = [
            dataclasses.replace(_peer("relay", 0, 1, *options, "--role", role, group=role), is_driver=False)
            for role in ("relay", "worker")
        ]
        return [*backs, _peer("relay", seconds, at_once, *options, "--role", "client", group="client")]

    settings = f"no state, no database, no decisions: quorum queues, persistent, confirms; {at_once} on their way"
    return Contender("relay", "Bare aio-pika relay", settings, 3, programs, (PEERS_PYTHON,))


def celery(processes: int = 2, at_once: int = 500, *, is_safe: bool = True) -> Contender:
    """A Celery chain: each worker is a process of one task at a time, which is the quickest for tasks that do nothing."""

    def programs(ground: Ground, seconds: float) -> list[Program]:
        environment = {
            "BROKER_URL": ground.broker_url,
            "QUEUE": f"{ground.namespace}.celery",
            "ENDS": str(ground.folder / "ends"),
            "SAFE": "yes" if is_safe else "no",
        }
        worker = (
            str(PEERS / "bin" / "celery"), "-A", "tests.benchmarks.peers.celery_chain:app", "worker", "--pool", "solo",
            "--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat",
        )  # fmt: skip
        workers = [Program("worker", (*worker, "-n", f"bench{number}"), environment) for number in range(processes)]
        return [*workers, _peer("celery_chain", seconds, at_once, group="client", **environment)]

    promise = (
        "quorum queue, confirms, late acknowledgement: no task is lost"
        if is_safe
        else "classic queue, no confirms, early acknowledgement, as by default: a worker that dies loses tasks"
    )
    settings = f"{processes} workers with the solo pool, no results; {promise}"
    name = f"celery-{processes}" + ("" if is_safe else "-unsafe")
    return Contender(name, "Celery, a chain of three tasks", settings, processes + 1, programs, (PEERS_PYTHON,))
