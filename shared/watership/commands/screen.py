"""What the commands write: results to standard output, news and errors to standard error; colours, times and JSON.

Text that came from outside is never markup, and its control characters are shown, not sent to the terminal.
"""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

WIDTH_IN_A_PIPE = 160

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

STATUS_STYLES = {
    "PENDING": "magenta",
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "COMPENSATING": "yellow",
    "COMPENSATED": "yellow",
    "FAILED": "bold red",
}


def output() -> Console:
    """Standard output. In a pipe it is wide, so that a line of a table stays a line."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=WIDTH_IN_A_PIPE)
    return console


def news() -> Console:
    """Standard error: what is not the result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(sentence: str, style: str = "") -> None:
    """A sentence on standard error."""
    news().print(Text(clean(sentence), style=style))


def say_error(sentence: str) -> None:
    """An error: one sentence on standard error."""
    news().print(Text.assemble(("error: ", "bold red"), clean(sentence)))


def print_json(value: Any) -> None:
    """JSON for programs, never wrapped."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def clean(text: str) -> str:
    """The text with its control characters spelt out."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def status_text(status: str, parked_reason: str | None) -> Text:
    """A status in its colour, and whether it is parked."""
    text = Text(clean(status), style=STATUS_STYLES.get(status, ""))
    if parked_reason is not None:
        text = Text.assemble(text, (" parked", "bold red"))
    return text


def milliseconds(moment: str) -> int:
    """A moment in ISO 8601, as the views tell it, in milliseconds since the epoch."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def span(duration_ms: int) -> str:
    """A duration in words that are short: ``0.120 s``, ``12.3 s``, ``3 min 5 s``, ``2 h 7 min``, ``4 d 3 h``."""
    if duration_ms < 10_000:
        return f"{duration_ms / 1000:.3f} s"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    seconds = duration_ms // 1000
    if seconds < 3_600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86_400:
        return f"{seconds // 3_600} h {seconds % 3_600 // 60} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3_600} h"


def ago(moment: str, now_ms: int) -> str:
    """How long ago a moment was, roughly. Another machine's clock may be ahead of ours: that is now."""
    passed_s = max(0, now_ms - milliseconds(moment)) // 1000
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed_s >= length_s:
            return f"{passed_s // length_s} {unit} ago"
    return f"{passed_s} s ago"


def shortened(value: Any, chars_max: int) -> str:
    """A value as JSON on one line, cut where it is too long."""
    text = clean(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"
