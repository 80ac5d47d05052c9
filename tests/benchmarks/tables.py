"""The results of each part as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.benchmarks.bench import Data

GROUPS = ("client", "orchestrator", "worker", "reaper", "process", "server", "service", "relay", "RabbitMQ", "PostgreSQL")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first are numbers, set to the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def rate_of(series: Data) -> str:
    """The median and the spread, or why there is none."""
    if "rate" not in series:
        return "did not run"
    found = series["rate"]
    return f"**{number(found['median'])}** ({number(found['min'])}–{number(found['max'])})"


def number(value: float) -> str:
    """Three digits, thousands set apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float | None) -> str:
    """A ratio."""
    return "–" if value is None else f"{value:.2f}×"


def cpu_of(series: Data) -> str:
    """What our own processes spend for a saga, in all."""
    found = series.get("cpu_ms", {})
    return ", ".join(f"{name} {found[name]:.2f}" for name in GROUPS if found.get(name, 0) >= 0.005) or "–"


def peers(found: Data) -> list[str]:
    """Ours and theirs."""
    rows = []
    for name, series in found["series"].items():
        is_goal = name in found["goals"]
        goal = f"{times(found['ratios'][name])} (goal {found['goals'][name]:g}×)" if is_goal else ""
        rows.append((series["title"], str(series["processes"]), rate_of(series), goal, series["settings"]))
    return table(("", "processes", "sagas/s, median (min–max)", "ours is", "settings"), rows)


def throughput(found: Data) -> list[str]:
    """Ours alone."""
    rows = [(s["title"], s["settings"], rate_of(s), cpu_of(s)) for s in found["series"].values()]
    return table(("", "settings", "sagas/s, median (min–max)", "CPU ms a saga"), rows)


def tables_of(name: str, found: Data) -> list[str]:
    """The lines of a part."""
    makers = {"peers": peers, "throughput": throughput}
    return makers[name](found)
