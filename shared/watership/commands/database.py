"""`watership db`: the tables that sagas live in, made and compared."""

from __future__ import annotations

import asyncio

import typer

from watership.commands.options import AsJson, DatabaseUrl
from watership.commands.reach import existing_database
from watership.commands.screen import clean, print_json, say, say_error
from watership.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="The database: make and check the tables.")


@app.command()
def upgrade(database_url: DatabaseUrl = None) -> None:
    """Make the tables, or bring them to this version. Harmless when they are."""
    from watership.saga.storage import migrations
    from watership.saga.storage.engines import parse_url
    from watership.saga.storage.trouble import shown

    url = load_settings(database_url=database_url).database()
    changed = asyncio.run(migrations.upgrade(url))
    what = "has this version's tables now" if changed else "is up to date: nothing to do"
    say(f"the database {shown(parse_url(url))} {what}")


@app.command()
def check(as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Compare the tables with what this version needs; exit 1 and say what differs."""
    from watership.saga.storage import migrations

    url = load_settings(database_url=database_url).database()
    where = existing_database(url)
    differences = list(asyncio.run(migrations.check(url)))
    if as_json:
        print_json(differences)
    elif differences:
        for difference in differences:
            typer.echo(clean(difference))
        say_error(f"the database {where} is not as this version needs it")
    else:
        say(f"the database {where} is up to date")
    if differences:
        raise typer.Exit(1)
