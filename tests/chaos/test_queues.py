"""What a queue does to what waits in it, with the limits that we ship: cut links cost nothing, a full one stops no other."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import uuid
from collections.abc import Iterator

import pika
import pika.exceptions
import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from watership import Response, Saga, SagaContext, SagaMap, SagaStepHandler, Wait
from watership.bus.protocol import Fate, Message
from watership.bus.rabbit import RabbitBus
from watership.bus.rabbit import bus as bus_module
from watership.bus.topology import Topology
from watership.messages import Signal
from watership_worker import Worker

from tests.chaos.ground import POLICIES, PrivateGround
from tests.support.docker_servers import IMAGES, has_engine
from tests.support.endpoints import RABBITMQ, wait_until_answering
from tests.support.proxy import Proxy
from tests.support.running import Running, running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]

CUTS = 100
FULL = '{"max-length": 1, "overflow": "reject-publish", "delivery-limit": 1000000000}'


@dataclasses.dataclass
class Parcel(SagaContext):
    """``trail``: the steps that acted."""

    trail: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Letter(Parcel):
    """Of the saga that never needs the second queue."""


@dataclasses.dataclass
class SignedParcel(Parcel):
    """Of the saga that waits for a signal."""

    signature: str = ""


class Weigh(SagaStepHandler[Parcel, Response]):
    async def act(self, context: Parcel) -> None:
        context.trail.append("Weigh")


class Send(SagaStepHandler[Parcel, Response]):
    async def act(self, context: Parcel) -> None:
        context.trail.append("Send")


class ParcelSaga(Saga[Parcel]):
    steps = [Weigh, Send]


class LetterSaga(Saga[Letter]):
    steps = [Weigh]


class SignedSaga(Saga[SignedParcel]):
    steps = [Weigh, Wait("signature", into="signature", timeout_s=600.0)]


def sagas(mapper: SagaMap) -> None:
    mapper.bind(Parcel, ParcelSaga)
    mapper.bind(SignedParcel, SignedSaga)
    mapper.bind(Letter, LetterSaga)


async def test_a_full_step_queue_does_not_stop_replies(private: PrivateGround) -> None:
    await private.broker.control("set_policy", "--priority", "20", "full", "step[.]Send$", FULL)
    async with running(private.broker_url, private.database_url, "full") as system:
        await system.orchestrator()
        weighing = await system.worker(Worker(sagas_mapper=sagas, only=[Weigh]))
        await system.bus.declare([], [weighing._topology.step_queue("Send")])  # and nobody takes from it
        parcels: list[uuid.UUID] = []
        for _ in range(2):  # the broker refuses what comes once it has seen that the queue is full
            parcels += [await system.start("ParcelSaga", {}) for _ in range(60)]
            for parcel in parcels:  # every reply of the first step is taken
                await system.until(parcel, step="Send")
        await system.until(await system.start("LetterSaga", {}), status="COMPLETED")  # and others go to their end
        ((refused,),) = await system.sql("SELECT count(*) FROM watership_saga WHERE owed_reason LIKE 'refused%'")
        assert refused >= len(parcels) / 2, "the queue was not full"
        await system.worker(Worker(sagas_mapper=sagas, only=[Send]))
        await private.broker.control("clear_policy", "full")
        await look_until_completed(system, parcels)


async def test_a_queue_whose_limit_was_lifted_takes_messages_again(
    private: PrivateGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may forget to say so to a channel that it refused: not each time, so this is tried with some queues."""
    monkeypatch.setattr(bus_module, "REPLACE_EVERY_S", 0.5)
    count = itertools.count()
    async with contextlib.AsyncExitStack() as stack:
        buses = [RabbitBus(private.broker_url) for _ in range(3)]
        for bus in buses:
            await bus.open()
            stack.push_async_callback(bus.close)

        async def fates(bus: RabbitBus, queue: str) -> set[Fate]:
            messages = [Message("", queue, b"{}", "t", f"m{next(count)}") for _ in range(20)]
            return set(await bus.publish(messages))

        for number in range(4):
            topology = Topology(f"lifted{number}")
            queue = topology.step_queue("Send")
            await buses[0].declare(topology.exchanges(), [queue])
            await private.broker.control("set_policy", "--priority", "20", "full", "step[.]Send$", FULL)
            async with asyncio.timeout(30):
                while [await fates(bus, queue.name) for bus in buses] != [{Fate.REFUSED}] * len(buses):
                    await asyncio.sleep(0.1)
            await private.broker.control("clear_policy", "full")
            async with asyncio.timeout(30):
                while [await fates(bus, queue.name) for bus in buses] != [{Fate.CONFIRMED}] * len(buses):
                    await asyncio.sleep(0.1)


