"""An engine on a bus and a database in memory, with its queues and its plan in place: for what it sends, and does not."""

from __future__ import annotations

from watership.bus.memory import MemoryBus
from watership.bus.topology import Topology
from watership.machine.plan import Plan
from watership.messages import RegisterWorker
from watership.testing.memory_database import MemoryDatabase
from watership.testing.memory_plans import MemoryBacking
from watership_orchestrator.engine import Engine

TOPOLOGY = Topology("test")


async def engine_on(bus: MemoryBus, plan: Plan, database: MemoryDatabase | None = None) -> Engine:
    """The engine. The bus is opened; a database that is not given has a clock that stands still."""
    await bus.open()
    queues = [TOPOLOGY.step_queue(step.queue) for step in plan.by_name.values()]
    await bus.declare(TOPOLOGY.exchanges(), [*TOPOLOGY.orchestrator_queues(), *queues])
    backing = MemoryBacking(database or MemoryDatabase(lambda: 1_000_000), "test")
    await backing.plans.register(RegisterWorker(worker="w", plans=(plan.to_data(),)))
    return Engine(backing.store, bus, backing.plans, TOPOLOGY)
