"""Where the demo writes: a terminal with a live bar, or plain lines where there is none; and a recording beside it.

It must never know what it shows.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

RECORD_WIDTH = 112
BAR_WIDTH = 40


class Screen:
    """Prints to the terminal, and to the recording if there is one."""

    def __init__(self, record: Path | None) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # an encoding without a sign of ours shows "?", no traceback
            sys.stdout.reconfigure(errors="replace")
        self._console = Console(highlight=False)
        self._record = record
        self._recorder: Console | None = None
        if record is not None:
            self._recorder = Console(
                file=io.StringIO(),
                record=True,
                width=RECORD_WIDTH,
                force_terminal=True,
                color_system="truecolor",
                highlight=False,
            )

    def print(self, what: RenderableType = "", *, wrap: bool = True) -> None:
        """Prints one thing. ``wrap`` off: a line stays a line, so that it can be copied."""
        for console in filter(None, (self._console, self._recorder)):
            console.print(what, soft_wrap=not wrap)

    @contextmanager
    def bar(self, text: str, total: int, at: int) -> Iterator[Bar]:
        """A bar that lives while the block runs; where it stood at the end stays on the screen."""
        bar = Bar(self._console, text, total, at)
        try:
            with bar.live:
                yield bar
        finally:
            if self._console.is_terminal:
                self._console.print(bar.still())
            if self._recorder is not None:
                self._recorder.print(bar.still())

    def save(self, title: str) -> None:
        """Writes the recording."""
        if self._recorder is not None and self._record is not None:
            drawn = self._recorder.export_svg(title=title)
            # Rich's picture fetches a font from elsewhere: whoever looks at a README should fetch nothing.
            self._record.write_text(re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL), encoding="utf-8")


class Bar:
    """How many of how many. Where there is no terminal it is a line for each tenth."""

    def __init__(self, console: Console, text: str, total: int, at: int) -> None:
        self._console, self._text, self._total, self._at = console, text, total, at
        self._note = ""
        self._told = at * 10 // total
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(BAR_WIDTH), MofNCompleteColumn())
        self.live = Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True)
        self.live.disable = not console.is_terminal
        self._task = self.live.add_task(text, total=total, completed=at, note="")

    def to(self, at: int, note: str = "") -> None:
        """It stands here now. ``note`` is written behind it."""
        self.live.update(self._task, completed=at, note=note)
        tenth = at * 10 // self._total
        if not self._console.is_terminal and (tenth > self._told or note != self._note):
            self._console.print(f"  {self._text}  {at}/{self._total}  {note}".rstrip(), soft_wrap=True)
            self._told = tenth
        self._at, self._note = at, note

    def still(self) -> Table:
        """The bar as a picture."""
        row = Table.grid(padding=(0, 1))
        row.add_row(
            " ",
            self._text,
            ProgressBar(self._total, self._at, width=BAR_WIDTH),
            f"[green]{self._at}/{self._total}[/]",
        )
        return row
