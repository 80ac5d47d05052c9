"""`watership retry` and `watership compensate`: an operator's hand on a saga. Each leaves a mark in the saga's log."""

from __future__ import annotations

import asyncio
import getpass
import socket
import uuid
from typing import Annotated, Any

import typer
from rich.text import Text

from watership import codec
from watership.commands.options import BrokerUrl, DatabaseUrl, Namespace, SagaId
from watership.commands.reach import connected, without_broker
from watership.commands.screen import clean, output, say, status_text
from watership.messages import AdminVerb
from watership.settings import Settings, load_settings

REASON_CHARS_MAX = 2_000

Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why: it stands in the saga's log.", show_default=False)
]


def retry(
    saga_id: SagaId,
    reason: Reason,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Let a parked saga go on, once what stopped it is mended.

    It looks first; if the saga moves between that look and the retry, the retry is refused.
    """
    _operate(
        AdminVerb.RETRY,
        saga_id,
        reason,
        load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace),
    )


def compensate(
    saga_id: SagaId,
    reason: Reason,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Have a saga undone: whatever acted is compensated, in reverse order.

    It looks first; if the saga moves between that look and the verb, the verb is refused.
    """
    _operate(
        AdminVerb.COMPENSATE,
        saga_id,
        reason,
        load_settings(broker_url=broker_url, database_url=database_url, namespace=namespace),
    )


def _operate(verb: AdminVerb, saga_id: uuid.UUID, reason: str, settings: Settings) -> None:
    reason = checked_reason(reason)
    refused = without_broker(settings, str(verb))
    if refused is not None:
        raise refused
    asyncio.run(_send(verb, saga_id, reason, settings))


def checked_reason(reason: str) -> str:
    """An operator's reason as it is kept. Raises `typer.BadParameter`, `InvalidPayload`."""
    reason = reason.strip()
    if not reason:
        raise typer.BadParameter("say why: the reason stands in the saga's log", param_hint="'--reason'")
    if len(reason) > REASON_CHARS_MAX:
        raise typer.BadParameter(
            f"at most {REASON_CHARS_MAX:,} characters, not {len(reason):,}", param_hint="'--reason'"
        )
    codec.check(reason, what="the reason")
    return reason


async def _send(verb: AdminVerb, saga_id: uuid.UUID, reason: str, settings: Settings) -> None:
    async with connected(settings) as wire:
        seen: dict[str, Any] = await wire.ask(AdminVerb.SHOW, saga_id=saga_id)
        say(_standing(seen), "dim")
        after: dict[str, Any] = await wire.ask(verb, saga_id=saga_id, actor=actor(), reason=reason, seq=seen["seq"])
    output().print(Text.assemble(f"{clean(seen['name'])} {saga_id} is ", status_text(after["status"], None), " now"))


def _standing(seen: dict[str, Any]) -> str:
    step = f" at step {seen['step']}" if seen["step"] else ""
    parked = f", parked: {seen['parked_reason']}" if seen["parked_reason"] is not None else ""
    return f"it is {seen['status']}{step}{parked}"


def actor() -> str:
    """Who is at the keyboard, as far as this machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:200]
