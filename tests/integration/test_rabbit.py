"""The bus on a real RabbitMQ when the link, the broker or its objects fail. What both buses keep is in the contract."""

from __future__ import annotations

import asyncio
import logging
import socket
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable

import aiormq
import pytest

from watership.bus.protocol import Delivery, Fate, Message
from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Queue, Topology
from watership.errors import BrokerUnavailable, ConfigurationError

from tests.support.buses import PATIENCE_S, Inbox, replaced
from tests.support.proxy import Proxy

pytestmark = pytest.mark.servers

Opened = Callable[..., Awaitable[RabbitBus]]


@pytest.fixture
def topology(namespace: str, step_queues: set[str]) -> Topology:
    step_queues.update({"pay", "small"})
    return Topology(namespace)


@pytest.fixture
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.for_url(broker_url) as made:
        yield made


@pytest.fixture
async def opened(proxy: Proxy, broker_url: str) -> AsyncIterator[Opened]:
    """Opens a bus through the proxy; it is closed after the test."""
    buses: list[RabbitBus] = []

    async def open_bus(**options: float) -> RabbitBus:
        bus = RabbitBus(proxy.url_for(broker_url), **options)  # type: ignore[arg-type]
        buses.append(bus)
        await bus.open()
        return bus

    yield open_bus
    proxy.heal()
    for bus in buses:
        await bus.close()


def message(topology: Topology, message_id: str = "id", key: str = "step.pay") -> Message:
    return Message(topology.exchange, key, b"{}", "test", message_id)


async def lay(bus: RabbitBus, topology: Topology) -> Queue:
    queue = topology.step_queue("pay")
    await bus.declare(topology.exchanges(), [*topology.orchestrator_queues(), queue])
    return queue


async def test_a_cut_leaves_what_is_in_flight_unconfirmed(opened: Opened, proxy: Proxy, topology: Topology) -> None:
    bus = await opened()
    await lay(bus, topology)
    generation = bus.generation
    proxy.blackhole()
    publishing = asyncio.create_task(bus.publish([message(topology, f"id-{number}") for number in range(3)]))
    await proxy.is_holding.wait()
    proxy.refuse()
    async with asyncio.timeout(PATIENCE_S):
        assert await publishing == [Fate.UNCONFIRMED] * 3
    proxy.heal()
    await replaced(bus, generation)
    assert await bus.publish([message(topology)]) == [Fate.CONFIRMED]


async def test_a_publish_never_waits_for_a_reconnect(opened: Opened, proxy: Proxy, topology: Topology) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    proxy.refuse()
    assert await bus.publish([message(topology)]) == [Fate.UNCONFIRMED]  # this one finds the link broken
    async with asyncio.timeout(1):
        for _ in range(20):
            assert await bus.publish([message(topology)]) == [Fate.UNCONFIRMED]
    with pytest.raises(BrokerUnavailable, match=r"down|lost|answer"):
        await bus.consume(queue.name, prefetch=1, on_delivery=Inbox())
    generation = bus.generation
    proxy.heal()
    await replaced(bus, generation)
    assert await bus.publish([message(topology)]) == [Fate.CONFIRMED]


async def test_consumers_come_back_and_old_acks_are_passed_over(
    opened: Opened, proxy: Proxy, topology: Topology
) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    await bus.publish([message(topology, f"id-{number}") for number in range(3)])
    old = await inbox.take(3)
    generation = bus.generation
    proxy.refuse()
    await bus.publish([message(topology, "lost")])
    await bus.ack(old)
    proxy.heal()
    await replaced(bus, generation)
    again = await inbox.take(3)
    assert [(delivery.message_id, delivery.redelivered) for delivery in again] == [
        ("id-0", True),
        ("id-1", True),
        ("id-2", True),
    ]
    await bus.ack(old)
    await bus.ack(again)
    assert await bus.publish([message(topology, "fresh")]) == [Fate.CONFIRMED]
    [fresh] = await inbox.take(1)
    assert (fresh.message_id, fresh.redelivered) == ("fresh", False)


async def test_work_in_hand_survives_the_link(opened: Opened, proxy: Proxy, topology: Topology) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    started, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(_: Delivery) -> None:
        started.set()
        await may_end.wait()
        ended.set()

    await bus.consume(queue.name, prefetch=1, on_delivery=work)
    await bus.publish([message(topology)])
    await started.wait()
    generation = bus.generation
    proxy.cut()
    await replaced(bus, generation)
    may_end.set()
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()


