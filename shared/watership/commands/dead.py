"""`watership dead`: the messages that the broker or the services gave up on, and an operator's hand on them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from watership import codec
from watership.commands.operating import Reason, actor, checked_reason
from watership.commands.options import AsJson, BrokerUrl, Namespace
from watership.commands.reach import connected
from watership.commands.screen import ago, clean, output, print_json, say
from watership.commands.timeline import DOUBTFUL, QUIET
from watership.errors import InvalidPayload
from watership.messages import AdminVerb
from watership.settings import Settings, load_settings

LIMIT_MAX = 1_000
BODY_CHARS_MAX = 4_000

app = typer.Typer(no_args_is_help=True, help="Dead letters: messages that nobody could take.")

LetterId = Annotated[int, typer.Argument(metavar="ID", min=1, help="The dead letter's number.", show_default=False)]


@app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option("--limit", min=1, max=LIMIT_MAX, metavar="N", help="At most so many.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Those that are judged or discarded, too.")] = False,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    namespace: Namespace = None,
) -> None:
    """List dead letters, the newest first: those that wait for the machine, or for a person."""
    settings = load_settings(broker_url=broker_url, namespace=namespace)
    rows = asyncio.run(_ask(settings, AdminVerb.DEAD_LIST, limit=limit, everything=everything))
    if as_json:
        print_json(rows)
    elif rows:
        _print_rows(rows, int(time.time() * 1000))
    else:
        say(f"no dead letters{'' if everything else ' that wait'} in the namespace {settings.namespace}")


@app.command()
def show(letter: LetterId, as_json: AsJson = False, broker_url: BrokerUrl = None, namespace: Namespace = None) -> None:
    """Show one dead letter: why it died, what it says, and what came of it."""
    settings = load_settings(broker_url=broker_url, namespace=namespace)
    view = asyncio.run(_ask(settings, AdminVerb.DEAD_SHOW, letter_id=letter))
    if as_json:
        print_json(view)
    else:
        _print_letter(view)


@app.command()
def requeue(letter: LetterId, reason: Reason, broker_url: BrokerUrl = None, namespace: Namespace = None) -> None:
    """Have a dead letter judged again, now that its cause is mended. It is never sent again as it is."""
    _operate(AdminVerb.DEAD_REQUEUE, letter, reason, load_settings(broker_url=broker_url, namespace=namespace))


@app.command()
def discard(letter: LetterId, reason: Reason, broker_url: BrokerUrl = None, namespace: Namespace = None) -> None:
    """Put a dead letter aside: nothing follows from it. It stays in the table until it is pruned."""
    _operate(AdminVerb.DEAD_DISCARD, letter, reason, load_settings(broker_url=broker_url, namespace=namespace))


def _operate(verb: AdminVerb, letter: int, reason: str, settings: Settings) -> None:
    why = checked_reason(reason)
    view = asyncio.run(_ask(settings, verb, letter_id=letter, actor=actor(), reason=why))
    output().print(Text(f"dead letter {letter}: {clean(_outcome(view))}"))


async def _ask(settings: Settings, verb: AdminVerb, **arguments: Any) -> Any:
    async with connected(settings) as wire:
        return await wire.ask(verb, **arguments)


def _outcome(view: dict[str, Any]) -> str:
    if view["judged"] is not None:
        return str(view["judged"])
    return "waits to be judged" if view["waits_for"] == "machine" else "waits for a person"


def _print_rows(rows: list[dict[str, Any]], now_ms: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", justify="right", no_wrap=True)
    table.add_column("Died", justify="right", no_wrap=True)
    table.add_column("Of", no_wrap=True)
    table.add_column("Kind", no_wrap=True)
    table.add_column("Saga", no_wrap=True, min_width=36)
    table.add_column("What came of it", overflow="fold")
    for row in rows:
        table.add_row(
            str(row["id"]),
            ago(row["at"], now_ms),
            Text(clean(row["reason"])),
            Text(clean(row["kind"])),
            row["saga_id"] or "",
            Text(clean(_outcome(row)), style=DOUBTFUL if row["waits_for"] == "person" else QUIET),
        )
    output().print(table)


def _print_letter(view: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("id", "at", "reason", "queue", "kind", "message_id", "saga_id", "body_bytes"):
        table.add_row(name.replace("_", " "), Text(clean(str(view[name] if view[name] is not None else ""))))
    table.add_row("outcome", Text(clean(_outcome(view))))
    if view["actor"] is not None:
        table.add_row("by", Text(clean(f"{view['actor']}: {view['actor_reason'] or ''}")))
    table.add_row("headers", Text(clean(json.dumps(view["headers"], indent=2, ensure_ascii=False))))
    table.add_row("body", Text(clean(_body(view["body"]))))
    output().print(table)


def _body(body: str) -> str:
    """As JSON where it is JSON; the beginning of it: `--json` has more."""
    with contextlib.suppress(InvalidPayload, ValueError):
        body = json.dumps(codec.decode(body.encode(), what="the body"), indent=2, ensure_ascii=False)
    return body if len(body) <= BODY_CHARS_MAX else f"{body[:BODY_CHARS_MAX]}…"
