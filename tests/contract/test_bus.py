"""What every bus keeps: one suite, over the memory bus and over RabbitMQ."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Bus, Delivery, Fate, Message
from watership.bus.topology import Exchange, ExchangeKind, Topology
from watership.errors import BrokerUnavailable, ConfigurationError

from tests.support.buses import PATIENCE_S, House, Inbox, memory_house, rabbit_house, replaced


@pytest.fixture(params=["memory", pytest.param("rabbit", marks=pytest.mark.servers)])
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    if request.param == "memory":
        async with memory_house() as made:
            yield made
    else:
        request.getfixturevalue("step_queues").update({"pay", "ship"})
        url, namespace = (request.getfixturevalue(name) for name in ("broker_url", "namespace"))
        async with rabbit_house(url, namespace) as made:
            yield made


@pytest.fixture
async def bus(house: House) -> AsyncIterator[Bus]:
    made: Bus = house.new_bus()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def other(house: House) -> AsyncIterator[Bus]:
    made: Bus = house.new_bus()
    await made.open()
    yield made
    await made.close()


async def test_an_unopened_bus_says_so(house: House) -> None:
    bus: Bus = house.new_bus()
    with pytest.raises(RuntimeError, match="not open"):
        await bus.publish([house.message("step.pay")])
    with pytest.raises(RuntimeError, match="not open"):
        await bus.consume("queue", prefetch=1, on_delivery=Inbox())
    await bus.close()  # nothing to close, nothing raised


async def test_a_closed_bus_publishes_nothing_and_passes_acks_over(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    await bus.publish([house.message("step.pay")])
    [delivery] = await inbox.take(1)
    await bus.close()
    await bus.close()
    assert await bus.publish([house.message("step.pay")]) == [Fate.UNCONFIRMED]
    await bus.ack([delivery])
    await bus.reject(delivery, requeue=False)
    await bus.ready()
    with pytest.raises(BrokerUnavailable):
        await bus.consume(queue.name, prefetch=1, on_delivery=inbox)


async def test_everything_of_a_message_arrives(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    message = Message(
        exchange=house.topology.exchange,
        routing_key="step.pay",
        body=b"\x00 {}",
        type="step_command",
        message_id="saga/pay/1",
        correlation_id="saga",
        reply_to="someone",
        expiration_ms=60_000,
        headers={"traceparent": "00-1", "attempt": 3},
    )
    assert await bus.publish([message]) == [Fate.CONFIRMED]
    [delivery] = await inbox.take(1)
    assert (delivery.queue, delivery.body, delivery.type) == (queue.name, b"\x00 {}", "step_command")
    assert (delivery.message_id, delivery.correlation_id, delivery.reply_to) == ("saga/pay/1", "saga", "someone")
    assert delivery.headers == {"traceparent": "00-1", "attempt": 3}
    assert delivery.redelivered is False


async def test_an_empty_body_and_one_of_many_frames_arrive(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    bodies = [b"", b"x" * 700_000, b"y" * 700_000]
    messages = [dataclasses.replace(house.message("step.pay"), body=body) for body in bodies]
    assert await bus.publish(messages) == [Fate.CONFIRMED] * 3
    assert [delivery.body for delivery in await inbox.take(3)] == bodies


async def test_messages_go_where_their_key_is_bound(house: House, bus: Bus) -> None:
    await house.lay(bus)
    start, replies, direct = Inbox(), Inbox(), Inbox()
    await bus.consume(house.topology.queue_name("start"), prefetch=10, on_delivery=start)
    await bus.consume(house.topology.queue_name("replies"), prefetch=10, on_delivery=replies)
    await bus.consume(house.topology.queue_name("admin"), prefetch=10, on_delivery=direct)
    by_queue_name = house.message(house.topology.queue_name("admin"), exchange="")
    sent = [house.message("start"), house.message("replies"), by_queue_name]
    assert await bus.publish(sent) == [Fate.CONFIRMED] * 3
    for inbox, message in zip((start, replies, direct), sent, strict=True):
        [delivery] = await inbox.take(1)
        assert delivery.message_id == message.message_id
        assert inbox.is_empty


async def test_events_go_by_topic(house: House, bus: Bus) -> None:
    await house.lay(bus)
    events = house.topology.events_exchange
    queue = dataclasses.replace(house.topology.step_queue("ship"), exchange=events, routing_key="saga.order.*")
    await bus.declare([], [queue, dataclasses.replace(queue, routing_key="audit.#")])
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    keys = ["saga.order.paid", "saga.order.a.b", "saga.trip.paid", "audit", "audit.x.y"]
    messages = [house.message(key, exchange=events, mandatory=False) for key in keys]
    assert await bus.publish(messages) == [Fate.CONFIRMED] * 5  # nobody's event is dropped, and that is fine
    arrived = [delivery.message_id for delivery in await inbox.take(3)]
    assert arrived == [messages[0].message_id, messages[3].message_id, messages[4].message_id]


async def test_a_batch_has_a_fate_for_each_message(house: House, bus: Bus) -> None:
    await house.lay(bus)
    nobody = "nobody.listens"
    batch = [house.message("step.pay"), house.message(nobody), house.message("step.pay")]
    batch += [house.message(nobody, mandatory=False), house.message(nobody)]
    assert await bus.publish(batch) == [
        Fate.CONFIRMED,
        Fate.RETURNED,
        Fate.CONFIRMED,
        Fate.CONFIRMED,
        Fate.RETURNED,
    ]
    assert await bus.publish([]) == []


async def test_the_same_id_twice_in_a_batch_keeps_its_fates_apart(house: House, bus: Bus) -> None:
    await house.lay(bus)
    keys = ["nobody", "step.pay", "nobody", "step.pay"]
    batch = [dataclasses.replace(house.message(key), message_id="same") for key in keys]
    expected = [Fate.RETURNED, Fate.CONFIRMED, Fate.RETURNED, Fate.CONFIRMED]
    assert await bus.publish(batch) == expected
    fates = await asyncio.gather(*(bus.publish([message]) for message in batch))
    assert [fate for [fate] in fates] == expected


async def test_a_message_that_cannot_be_written_costs_only_itself(house: House, bus: Bus) -> None:
    await house.lay(bus)
    nameless = dataclasses.replace(house.message("step.pay"), message_id="")
    batch = [house.message("step.pay"), nameless, house.message("step.pay")]
    assert await bus.publish(batch) == [Fate.CONFIRMED, Fate.REFUSED, Fate.CONFIRMED]


async def test_many_batches_at_once_are_all_confirmed(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=100, on_delivery=inbox)
    batches = [[house.message("step.pay") for _ in range(50)] for _ in range(10)]
    fates = await asyncio.gather(*(bus.publish(batch) for batch in batches))
    assert fates == [[Fate.CONFIRMED] * 50] * 10
    arrived = set()
    for _ in range(500):
        [delivery] = await inbox.take(1)
        arrived.add(delivery.message_id)
        await bus.ack([delivery])
    assert len(arrived) == 500


async def test_a_missing_exchange_costs_the_channel_and_it_comes_back(house: House, bus: Bus) -> None:
    await house.lay(bus)
    generation = bus.generation
    assert await bus.publish([house.message("x", exchange="not-declared")]) == [Fate.UNCONFIRMED]
    await replaced(bus, generation)
    assert bus.generation == generation + 1
    assert await bus.publish([house.message("step.pay")]) == [Fate.CONFIRMED]


async def test_a_queue_keeps_its_order(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    messages = [house.message("step.pay") for _ in range(300)]
    await bus.publish(messages[:200])
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=300, on_delivery=inbox)
    await bus.publish(messages[200:])
    assert [d.message_id for d in await inbox.take(300)] == [m.message_id for m in messages]


async def test_no_more_than_the_prefetch_is_handed_over(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    inbox = Inbox()
    await bus.consume(queue.name, prefetch=2, on_delivery=inbox)
    await bus.publish([house.message("step.pay") for _ in range(5)])
    first, second = await inbox.take(2)
    await bus.missing([], [queue])  # a round trip: a third would have arrived before it
    assert inbox.is_empty
    await bus.ack([second])
    [third] = await inbox.take(1)
    await bus.ack([first, third])
    await inbox.take(2)


async def test_what_was_acknowledged_is_gone_and_the_rest_comes_again(house: House, bus: Bus, other: Bus) -> None:
    queue = await house.lay(bus)
    inbox, others = Inbox(), Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    await bus.publish([house.message("step.pay") for _ in range(6)])
    got = await inbox.take(6)
    await bus.ack([got[4], got[0], got[1]])  # a prefix and a single one
    await bus.ack([got[0]])  # settled already
    await bus.close()
    await other.consume(queue.name, prefetch=10, on_delivery=others)
    again = await others.take(3)
    assert [d.message_id for d in again] == [got[2].message_id, got[3].message_id, got[5].message_id]
    assert all(d.redelivered for d in again)
    await other.ack(again)
    await other.publish([house.message("step.pay")])
    [fresh] = await others.take(1)
    assert not fresh.redelivered


async def test_a_rejected_message_comes_back_or_goes_to_the_dead(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    inbox, dead = Inbox(), Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    await bus.consume(house.topology.dead_exchange, prefetch=10, on_delivery=dead)
    message = house.message("step.pay", correlation_id="saga")
    await bus.publish([message])
    [delivery] = await inbox.take(1)
    await bus.reject(delivery, requeue=True)
    [again] = await inbox.take(1)
    assert again.message_id == message.message_id
    assert again.redelivered
    await bus.reject(again, requeue=False)
    [buried] = await dead.take(1)
    assert (buried.body, buried.message_id, buried.correlation_id) == (message.body, message.message_id, "saga")
    assert buried.headers["x-death"][0]["reason"] == "rejected"
    assert buried.headers["x-death"][0]["queue"] == queue.name
    assert inbox.is_empty


async def test_a_cancelled_consumer_can_still_acknowledge(house: House, bus: Bus, other: Bus) -> None:
    queue = await house.lay(bus)
    inbox, others = Inbox(), Inbox()
    subscription = await bus.consume(queue.name, prefetch=2, on_delivery=inbox)
    await bus.publish([house.message("step.pay") for _ in range(3)])
    held = await inbox.take(2)
    await subscription.cancel()
    await subscription.cancel()
    await other.consume(queue.name, prefetch=10, on_delivery=others)
    [third] = await others.take(1)
    assert third.message_id == "id-3"
    await bus.ack(held)
    await bus.close()
    await other.missing([], [queue])
    assert inbox.is_empty
    assert others.is_empty


async def test_consumers_of_one_queue_share_it(house: House, bus: Bus, other: Bus) -> None:
    queue = await house.lay(bus)
    mine, others = Inbox(), Inbox()
    await bus.consume(queue.name, prefetch=2, on_delivery=mine)
    await other.consume(queue.name, prefetch=2, on_delivery=others)
    await bus.publish([house.message("step.pay") for _ in range(4)])
    arrived = [*await mine.take(2), *await others.take(2)]
    assert {d.message_id for d in arrived} == {"id-1", "id-2", "id-3", "id-4"}


async def test_what_a_consumer_returns_runs_in_a_task_of_the_bus(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    done: asyncio.Queue[str] = asyncio.Queue()

    async def work(delivery: Delivery) -> None:
        await bus.ack([delivery])
        done.put_nowait(delivery.message_id or "")

    await bus.consume(queue.name, prefetch=1, on_delivery=work)
    await bus.publish([house.message("step.pay"), house.message("step.pay")])
    async with asyncio.timeout(PATIENCE_S):
        assert [await done.get(), await done.get()] == ["id-1", "id-2"]


async def test_a_consumer_that_raises_does_not_end_consuming(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    inbox = Inbox()

    def fail_first(delivery: Delivery) -> None:
        if delivery.message_id == "id-1":
            raise ValueError("a bug")
        inbox(delivery)

    await bus.consume(queue.name, prefetch=10, on_delivery=fail_first)
    await bus.publish([house.message("step.pay"), house.message("step.pay")])
    [second] = await inbox.take(1)
    assert second.message_id == "id-2"


async def test_a_reply_queue_is_its_bus_alone(house: House, bus: Bus, other: Bus) -> None:
    await house.lay(bus)
    name = f"{house.topology.namespace}.reply.1"
    await bus.declare_reply_queue(name)
    await bus.declare_reply_queue(name)
    inbox = Inbox()
    await bus.consume(name, prefetch=10, on_delivery=inbox)
    assert await other.publish([house.message(name, exchange="")]) == [Fate.CONFIRMED]
    await inbox.take(1)
    with pytest.raises(ConfigurationError, match=name):
        await other.consume(name, prefetch=1, on_delivery=inbox)
    with pytest.raises(ConfigurationError, match=name):
        await other.declare_reply_queue(name)
    await bus.close()
    assert await other.publish([house.message(name, exchange="")]) == [Fate.RETURNED]


async def test_declaring_twice_is_harmless_and_differing_is_told(house: House, bus: Bus, other: Bus) -> None:
    queue = await house.lay(bus)
    await house.lay(bus)
    await house.lay(other)
    with pytest.raises(ConfigurationError, match=house.topology.exchange):
        await bus.declare([Exchange(house.topology.exchange, ExchangeKind.FANOUT)], [])
    with pytest.raises(ConfigurationError, match=queue.name):
        await bus.declare([], [dataclasses.replace(queue, dead_letter_exchange=None)])
    with pytest.raises(ConfigurationError, match="not-declared"):
        await bus.declare([], [dataclasses.replace(queue, exchange="not-declared")])
    assert await bus.publish([house.message("step.pay")]) == [Fate.CONFIRMED]


async def test_missing_names_what_is_not_there(house: House, bus: Bus) -> None:
    topology = house.topology
    queue = topology.step_queue("pay")
    exchanges = topology.exchanges()
    expected = [f"exchange {exchange.name} is not there" for exchange in exchanges]
    assert await bus.missing(exchanges, [queue]) == [*expected, f"queue {queue.name} is not there"]
    await house.lay(bus)
    ship = topology.step_queue("ship")
    assert await bus.missing(exchanges, [queue, ship]) == [f"queue {ship.name} is not there"]


async def test_consuming_a_queue_that_is_not_there_is_told(bus: Bus) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        await bus.consume("nowhere", prefetch=1, on_delivery=Inbox())


async def test_after_a_cut_all_is_as_before(house: House, bus: Bus) -> None:
    queue = await house.lay(bus)
    reply_queue = f"{house.topology.namespace}.reply.1"
    await bus.declare_reply_queue(reply_queue)
    inbox, replies = Inbox(), Inbox()
    await bus.consume(queue.name, prefetch=10, on_delivery=inbox)
    await bus.consume(reply_queue, prefetch=10, on_delivery=replies)
    await bus.publish([house.message("step.pay"), house.message("step.pay")])
    old = await inbox.take(2)
    generation = bus.generation
    house.cut(bus)
    await replaced(bus, generation)
    again = await inbox.take(2)
    assert [d.message_id for d in again] == [d.message_id for d in old]
    assert all(d.redelivered for d in again)
    await bus.ack(old)  # of the dead channel: passed over
    await bus.reject(old[0], requeue=False)
    await bus.ack(again)
    assert await bus.publish([house.message(reply_queue, exchange="")]) == [Fate.CONFIRMED]
    await replies.take(1)
    assert inbox.is_empty


async def test_a_full_queue_refuses() -> None:
    """RabbitMQ does it by a policy; there it is tested with the integration."""
    broker = MemoryBroker()
    bus, topology = MemoryBus(broker), Topology("test")
    await bus.open()
    await bus.declare(topology.exchanges(), topology.orchestrator_queues())
    broker.limit(topology.queue_name("start"), 1)
    messages = [Message(topology.exchange, "start", b"", "test", f"id-{number}") for number in range(2)]
    assert await bus.publish(messages) == [Fate.CONFIRMED, Fate.REFUSED]
    assert broker.depth(topology.queue_name("start")).ready == 1
    await bus.close()
