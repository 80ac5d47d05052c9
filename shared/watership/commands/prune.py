"""`watership prune`: removes sagas that ended long ago. It works on the database itself, beside the services."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

import typer

from watership.commands.options import DatabaseUrl, Namespace
from watership.commands.reach import existing_database
from watership.commands.screen import say
from watership.settings import Settings, load_settings

_UNITS_MS = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_AGE = re.compile(r"(\d{1,6})\s*(s|min|h|d)")


def prune(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Since the last change: 30d, 12h, 90min, 60s.",
            show_default=False,
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much would go; remove nothing.")] = False,
    database_url: DatabaseUrl = None,
    namespace: Namespace = None,
) -> None:
    """Remove ended sagas with their logs, and old ledger lines and dead letters that were seen to.

    Of each saga its id, name, input's hash and end stay: a start of that id is still known. Sagas that are parked, or
    that still owe something, stay. Sagas in a namespace of the services are never removed while a message for them may
    still come.
    """
    older_than_ms = age_ms(older_than)
    settings = load_settings(database_url=database_url, namespace=namespace)
    where = existing_database(settings.database())
    asyncio.run(_prune(settings, older_than_ms, dry_run, where))


async def _prune(settings: Settings, older_than_ms: int, dry_run: bool, where: str) -> None:
    from watership.saga.storage.pruning import Pruner

    retention_ms = round(settings.dead_letter_retention_s * 1000)
    pruner = Pruner(settings.database(), settings.namespace, older_than_ms=older_than_ms, retention_ms=retention_ms)
    pruned = await pruner.run(dry_run=dry_run)
    would = "would be" if dry_run else "were"
    say(
        f"{pruned.sagas:,} sagas {would} removed from {where}, namespace {settings.namespace}, and beside them "
        f"{pruned.ledger_lines:,} ledger lines, {pruned.dead_letters:,} dead letters, {pruned.signals:,} signals"
    )


def age_ms(text: str) -> int:
    """An age like ``30d`` in milliseconds. Raises `typer.BadParameter`."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(
            f"an age is a number and s, min, h or d, as 30d; not {text!r}", param_hint="'--older-than'"
        )
    return int(found[1]) * _UNITS_MS[found[2]]
