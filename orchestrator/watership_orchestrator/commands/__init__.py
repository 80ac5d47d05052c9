"""The orchestrator's subcommands."""

from __future__ import annotations

import typer

from watership_orchestrator.commands import serve


def register(app: typer.Typer) -> None:
    """Adds them to the command."""
    app.command("orchestrator")(serve.orchestrator)
    app.command("reaper")(serve.reaper)