async def look_until_completed(system: Running, sagas: list[uuid.UUID]) -> None:
    """A reaper looks until all have ended: what was refused is owed, and looked at again."""
    reaper = await system.reaper()
    query = "SELECT count(*) FROM watership_saga WHERE status = 'COMPLETED' AND NOT owed AND saga_id = ANY(:ids)"
    async with asyncio.timeout(60):
        while (await system.sql(query, ids=sagas))[0][0] < len(sagas):
            await reaper.run_once()
            await asyncio.sleep(0.1)


@contextlib.contextmanager
def rabbitmq_4() -> Iterator[str]:
    if not has_engine(IMAGES[RABBITMQ]):
        pytest.skip(f"no Docker engine with the image {IMAGES[RABBITMQ]} here")
    testcontainers_config.ryuk_disabled = True
    container = DockerContainer(IMAGES[RABBITMQ]).with_exposed_ports(5672)
    container = container.with_volume_mapping(str(POLICIES), "/policies.json", "ro")
    with container:
        url = f"amqp://guest:guest@{container.get_container_host_ip()}:{container.get_exposed_port(5672)}/"
        wait_until_answering(RABBITMQ, url, timeout_s=90, ended=lambda: False)
        done = container.exec(["rabbitmqctl", "import_definitions", "/policies.json"])
        assert done.exit_code == 0, done.output
        yield url


async def test_a_start_a_reply_and_a_signal_survive_a_hundred_cuts(private: PrivateGround, database_url: str) -> None:
    await survive_cuts(private.broker_url, database_url)


async def test_a_start_a_reply_and_a_signal_survive_a_hundred_cuts_on_rabbitmq_4(database_url: str) -> None:
    """It counts deliveries, and has a limit of 20 of its own."""
    with rabbitmq_4() as url:
        await survive_cuts(url, database_url)


async def survive_cuts(url: str, database_url: str, namespace: str = "cuts") -> None:
    """On a broker with our limits, from a start to its saga's end."""
    async with running(url, database_url, namespace) as system:
        await system.orchestrator()  # it makes the queues, and stops
        await system.worker(Worker(sagas_mapper=sagas))
        signed_id = await system.start("SignedSaga", {})
        waiting = await system.until(signed_id, step="signature")
    async with running(url, database_url, namespace) as system:
        saga_id = await system.start("ParcelSaga", {})
        await system.send("control", Signal(saga_id=signed_id, name="signature", signal_id="s-1", data="Ann"))
        await cut_in_the_hand(url, f"{namespace}.start", "start-saga")
        await cut_in_the_hand(url, f"{namespace}.control", "signal")
        await system.orchestrator()
        await system.until(saga_id, step="Weigh")
        signed = await system.until(signed_id, status="COMPLETED")
        assert (json.loads(signed["context"])["signature"], signed["seq"]) == ("Ann", waiting["seq"] + 1), (
            "it came once"
        )
    async with running(url, database_url, namespace) as system:
        await system.worker(Worker(sagas_mapper=sagas, only=[Weigh]))  # it replies, and nobody is there to hear it
        await cut_in_the_hand(url, f"{namespace}.replies", "step-reply")
        await system.orchestrator()
        await system.worker(Worker(sagas_mapper=sagas, only=[Send]))
        await system.until(saga_id, status="COMPLETED")
        log = await system.sql("SELECT changes FROM watership_log WHERE saga_id = :id", id=saga_id)
        assert len(log) == 3, "neither came twice"


async def cut_in_the_hand(url: str, queue: str, kind: str) -> None:
    """The first message of a queue is delivered again and again, and each time the link is cut before it is settled."""
    async with Proxy.for_url(url) as proxy:
        for _ in range(CUTS):
            connection = await asyncio.to_thread(pika.BlockingConnection, pika.URLParameters(proxy.url_for(url)))
            properties = await asyncio.to_thread(_take, connection, queue)
            proxy.cut()
            with contextlib.suppress(pika.exceptions.AMQPError):  # it is cut; but its socket must be closed
                await asyncio.to_thread(connection.close)
    assert (properties.type, properties.headers["x-delivery-count"] >= CUTS - 1) == (kind, True), properties


def _take(connection: pika.BlockingConnection, queue: str) -> pika.BasicProperties:
    """Takes a message and keeps it; its properties."""
    for method, properties, _ in connection.channel().consume(queue, inactivity_timeout=20):
        assert method is not None, f"nothing came from {queue}: the message is lost"
        return properties
    raise AssertionError
