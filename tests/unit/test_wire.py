"""What a client asks on the admin queue, when nobody is there to answer: on a memory bus, in virtual time."""

from __future__ import annotations

import uuid

import pytest

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.errors import BrokerUnavailable
from watership.messages import AdminVerb
from watership.testing.virtual_loop import new_loop
from watership.wire import Wire

MOVE_SOMETHING = {
    AdminVerb.RETRY,
    AdminVerb.COMPENSATE,
    AdminVerb.DEAD_REQUEUE,
    AdminVerb.DEAD_DISCARD,
    AdminVerb.PLANS_USE,
}


@pytest.mark.parametrize("verb", list(AdminVerb))
def test_what_its_author_gave_up_does_not_wait_to_be_carried_out(verb: AdminVerb) -> None:
    """The memory bus keeps no time: what is looked at is when the broker would drop the request."""
    loop, broker = new_loop(), MemoryBroker()

    async def main() -> float:
        wire, asked_s = Wire(MemoryBus(broker), "test"), loop.time()
        with pytest.raises(BrokerUnavailable, match="no orchestrator answers"):
            await wire.ask(verb, saga_id=uuid.UUID(int=5))
        await wire.close()
        return loop.time() - asked_s

    try:
        waited_s = loop.run_until_complete(main())
    finally:
        loop.close()
    (request,) = broker.peek("test.admin")
    if verb in MOVE_SOMETHING:
        assert request.expiration_ms is not None
        assert 0 < request.expiration_ms <= waited_s * 1000
    else:
        assert request.expiration_ms is None, "a question does no harm, whenever it is read"
