"""`watership demo`: 500 orders, one kill, no server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

ORDERS_MIN, ORDERS_MAX = 20, 500

Directory = Annotated[Path, typer.Option("--directory", help="Where its SQLite files go. Each run makes them anew.")]
Orders = Annotated[int, typer.Option("--orders", min=ORDERS_MIN, max=ORDERS_MAX, help="How many orders to run.")]
Record = Annotated[Path | None, typer.Option("--record", hidden=True, help="Draw what is shown into this SVG file.")]


def demo(directory: Directory = Path(".demo"), orders: Orders = ORDERS_MAX, record: Record = None) -> None:
    """Run 500 orders as sagas on an embedded database, kill the process in the middle, and see them all end."""
    from watership.demo.screen import Screen
    from watership.demo.show import show

    screen = Screen(record)
    balanced = asyncio.run(show(screen, directory, orders))
    screen.save("watership demo")
    if not balanced:
        raise typer.Exit(1)
