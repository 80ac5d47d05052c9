"""The library's subcommands. `register` is their entry point; the services have one each."""

from __future__ import annotations

import typer

from watership.commands import (
    bench,
    database,
    dead,
    demo,
    ledger,
    operating,
    plans,
    prune,
    sagas,
    signalling,
    starting,
    topology,
    torture,
)
from watership.commands.options import SAGAS, SET_UP, TRY_IT


def register(app: typer.Typer) -> None:
    """Adds them to the command."""
    app.command("demo", rich_help_panel=TRY_IT)(demo.demo)
    app.command("torture", rich_help_panel=TRY_IT)(torture.torture)
    app.command("start", rich_help_panel=SAGAS)(starting.start)
    app.command("list", rich_help_panel=SAGAS)(sagas.list_sagas)
    app.command("show", rich_help_panel=SAGAS)(sagas.show)
    app.command("signal", rich_help_panel=SAGAS)(signalling.signal)
    app.command("ledger", rich_help_panel=SAGAS)(ledger.ledger)
    app.command("retry", rich_help_panel=SAGAS)(operating.retry)
    app.command("compensate", rich_help_panel=SAGAS)(operating.compensate)
    app.command("bench", rich_help_panel=SET_UP)(bench.bench)
    app.command("prune", rich_help_panel=SET_UP)(prune.prune)
    app.add_typer(dead.app, name="dead", rich_help_panel=SAGAS)
    app.add_typer(plans.app, name="plans", rich_help_panel=SAGAS)
    app.add_typer(database.app, name="db", rich_help_panel=SET_UP)
    app.add_typer(topology.app, name="topology", rich_help_panel=SET_UP)