async def test_a_stuck_link_is_a_lost_link_and_nobody_is_cancelled(
    opened: Opened, proxy: Proxy, topology: Topology
) -> None:
    """The library ends the calls of a stuck link with a CancelledError, after three heartbeats and a bit."""
    bus = await opened(heartbeat_s=1, publish_timeout_s=60, connect_timeout_s=60)
    await lay(bus, topology)
    generation = bus.generation
    proxy.blackhole()
    publishing = asyncio.create_task(bus.publish([message(topology)]))
    declaring = asyncio.create_task(bus.declare([], [topology.step_queue("pay")]))
    async with asyncio.timeout(PATIENCE_S):
        assert await publishing == [Fate.UNCONFIRMED]
        with pytest.raises(BrokerUnavailable):
            await declaring
    proxy.refuse()
    proxy.heal()
    await replaced(bus, generation)
    assert await bus.publish([message(topology)]) == [Fate.CONFIRMED]


async def test_a_link_that_has_never_a_pause_is_not_called_stuck(
    opened: Opened, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ sends no heartbeats then, and what it sends the library does not see; it waits for six seconds."""
    bus = await opened(heartbeat_s=1)
    queue, inbox = await lay(bus, topology), Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    until_s = asyncio.get_running_loop().time() + 8
    while asyncio.get_running_loop().time() < until_s:
        assert await bus.publish([message(topology)]) == [Fate.CONFIRMED]
        [arrived] = await inbox.take(1)
        assert not arrived.redelivered
        await bus.ack([arrived])
        await asyncio.sleep(0.02)
    assert "lost" not in caplog.text


async def test_a_late_confirm_does_not_confuse_the_next_publish(
    opened: Opened, proxy: Proxy, topology: Topology
) -> None:
    bus = await opened(publish_timeout_s=0.3)
    await lay(bus, topology)
    generation = bus.generation
    nobody = message(topology, "same", "nobody")
    proxy.blackhole()
    assert await bus.publish([nobody, message(topology, "other")]) == [Fate.UNCONFIRMED] * 2
    assert await bus.publish([message(topology, "same")]) == [Fate.UNCONFIRMED]
    proxy.heal()
    # The return of the first is still to come: it must not be taken for the fate of the second.
    async with asyncio.timeout(PATIENCE_S):
        while (fates := await bus.publish([message(topology, "same")])) == [Fate.UNCONFIRMED]:
            await bus.ready()
    assert fates == [Fate.CONFIRMED]
    assert await bus.publish([nobody]) == [Fate.RETURNED]
    assert bus.generation == generation


async def test_closing_on_a_black_hole_ends(opened: Opened, proxy: Proxy, topology: Topology) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    await bus.consume(queue.name, prefetch=1, on_delivery=Inbox())
    proxy.blackhole()
    async with asyncio.timeout(PATIENCE_S):
        await bus.close()


async def test_a_missing_exchange_costs_only_what_is_in_flight(
    opened: Opened, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=1000, on_delivery=inbox)
    generation = bus.generation
    bad = Message("not-declared", "x", b"", "test", "bad")
    good = [[message(topology, f"{batch}/{number}") for number in range(20)] for batch in range(10)]
    fates = await asyncio.gather(*(bus.publish(batch) for batch in [*good[:5], [bad], *good[5:]]))
    assert fates.pop(5) == [Fate.UNCONFIRMED]
    assert {fate for batch in fates for fate in batch} <= {Fate.CONFIRMED, Fate.UNCONFIRMED}
    await replaced(bus, generation)
    assert bus.generation == generation + 1
    assert "no exchange 'not-declared'" in caplog.text
    confirmed = sum(fate is Fate.CONFIRMED for batch in fates for fate in batch)
    await inbox.take(confirmed)
    assert await bus.publish([message(topology, "after")]) == [Fate.CONFIRMED]


async def test_a_closed_channel_does_not_cost_the_connection(
    opened: Opened, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    """A frame written on a channel that the broker has closed would."""
    bus = await opened()
    await lay(bus, topology)

    async def publish_until_replaced(name: str, generation: int) -> None:
        number = 0
        while bus.generation == generation:
            number += 1
            await bus.publish([message(topology, f"{name}/{number}")])

    for turn in range(3):
        busy = [publish_until_replaced(f"{turn}/{task}", bus.generation) for task in range(30)]
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*busy, bus.publish([Message("not-declared", "x", b"", "test", f"bad/{turn}")]))
    assert "link to RabbitMQ" not in caplog.text  # neither of them was lost


async def test_what_vanished_while_the_link_was_down_is_declared_again(
    opened: Opened, proxy: Proxy, broker_url: str, topology: Topology
) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    generation = bus.generation
    proxy.refuse()
    async with aiormq.connect(broker_url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(queue.name)
        await channel.exchange_delete(topology.exchange)
    proxy.heal()
    await replaced(bus, generation)
    assert await bus.missing(topology.exchanges(), [queue]) == []
    assert await bus.publish([message(topology)]) == [Fate.CONFIRMED]


async def test_a_full_queue_refuses(opened: Opened, broker_url: str, topology: Topology) -> None:
    bus = await opened()
    name = topology.queue_name("step.small")
    limits = {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "reject-publish"}
    async with aiormq.connect(broker_url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(name, durable=True, arguments=limits)  # type: ignore[arg-type]
    messages = [Message("", name, b"", "test", f"id-{number}") for number in range(3)]
    assert await bus.publish(messages) == [Fate.CONFIRMED, Fate.REFUSED, Fate.REFUSED]


async def test_a_deleted_queue_is_declared_and_consumed_again(
    opened: Opened, broker_url: str, topology: Topology
) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    async with aiormq.connect(broker_url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(queue.name)
    async with asyncio.timeout(PATIENCE_S):
        while await bus.publish([message(topology)]) != [Fate.CONFIRMED]:  # returned, until the queue is back
            await bus.ready()
    await inbox.take(1)


async def test_the_watchdog_restarts_a_consumer_that_stopped_in_silence(
    opened: Opened, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await opened()
    queue = await lay(bus, topology)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    await bus.watch_once()
    assert bus.restarts == 0
    [subscription] = bus._subscriptions
    assert subscription.intake is not None
    await subscription.intake._channel.basic_cancel(subscription.intake._tag)  # behind the bus's back
    await bus.publish([message(topology)])
    await bus.watch_once()
    await inbox.take(1)
    assert bus.restarts == 1
    assert "had stopped in silence" in caplog.text


async def test_the_watchdog_looks_by_itself(opened: Opened, topology: Topology) -> None:
    bus = await opened(watch_interval_s=0.05)
    queue = await lay(bus, topology)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    [subscription] = bus._subscriptions
    assert subscription.intake is not None
    await subscription.intake._channel.basic_cancel(subscription.intake._tag)
    await bus.publish([message(topology)])
    await inbox.take(1)


def with_login(url: str, user: str, password: str) -> str:
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit(parts._replace(netloc=f"{user}:{password}@{host}"))


async def test_a_wrong_password_is_told_without_it(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bus = RabbitBus(with_login(broker_url, "guest", "s3cret%2Fword"))
    with pytest.raises(BrokerUnavailable, match="refuses user 'guest': wrong user or password") as raised:
        await bus.open()
    for text in (str(raised.value), repr(raised.value), caplog.text):
        assert "s3cret" not in text


async def test_a_missing_virtual_host_is_told(broker_url: str) -> None:
    parts = urllib.parse.urlsplit(broker_url)
    with pytest.raises(BrokerUnavailable, match="virtual host 'no/where' is not there"):
        await RabbitBus(urllib.parse.urlunsplit(parts._replace(path="/no%2Fwhere"))).open()


async def test_a_port_where_nobody_listens_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match=rf"127\.0\.0\.1:{port} cannot be reached: .*[Cc]onnect"):
            await RabbitBus(f"amqp://guest:s3cret@127.0.0.1:{port}/").open()


async def test_a_host_that_does_not_answer_is_told(proxy: Proxy, broker_url: str) -> None:
    proxy.blackhole()
    with pytest.raises(BrokerUnavailable, match=r"did not answer within 0\.2 s"):
        await RabbitBus(proxy.url_for(broker_url), connect_timeout_s=0.2).open()


async def test_a_connection_that_breaks_off_is_told(proxy: Proxy, broker_url: str) -> None:
    proxy.refuse()
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await RabbitBus(proxy.url_for(broker_url)).open()


async def test_an_open_that_failed_can_be_tried_again(proxy: Proxy, broker_url: str, topology: Topology) -> None:
    bus = RabbitBus(proxy.url_for(broker_url))
    proxy.refuse()
    with pytest.raises(BrokerUnavailable):
        await bus.open()
    proxy.heal()
    await bus.open()
    await lay(bus, topology)
    generation = bus.generation
    proxy.cut()
    await replaced(bus, generation)
    assert await bus.publish([message(topology)]) == [Fate.CONFIRMED]
    await bus.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("amqp://u:s3cret@host/?cafile=ca.pem", "plain text"),
        ("amqps://u:s3cret@host/?no_verify_ssl=1", "no_verify_ssl"),
        ("http://u:s3cret@host/", "must look like"),
        ("amqp://u:s3cret@host:port/", "cannot be read"),
    ],
)
def test_an_unsafe_or_unreadable_url_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        RabbitBus(url)
    assert "s3cret" not in str(raised.value)
