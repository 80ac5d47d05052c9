"""Signals: what a client sends to a saga that waits, as data, and whether it fits."""

from __future__ import annotations

import uuid
from typing import Any

import pydantic
from pydantic_core import PydanticSerializationError

from watership import codec
from watership.errors import InvalidPayload
from watership.machine import events as e
from watership.saga.compile import Definition
from watership.saga.models import shape_of
from watership.saga.storage.protocol import EarlySignal


def make_signal(saga_id: uuid.UUID, name: str, data: Any, signal_id: str | None) -> EarlySignal:
    """The signal as data. Raises `InvalidPayload` or `LimitExceeded`."""
    what = f"the signal {name} to saga {saga_id}"
    try:
        plain = pydantic.TypeAdapter(type(data)).dump_python(data, mode="json")
    except (pydantic.errors.PydanticUserError, PydanticSerializationError, ValueError) as error:
        raise InvalidPayload(f"{what} cannot be written as JSON: {error}") from error
    codec.encode_response(plain, what=what)
    for value, limit_of in ((name, "its name"), (signal_id, "its signal_id")):
        if value is not None and not 1 <= len(value) <= 200:
            raise InvalidPayload(f"{what}: {limit_of} has 1 to 200 characters, not {len(value)}")
    return EarlySignal(saga_id, signal_id or uuid.uuid4().hex, name, plain)


def signal_event(definition: Definition, signal: EarlySignal) -> e.SignalReceived:
    """What the machine is told, with what is wrong about the data."""
    wait = definition.plan.waits.get(signal.name)
    trouble = None
    if wait is not None and wait.into is not None:
        trouble = shape_of(definition.context_type).trouble_with(wait.into, signal.data)
    return e.SignalReceived(signal.name, signal.data, trouble)
