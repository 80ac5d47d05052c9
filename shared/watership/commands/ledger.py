"""`watership ledger`: replies that came late, twice, or for a saga that is not there."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from watership.commands.options import AsJson, BrokerUrl, DatabaseUrl, Namespace
from watership.commands.reach import open_reader
from watership.commands.screen import ago, clean, output, print_json, say

LIMIT_MAX = 1_000


def ledger(
    saga_id: Annotated[
        uuid.UUID | None, typer.Argument(metavar="[SAGA]", help="Only this saga's lines.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=LIMIT_MAX, metavar="N", help="At most so many.")] = 50,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """List what came late, twice, or for a saga that is not there, the newest first, and why it moved nothing.

    A late act that may have had its effect is undone: then the reason says so.
    """
    rows, where = asyncio.run(_ledger(saga_id, limit, broker_url, database_url, namespace))
    if as_json:
        print_json(rows)
    elif rows:
        output().print(ledger_table(rows, int(time.time() * 1000)))
    else:
        of_it = f" of saga {saga_id}" if saga_id is not None else ""
        say(f"the ledger{of_it} is empty in {where}")


async def _ledger(
    saga_id: uuid.UUID | None, limit: int, broker_url: str | None, database_url: str | None, namespace: str | None
) -> tuple[list[dict[str, Any]], str]:
    async with open_reader(broker_url, database_url, namespace) as reader:
        return await reader.ledger(saga_id, limit=limit), reader.where


def ledger_table(rows: list[dict[str, Any]], now_ms: int, *, of_one: bool = False) -> Table:
    """The lines as a table; ``of_one``: all of one saga, so that its id need not be said."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Came", justify="right", no_wrap=True)
    if not of_one:
        table.add_column("Saga", no_wrap=True, min_width=36)
    table.add_column("What came", overflow="fold")
    table.add_column("What came of it", overflow="fold")
    for row in rows:
        saga = [] if of_one else [row["saga_id"]]
        table.add_row(ago(row["at"], now_ms), *saga, Text(clean(_what(row["message"]))), Text(clean(row["reason"])))
    return table


def _what(message: Any) -> str:
    """A reply in words; anything else by its saga's name, if it has one."""
    if not isinstance(message, dict):
        return ""
    if "outcome" in message:
        return (
            f"{message.get('action')} of {message.get('step')}, attempt {message.get('attempt')}: {message['outcome']}"
        )
    return f"a start of {message['saga']}" if "saga" in message else str(message.get("cause", ""))
