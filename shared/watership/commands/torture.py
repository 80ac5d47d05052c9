"""`watership torture`: runs a saga with every fault that can be made, shows what was tried, and what was found."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from watership.commands.input import read_contexts
from watership.commands.options import AsJson
from watership.commands.screen import output, print_json
from watership.errors import ConfigurationError, InvalidPayload
from watership.saga.compile import context_type
from watership.saga.models import shape_of
from watership.saga.saga import Saga

if TYPE_CHECKING:
    from watership.testing.torturing.report import TortureReport

PICTURE_WIDTH = 100

Target = Annotated[
    str,
    typer.Argument(metavar="MODULE:SAGA", help="Where your Saga class is, e.g. orders:OrderSaga", show_default=False),
]
Context = Annotated[
    str,
    typer.Option(
        "--context",
        metavar="JSON|@FILE|MODULE:NAME",
        help="The saga's context: a JSON object, or a name that is one, or a function that makes one.",
        show_default=False,
    ),
]
CheckOption = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="MODULE:FUNCTION",
        help="Looks at your books after each run: raises, or returns a sentence, if they do not balance.",
        show_default=False,
    ),
]
FreshOption = Annotated[
    str | None,
    typer.Option(
        "--fresh",
        metavar="MODULE:FUNCTION",
        help="Called before each run: returns a clean container, or (container, check).",
        show_default=False,
    ),
]
Signals = Annotated[
    str | None,
    typer.Option(
        "--signals", metavar="JSON", help="The data of each signal that the saga waits for.", show_default=False
    ),
]
BarrierOption = Annotated[
    str | None,
    typer.Option(
        "--barrier",
        metavar="MODULE:NAME",
        help="The session type, if your Worker has barrier=…",
        show_default=False,
    ),
]
Pairs = Annotated[int, typer.Option("--pairs", min=0, help="So many runs more, with two faults each.")]
Seed = Annotated[int, typer.Option("--seed", help="Draws the pairs, and the order of what happens at once.")]
Only = Annotated[
    str | None,
    typer.Option(
        "--only", metavar="KEY", help="Only what has this key, or these words in its key.", show_default=False
    ),
]


def torture(
    target: Target,
    context: Context,
    check: CheckOption = None,
    fresh: FreshOption = None,
    signals: Signals = None,
    barrier: BarrierOption = None,
    pairs: Pairs = 0,
    seed: Seed = 0,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Run a saga on the real engine in virtual time, with another fault in each of hundreds of runs.

    Exit code 1 if anything was found.
    """
    from watership.testing import torture_sync  # the one command that runs sagas: the others must not wait for it

    saga = _saga(target)
    # What handlers print, hundreds of times, is no part of the report.
    with _progress(silent=as_json) as progress, contextlib.redirect_stdout(sys.stderr):
        task = progress.add_task("torture", total=None)
        report = torture_sync(
            saga,
            _context(saga, context),
            check=_function(check, "--check"),
            fresh=_function(fresh, "--fresh"),
            signals=_signals(signals),
            barrier=_named(barrier, "--barrier") if barrier is not None else None,
            pairs=pairs,
            seed=seed,
            only=only,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _show(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


def _progress(*, silent: bool) -> Progress:
    """Runs done, on standard error, and gone when it is over. In a pipe it shows nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=silent or not console.is_terminal)


def _show(report: TortureReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_data())
        return
    console = output()
    console.print(report, width=min(console.width, PICTURE_WIDTH))


# --- what the arguments name


def _saga(target: str) -> type[Saga[Any]]:
    found = _named(target, "the saga")
    if not (isinstance(found, type) and issubclass(found, Saga)):
        raise ConfigurationError(f"{target} is a {type(found).__name__}, no Saga class")
    return found


def _function(target: str | None, option: str) -> Callable[..., Any] | None:
    if target is None:
        return None
    found = _named(target, option)
    if not callable(found):
        raise ConfigurationError(f"{option} {target} is a {type(found).__name__}, no function")
    return found  # type: ignore[no-any-return] # a callable, as was just seen


def _context(saga: type[Saga[Any]], argument: str) -> Any:
    if not argument.lstrip().startswith(("{", "@")) and ":" in argument:
        found = _named(argument, "--context")
        found = found() if callable(found) and not _is_context(found) else found
        if not isinstance(found, dict):
            return found
        data: dict[str, Any] = found
    else:
        given = read_contexts(argument)
        if given.many:
            raise InvalidPayload(f"{given.source} has {len(given.contexts)} contexts; torture takes one")
        data = given.contexts[0][1]
    wanted = context_type(saga)
    if wanted is None:
        raise ConfigurationError(
            f"{saga.__name__} does not name its context: write class {saga.__name__}(Saga[Context])"
        )
    return shape_of(wanted).load(data)


def _is_context(value: object) -> bool:
    """Whether it is a context already, and no function that makes one."""
    return hasattr(type(value), "__dataclass_fields__") or hasattr(type(value), "model_fields")


def _signals(argument: str | None) -> dict[str, Any] | None:
    if argument is None:
        return None
    try:
        data = json.loads(argument)
    except ValueError as error:
        raise InvalidPayload(f"--signals is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidPayload('--signals is an object with the data of each signal: {"approval": {"approved": true}}')
    return data


def _named(target: str, what: str) -> Any:
    """Imports ``MODULE:NAME``. Raises `ConfigurationError` that says what is wrong with it."""
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise ConfigurationError(f"{what}: {target!r} is no MODULE:NAME, such as orders:OrderSaga")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's modules lie where the command is run
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"{what}: there is no module {module_name} to import from here") from error
        raise ConfigurationError(f"{what}: {module_name} cannot be imported: {error}") from error
    if not hasattr(module, name):
        raise ConfigurationError(f"{what}: module {module_name} has no {name}")
    return getattr(module, name)
