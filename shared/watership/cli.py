"""The `watership` command. It gathers its subcommands from the entry points of all three roots, and knows none of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

import watership
from watership.commands.options import PANELS, SERVICES
from watership.commands.screen import say_error
from watership.errors import ConfigurationError, WatershipError

ENTRY_POINTS = "watership.commands"
OWN_PACKAGES = ("watership", "watership_orchestrator", "watership_worker")
ADVICE = "pip install 'watership[server]'"


class Commands(TyperGroup):
    """The subcommands, in the order of their panels. What is left out for want of an extra is told by name."""

    absent: ClassVar[dict[str, str]] = {}  # an entry point, and the module that it misses

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the subcommands as the help shows them."""
        return sorted(self.commands, key=lambda name: _rank(getattr(self.commands[name], "rich_help_panel", None)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the subcommand. One that nobody knows may be one of those that are left out."""
        if self.absent and args and not args[0].startswith("-") and args[0] not in self.commands:
            modules = ", ".join(sorted(set(self.absent.values())))
            raise ConfigurationError(
                f"there is no command {args[0]!r} here; the services' commands need {modules}: {ADVICE}"
            )
        return super().resolve_command(ctx, args)


def make_app() -> typer.Typer:
    """The command with every subcommand that is installed."""
    app = typer.Typer(
        cls=Commands,
        name="watership",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        help="Sagas for Python services: act, or undo in reverse order, whatever crashes.",
        epilog="Settings come from flags, WATERSHIP_* variables or a .env file, in that order.",
    )
    app.callback()(_main)
    Commands.absent.clear()
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        _load(entry_point)(app)
    for command in app.registered_commands:  # a service need not know how the help is laid out
        if not isinstance(command.rich_help_panel, str):
            command.rich_help_panel = SERVICES
    return app


def _load(entry_point: EntryPoint) -> Callable[[typer.Typer], None]:
    """What adds the subcommands of an entry point: in the place of one that lacks an extra, a command that says so."""
    try:
        register: Callable[[typer.Typer], None] = entry_point.load()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] in OWN_PACKAGES:
            raise
        Commands.absent[entry_point.name] = missing
        return lambda app: _add_absent(app, entry_point.name, missing)
    return register


def _add_absent(app: typer.Typer, name: str, missing: str) -> None:
    def absent() -> None:
        raise ConfigurationError(f"`watership {name}` needs {missing}: {ADVICE}")

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, help="Not installed: pip install 'watership\\[server]'", context_settings=anything)(absent)


def _rank(panel: object) -> int:
    return PANELS.index(panel) if isinstance(panel, str) and panel in PANELS else len(PANELS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"watership {watership.__version__}")
        raise typer.Exit


def _main(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback has done it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    commands: dict[str, Any] = getattr(context.command, "commands", {})
    panel = getattr(commands.get(context.invoked_subcommand or ""), "rich_help_panel", None)
    usual = logging.INFO if panel == SERVICES else logging.WARNING  # a service tells what it does; a tool, its result
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else usual,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    for noisy in ("aiosqlite", "asyncio", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for repeating in ("aiormq", "aio_pika"):  # what they log as errors, our own errors tell in words
        logging.getLogger(repeating).setLevel(logging.WARNING if verbose else logging.CRITICAL)


def main() -> None:
    """Runs the command. An expected error is one sentence and an exit code, never a traceback."""
    try:
        make_app()()
    except WatershipError as error:
        say_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
