"""Messages and changes in a few words, for traces and for what is said of a broken law."""

from __future__ import annotations

import contextlib
import uuid

from watership.bus.protocol import Delivery, Message
from watership.machine import changes as c
from watership.messages import StepReply, read


def short(message: Message | Delivery) -> str:
    """A message in a few words; nothing of this machine is in them."""
    if message.type in ("register-worker", "register-answer"):
        return message.type
    name = message.message_id or ""
    head, _, tail = name.partition(":")
    with contextlib.suppress(ValueError):
        name = f"saga {uuid.UUID(head).int}:{tail}"
    if message.type == "step-reply":
        reply = read(message.type, message.body)
        assert isinstance(reply, StepReply)
        return f"{message.type} {name} {reply.outcome}{' (redelivered)' if reply.redelivered else ''}"
    return f"{message.type} {name}"


def in_words(change: c.Change) -> str:
    values = {name: value for name, value in c.change_to_data(change).items() if name not in ("k", "due_at_ms", "run")}
    values.pop("context", None)
    if "failure" in values:
        values["failure"] = values["failure"]["code"]
    return f"{change.kind}({', '.join(f'{name}={value}' for name, value in values.items())})"
