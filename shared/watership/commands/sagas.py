"""`watership list` and `watership show`: sagas as people and programs read them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from watership.commands.ledger import ledger_table
from watership.commands.options import AsJson, BrokerUrl, DatabaseUrl, Namespace, SagaId
from watership.commands.reach import Reader, open_reader
from watership.commands.screen import ago, clean, milliseconds, output, print_json, say, span, status_text
from watership.commands.timeline import BAD, QUIET, failure_words, timeline
from watership.machine.changes import failure_from_data
from watership.machine.state import Status

LIMIT_MAX = 1_000
CONTEXT_LINES_MAX = 40


def list_sagas(
    limit: Annotated[int, typer.Option("--limit", min=1, max=LIMIT_MAX, metavar="N", help="At most so many.")] = 50,
    status: Annotated[
        Status | None,
        typer.Option("--status", case_sensitive=False, metavar="STATUS", help="Only those: " + ", ".join(Status)),
    ] = None,
    parked: Annotated[bool, typer.Option("--parked", help="Only those that need a person.")] = False,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """List sagas, the newest first.

    With a broker, the services are asked. With a database alone, it is read directly: the sagas of your own process.
    """
    wanted = {"limit": limit, "status": status, "parked": True if parked else None}
    rows, where = asyncio.run(_list(wanted, broker_url, database_url, namespace))
    if as_json:
        print_json(rows)
    elif rows:
        _print_rows(rows, int(time.time() * 1000))
    else:
        narrowed = " like that" if parked or status is not None else ""
        say(f"no sagas{narrowed} in {where}")


async def _list(
    wanted: dict[str, Any], broker_url: str | None, database_url: str | None, namespace: str | None
) -> tuple[list[dict[str, Any]], str]:
    async with open_reader(broker_url, database_url, namespace) as reader:
        return await reader.list(**wanted), reader.where


def _print_rows(rows: list[dict[str, Any]], now_ms: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True, min_width=36)
    table.add_column("Saga", overflow="fold")
    table.add_column("Status")
    table.add_column("Step", overflow="fold")
    table.add_column("Started", justify="right", no_wrap=True)
    table.add_column("Changed", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["saga_id"],
            Text(clean(row["name"])),
            status_text(row["status"], row["parked_reason"]),
            Text(clean(row["step"] or "")),
            ago(row["created_at"], now_ms),
            ago(row["updated_at"], now_ms),
        )
    console = output()
    console.print(table)
    parked = [row for row in rows if row["parked_reason"] is not None]
    if parked:
        console.print(Text("\nParked, for a person:", style="bold"))
    for row in parked:
        console.print(Text(f"{row['saga_id']}  {clean(row['parked_reason'])}"), soft_wrap=True)


def show(
    saga_id: SagaId,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show one saga: where it stands and why, its context, and all that happened to it."""
    view = asyncio.run(_show(saga_id, broker_url, database_url, namespace))
    if as_json:
        print_json(view)
        return
    console = output()
    console.print(Panel(_facts(view, int(time.time() * 1000)), title=_title(view), title_align="left", padding=(0, 1)))
    console.print(_timeline_table(view))
    if view["ledger"]:
        console.print(Text("\nIn the ledger, the newest first:", style="bold"))
        console.print(ledger_table(view["ledger"], int(time.time() * 1000), of_one=True))


async def _show(
    saga_id: uuid.UUID, broker_url: str | None, database_url: str | None, namespace: str | None
) -> dict[str, Any]:
    reader: Reader
    async with open_reader(broker_url, database_url, namespace) as reader:
        return await reader.show(saga_id)


def _title(view: dict[str, Any]) -> Text:
    return Text.assemble((clean(view["name"]), "bold"), f" {view['saga_id']}")


def _facts(view: dict[str, Any], now_ms: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("status", status_text(view["status"], view["parked_reason"]))
    if view["parked_reason"] is not None:
        table.add_row("parked", Text(clean(view["parked_reason"]), style=BAD))
    if view["failure"] is not None:
        table.add_row("failure", Text(clean(failure_line(view["failure"]))))
    waits = _waits(view, now_ms)
    if waits:
        table.add_row("waits", Text(clean(waits)))
    table.add_row("started", f"{view['created_at']} ({ago(view['created_at'], now_ms)})")
    table.add_row("changed", f"{view['updated_at']} ({ago(view['updated_at'], now_ms)})")
    table.add_row("context", _context(view["context"]))
    return table


def failure_line(data: dict[str, Any]) -> str:
    """A view's failure in words: the step, and the error."""
    failure = failure_from_data(data)
    words = failure_words(failure)
    return f"{failure.step}: {words}" if failure.step else words


def _waits(view: dict[str, Any], now_ms: int) -> str:
    if Status(view["status"]).terminal or view["parked_reason"] is not None:
        return ""
    parts = []
    if view["step"] is not None:
        parts.append(f"for step {view['step']}")
    elif view["status"] == Status.PENDING:
        parts.append("for a worker that announces this saga")
    if view["due_at"] is not None:
        left_ms = milliseconds(view["due_at"]) - now_ms
        parts.append(f"looked at again in {span(left_ms)}" if left_ms > 0 else "due to be looked at again now")
    if view["owed_reason"] is not None:
        parts.append(view["owed_reason"])
    return "; ".join(parts)


def _context(context: dict[str, Any]) -> Text:
    """The context as JSON. One of many lines is cut: `--json` has it all."""
    lines = [clean(line) for line in json.dumps(context, indent=2, ensure_ascii=False).splitlines()]
    if len(lines) <= CONTEXT_LINES_MAX:
        return Text("\n".join(lines))
    more = len(lines) - CONTEXT_LINES_MAX
    return Text.assemble("\n".join(lines[:CONTEXT_LINES_MAX]), (f"\n… {more} more lines: --json shows all", QUIET))


def _timeline_table(view: dict[str, Any]) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("After", justify="right", no_wrap=True)
    table.add_column("Step", overflow="fold")
    table.add_column("Action", no_wrap=True)
    table.add_column("What happened", no_wrap=True)
    table.add_column("", overflow="fold")
    for line in timeline(view):
        table.add_row(
            span(line.since_ms),
            Text(clean(line.step)),
            line.action,
            Text(clean(line.what), style=line.style),
            Text(clean(line.details)),
        )
    return Group("", table)
