"""What stands behind a mediator in front of the distributed system. Not public."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from watership import codec
from watership.bus.protocol import Bus
from watership.errors import ConfigurationError
from watership.messages import AdminVerb
from watership.saga.compile import Definition
from watership.saga.models import shape_of
from watership.saga.storage.protocol import EarlySignal
from watership.saga.watch import SagaWatch
from watership.wire import Wire

_per_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], Wire]] = (
    weakref.WeakKeyDictionary()
)


def wire_for(broker_url: str, namespace: str, make_bus: Callable[[str], Bus] | None = None) -> Wire:
    """The one `Wire` of this broker and namespace in the running event loop. Opens nothing yet."""
    of_loop = _per_loop.setdefault(asyncio.get_running_loop(), {})
    found = of_loop.get((broker_url, namespace))
    if found is None:
        found = of_loop[broker_url, namespace] = Wire((make_bus or rabbit_bus)(broker_url), namespace)
    return found


def rabbit_bus(broker_url: str, *, name: str = "watership client") -> Bus:
    """A bus on RabbitMQ. Raises `ConfigurationError` if the extra is not installed."""
    try:
        from watership.bus.rabbit import RabbitBus
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"RabbitMQ needs {error.name}: pip install 'watership[rabbitmq]'") from error
    return RabbitBus(broker_url, name=name)


class WireRunner:
    """A mediator's back when sagas run in the distributed system."""

    def __init__(self, broker_url: str, *, namespace: str) -> None:
        self._broker_url = broker_url
        self._namespace = namespace

    def bind(self, definitions: Iterable[Definition]) -> None:
        """Nothing to do: a plan is made known with the first saga that runs on it."""

    async def open(self) -> None:
        """Connects. Raises `BrokerUnavailable`."""
        await self._wire().open()

    async def start(
        self, definition: Definition, context: dict[str, Any], saga_id: uuid.UUID, *, progress: bool = True
    ) -> SagaWatch:
        """Starts the saga. Its start is durable on return."""
        return await self._wire().start(definition, context, saga_id, progress=progress)

    async def write_start(self, definition: Definition, context: Any, saga_id: uuid.UUID, session: Any) -> None:
        """Writes the start in the caller's transaction, in the orchestrators' database. It needs no broker."""
        from watership.saga.storage.starts import write_start

        plan = definition.plan
        data = shape_of(type(context)).dump(context)
        body = codec.encode_context(data, what=f"saga {plan.saga} {saga_id}: the context")
        await write_start(
            session, namespace=self._namespace, driver="orchestrator", plan=plan, saga_id=saga_id, context=body
        )

    async def find(self, saga_id: uuid.UUID) -> SagaWatch:
        """Watches a saga that somebody started. Raises `SagaNotFound`."""
        return await self._wire().find(saga_id)

    async def signal(self, signal: EarlySignal) -> None:
        """Sends a signal, and waits until an orchestrator has it on record. Raises `SignalRefused`."""
        await self._wire().signal(signal)

    async def cancel(self, saga_id: uuid.UUID, *, actor: str, reason: str) -> None:
        """Has a saga undone. Raises `SagaNotFound`, `OperationRefused`."""
        await self._wire().ask(AdminVerb.COMPENSATE, saga_id=saga_id, actor=actor, reason=reason)

    def _wire(self) -> Wire:
        wire = wire_for(self._broker_url, self._namespace)
        wire.used_by(self)
        return wire

    async def close(self) -> None:
        """Closes the connection of this loop, if no other mediator uses it; sagas go on."""
        of_loop = _per_loop.get(asyncio.get_running_loop(), {})
        wire = of_loop.get((self._broker_url, self._namespace))
        if wire is not None and wire.left_by(self):
            del of_loop[self._broker_url, self._namespace]
            await wire.close()
