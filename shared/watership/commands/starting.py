"""`watership start`: starts one saga, or one for each line of a JSON Lines file, as any foreign client does."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from watership.chance import new_saga_id
from watership.commands.batch import Batch, start_many
from watership.commands.input import read_contexts, start_body
from watership.commands.options import BrokerUrl, Namespace
from watership.commands.reach import connected
from watership.commands.screen import clean, output, say, shortened, span, status_text
from watership.commands.timeline import failure_words
from watership.errors import BrokerUnavailable, SagaNotFound, WatershipError
from watership.machine.state import Status
from watership.messages import AdminVerb, StartSaga
from watership.saga.watch import SagaEnd, SagaWatch
from watership.settings import Settings, load_settings
from watership.wire import Wire

QUIET_S = 5.0
RESPONSE_CHARS_MAX = 120


def start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The saga's name.", show_default=False)],
    context: Annotated[
        str,
        typer.Option(
            "--context",
            metavar="JSON|@FILE|@-",
            help="The saga's context, a JSON object: here, in a file or on standard input. "
            "A JSON Lines file starts a saga for each line.",
            show_default=False,
        ),
    ],
    saga_id: Annotated[
        uuid.UUID | None,
        typer.Option(
            "--id", metavar="ID", help="The saga's id: the same id again is the same saga.", show_default=False
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print each step as it is done, and the end; exit 1 if not completed.")
    ] = False,
    broker_url: BrokerUrl = None,
    namespace: Namespace = None,
) -> None:
    """Start a saga, or many.

    It is started once the broker has it on disk. The id goes to standard output.
    """
    settings = load_settings(broker_url=broker_url, namespace=namespace)
    given = read_contexts(context)
    if given.many and saga_id is not None:
        raise typer.BadParameter(f"--id is for one saga; {given.source} has {len(given.contexts)} lines")
    bodies = [start_body(name, saga_id or new_saga_id(), value, what) for what, value in given.contexts]
    settings.broker()
    if given.many:
        batch = asyncio.run(_start_many(settings, bodies, watch))
        raise typer.Exit(_report(batch, name))
    raise typer.Exit(asyncio.run(_start_one(settings, bodies[0], watch)))


# --- one


async def _start_one(settings: Settings, body: StartSaga, watch: bool) -> int:
    async with connected(settings) as wire:
        if not watch:
            await wire.publish_start(body, listen=False)
            typer.echo(str(body.saga_id))
            say(f"the broker has it; `watership show {body.saga_id}` tells what becomes of it", "dim")
            return 0
        began_s = time.monotonic()
        watched = await wire.start_watched(body)
        output().print(Text(f"{body.saga} {body.saga_id}"))
        worry = asyncio.create_task(_worry(wire, watched))
        try:
            end = await _print_steps(watched, began_s)
        except asyncio.CancelledError:
            say(f"the saga goes on; `watership show {body.saga_id}` tells what becomes of it")
            raise
        finally:
            worry.cancel()
        return 0 if end.status is Status.COMPLETED and end.parked_reason is None else 1


async def _print_steps(watched: SagaWatch, began_s: float) -> SagaEnd:
    console = output()
    async for done in watched.steps():
        line = Text.assemble(_since(began_s), "  ", clean(done.step), " ", ("done", "green"))
        if done.response is not None:
            line.append(f"  {shortened(done.response, RESPONSE_CHARS_MAX)}", "dim")
        console.print(line, soft_wrap=True)
    end = await watched.end()
    line = Text.assemble(_since(began_s), "  ", status_text(end.status.value, end.parked_reason), end_words(end))
    console.print(line, soft_wrap=True)
    return end


def end_words(end: SagaEnd) -> str:
    """Why a saga did not complete; empty if it did."""
    if end.parked_reason is not None:
        return clean(f": {end.parked_reason}")
    if end.status is Status.COMPLETED or end.failure is None:
        return ""
    step = f"{end.failure.step}: " if end.failure.step else ""
    return clean(f": {step}{failure_words(end.failure)}")


async def _worry(wire: Wire, watched: SagaWatch) -> None:
    """Says what a saga waits for when nothing is heard of it for a while, once for each thing."""
    said = ""
    while True:
        seen = watched.steps_seen
        await asyncio.sleep(QUIET_S)
        if watched.steps_seen != seen or watched.over:
            continue
        try:
            view = await wire.ask(AdminVerb.SHOW, saga_id=watched.saga_id)
            where = f" at step {view['step']}" if view["step"] else ""
            why = f": {view['owed_reason']}" if view["owed_reason"] else ""
            if view["status"] == Status.PENDING:
                why = f": no worker has announced a saga {view['name']!r}; is its worker running, and the name right?"
            sentence = f"still {view['status']}{where}{why}"
        except SagaNotFound:
            sentence = "still waiting to be taken up by an orchestrator"
        except BrokerUnavailable as error:
            sentence = f"still waiting: {error}"
        if sentence != said:
            say(sentence, "yellow")
            said = sentence


def _since(began_s: float) -> Text:
    return Text(f"{span(round((time.monotonic() - began_s) * 1000)):>9}", style="dim")


# --- many


async def _start_many(settings: Settings, bodies: list[StartSaga], watch: bool) -> Batch:
    async with connected(settings) as wire:
        return await start_many(wire, bodies, watch=watch, console=Console(stderr=True, highlight=False))


def _report(batch: Batch, name: str) -> int:
    """Ids to a program, a summary to a person; 1 if a saga was not started, or, being watched, did not complete."""
    if not sys.stdout.isatty():
        for body in batch.started:
            typer.echo(str(body.saga_id))
    say(f"started {len(batch.started):,} of {batch.total:,} sagas {name} in {batch.seconds:.1f} s")
    for saga_id, words in batch.incomplete_shown:
        say(f"  {saga_id} {words}")
    if batch.incomplete > len(batch.incomplete_shown):
        say(f"  … and {batch.incomplete - len(batch.incomplete_shown):,} more")
    if batch.error is not None:
        raise WatershipError(f"{batch.error}; not started: {batch.lines_not_started()}")
    return 1 if batch.incomplete else 0
