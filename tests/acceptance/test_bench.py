"""`watership bench` on an installation: figures, a sentence, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from watership import bootstrap
from watership.benching.saga import BenchContext, sagas
from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Topology
from watership.saga.storage.schema import Base

from tests.support.command import Command
from tests.support.endpoints import run


async def rows(url: str) -> dict[str, int]:
    """How many rows there are in each of our tables."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        counts = {
            table.name: (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
            for table in Base.metadata.sorted_tables
        }
    await engine.dispose()
    return {name: count for name, count in counts.items() if count}


async def run_one(url: str) -> None:
    async with bootstrap(sagas_mapper=sagas, database_url=url) as mediator:
        await mediator.run(BenchContext())


def test_sagas_in_this_process_are_measured_and_removed(saga_database: str, tmp_path: Path) -> None:
    run(run_one(saga_database))  # of another namespace: it must stay as it is
    before = run(rows(saga_database))
    command = Command(tmp_path, {"WATERSHIP_DATABASE_URL": saga_database})
    found: Any = json.loads(command.good("bench", "--seconds", "0.5", "--at-once", "4", "--json").out)
    assert found["broker"] is None
    assert found["database"]["commit_p50_ms"] > 0
    assert found["sagas"]["sagas_per_s"] > 0
    assert found["limit"]
    assert run(rows(saga_database)) == before


@pytest.mark.servers
def test_services_are_measured_on_the_users_servers(broker_url: str, database_url: str, tmp_path: Path) -> None:
    command = Command(tmp_path, {"WATERSHIP_BROKER_URL": broker_url, "WATERSHIP_DATABASE_URL": database_url})
    ran = command.good("bench", "--seconds", "1", "--at-once", "20")
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["messages,", "commits", "sagas"]
    assert "orchestrator" in ran.out
    assert lines[-1].endswith(".")
    assert run(rows(database_url)) == {}
    namespace = ran.err.split("in the namespace ")[1].strip()
    topology = Topology(namespace)
    assert (
        len(run(missing(broker_url, topology))) == len(topology.exchanges()) + len(topology.orchestrator_queues()) + 4
    )


async def missing(broker_url: str, topology: Topology) -> list[str]:
    bus = RabbitBus(broker_url)
    await bus.open()
    steps = [topology.step_queue(name) for name in ("bench", "Reserve", "Charge", "Ship")]
    found = await bus.missing(topology.exchanges(), [*topology.orchestrator_queues(), *steps])
    await bus.close()
    return found


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    assert "nowhere to measure" in Command(tmp_path).bad("bench")
    only_a_broker = Command(tmp_path, {"WATERSHIP_BROKER_URL": "amqp://guest:guest@127.0.0.1:1/"})
    assert "no database" in only_a_broker.bad("bench")
    no_tables = Command(tmp_path, {"WATERSHIP_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/empty.db"})
    (tmp_path / "empty.db").touch()
    assert "watership db upgrade" in no_tables.bad("bench")
