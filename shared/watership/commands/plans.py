"""`watership plans`: the plans that sagas run on, which one foreign starts get, and whether code can serve them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from watership.commands.comparing import compared
from watership.commands.operating import actor, checked_reason
from watership.commands.options import AsJson, BrokerUrl, DatabaseUrl, Namespace
from watership.commands.plan_desk import open_desk
from watership.commands.plan_words import plan_facts, plan_lines
from watership.commands.screen import ago, clean, output, print_json, say, say_error
from watership.commands.timeline import DOUBTFUL, QUIET
from watership.commands.verdict import comparison_view, print_comparison
from watership.errors import WatershipError
from watership.machine.plan import Plan
from watership.settings import load_settings

LIMIT_MAX = 1_000
SAMPLE_MAX = 1_000_000
NOT_COMPATIBLE, ERROR = 1, 2

app = typer.Typer(no_args_is_help=True, help="Plans: the definitions that sagas in flight are pinned to.")

SagaName = Annotated[str, typer.Argument(metavar="SAGA", help="The saga's name.", show_default=False)]
PlanHash = Annotated[str, typer.Argument(metavar="HASH", help="The plan's hash, or its beginning.", show_default=False)]

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why: it is kept with it.", show_default=False)]


@app.command("list")
def list_plans(
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=LIMIT_MAX, metavar="N", help="At most so many that nobody uses.")
    ] = 20,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """List the known plans by saga, the newest first, and the sagas in flight on each."""
    views, where = asyncio.run(_list(limit, broker_url, database_url, namespace))
    if as_json:
        print_json(views)
    elif views:
        _print_list(views, int(time.time() * 1000))
    else:
        say(f"no plans in {where}")


@app.command()
def show(
    plan: PlanHash,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show one plan: its steps in words, and the sagas in flight on it."""
    view = asyncio.run(_show(plan, broker_url, database_url, namespace))
    if as_json:
        print_json(view)
    else:
        _print_plan(view, int(time.time() * 1000))


@app.command()
def use(
    saga: SagaName,
    reason: Reason,
    plan: Annotated[
        str | None, typer.Argument(metavar="[HASH]", help="The plan's hash, or its beginning.", show_default=False)
    ] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The one that was registered last again.")] = False,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Choose the plan that foreign starts of a saga get: those that name none.

    Sagas in flight stay on theirs, and our own clients start sagas on the plan of their code.
    """
    if newest == (plan is not None):
        raise typer.BadParameter("name a plan by its hash, or say --newest")
    view = asyncio.run(_use(saga, plan, checked_reason(reason), broker_url, database_url, namespace))
    if as_json:
        print_json(view)
    else:
        output().print(
            Text(f"foreign starts of {clean(saga)} get {_starts_words(view['foreign_starts'])}"), soft_wrap=True
        )


@app.command()
def compat(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="MODULE:NAME",
            help="A Worker, a sagas_mapper, a SagaMap or a Saga class. Several: all that is deployed together.",
            show_default=False,
        ),
    ],
    only: Annotated[
        list[str] | None, typer.Option("--saga", metavar="SAGA", help="Only sagas of this name.", show_default=False)
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, max=SAMPLE_MAX, metavar="N", help="Read at most so many sagas.")
    ] = 10_000,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Compare code with the plans and contexts of the sagas in flight, before it is deployed.

    Exit code 0: it can finish them all; 1: it cannot, and what would not work is told; 2: it could not be compared.
    """
    try:
        settings = load_settings(database_url=database_url, namespace=namespace)
        report = asyncio.run(compared(settings, targets, only or (), sample))
    except WatershipError as error:
        say_error(str(error))
        raise typer.Exit(ERROR) from error
    if as_json:
        print_json(comparison_view(report))
    else:
        print_comparison(report)
    if not report.compatible:
        raise typer.Exit(NOT_COMPATIBLE)


async def _list(
    limit: int, broker_url: str | None, database_url: str | None, namespace: str | None
) -> tuple[list[dict[str, Any]], str]:
    async with open_desk(broker_url, database_url, namespace) as desk:
        return await desk.list(limit), desk.where


async def _show(plan: str, broker_url: str | None, database_url: str | None, namespace: str | None) -> dict[str, Any]:
    async with open_desk(broker_url, database_url, namespace) as desk:
        return await desk.show(plan)


async def _use(
    saga: str, plan: str | None, reason: str, broker_url: str | None, database_url: str | None, namespace: str | None
) -> dict[str, Any]:
    async with open_desk(broker_url, database_url, namespace) as desk:
        return await desk.use(saga, plan, actor=actor(), reason=reason)


# --- on the screen


def _print_list(views: list[dict[str, Any]], now_ms: int) -> None:
    console = output()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Saga", overflow="fold")
    table.add_column("Plan", no_wrap=True, min_width=32)
    table.add_column("Registered", justify="right", no_wrap=True)
    table.add_column("In flight", overflow="fold")
    table.add_column("Foreign starts", overflow="fold")
    for view in views:
        for line in view["plans"]:
            gets = line["foreign_starts"]
            table.add_row(
                Text(clean(view["saga"])),
                line["plan"],
                ago(line["registered_at"], now_ms) if line["registered_at"] is not None else "never",
                _in_flight_words(line),
                Text(clean(_why(gets)), style=DOUBTFUL if gets["why"] == "chosen" else "") if gets is not None else "",
            )
    console.print(table)
    for view in views:
        if view["left_out"]:
            console.print(Text(f"{clean(view['saga'])}: {view['left_out']:,} older ones that nobody uses", style=QUIET))
        if view["without_plan"]:
            words = f"{clean(view['saga'])}: {view['without_plan']:,} sagas wait for a plan"
            console.print(Text(words, style=DOUBTFUL))


def _in_flight_words(line: dict[str, Any]) -> str:
    """``12 RUNNING, 3 COMPENSATING; embedded: 1 RUNNING; 2 of them parked``."""
    parts = []
    for driver, counts in sorted(line["in_flight"].items(), reverse=True):  # the services' own first
        words = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        parts.append(words if driver == "orchestrator" else f"{driver}: {words}")
    if line["parked"]:
        parts.append(f"{line['parked']:,} of them parked")
    return "; ".join(parts) or "none"


def _why(gets: dict[str, Any]) -> str:
    if gets["why"] == "newest":
        return "yes: registered last"
    return f"yes: chosen by {gets['actor']}: {gets['reason']}"


def _starts_words(gets: dict[str, Any]) -> str:
    why = "the newest one" if gets["why"] == "newest" else f"as {clean(gets['actor'])} chose"
    return f"plan {gets['plan']}, {why}"


def _print_plan(view: dict[str, Any], now_ms: int) -> None:
    plan = Plan.from_data(view["definition"])
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("plan", f"{view['plan']} of {clean(view['saga'])}")
    facts.add_row("registered", f"{view['registered_at']} ({ago(view['registered_at'], now_ms)})")
    facts.add_row("in flight", _in_flight_words(view))
    gets = view["foreign_starts"]
    facts.add_row("foreign starts", clean(_why(gets)) if gets is not None else "get another one")
    for name, words in plan_facts(plan):
        facts.add_row(name, clean(words))
    nodes = Table(box=None, pad_edge=False, header_style="bold")
    nodes.add_column("", no_wrap=True)
    nodes.add_column("Node", overflow="fold")
    nodes.add_column("What it does", overflow="fold")
    for number, name, words in plan_lines(plan):
        nodes.add_row(number, Text(clean(name)), Text(clean(words)))
    console = output()
    console.print(facts)
    console.print()
    console.print(nodes)
