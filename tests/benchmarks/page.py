"""Draws ``docs/benchmarks.md`` and its plots from the results: what stands between its markers, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import plots
from tests.benchmarks.contenders import FILLING
from tests.benchmarks.goals import goals
from tests.benchmarks.measures.recovery import rates
from tests.benchmarks.results import Results
from tests.benchmarks.tables import MAKERS, table
from tests.support.servers import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- (?P<name>[a-z]+) -->\n).*?(<!-- /(?P=name) -->)", re.DOTALL)
PLOT_TITLES = {
    "peers": "Sagas a second",
    "latency": "The time of one saga",
    "recovery": "Sagas that ended, before and after all was killed",
    "memory": "Resident memory over time",
}
NOT_YET = ["Not measured yet."]
BAR_NAMES = {
    FILLING.name: "Watership, distributed",
    "cqrs-postgres-2-16": "python-cqrs, Postgres, 2 processes",
    "dbos-2-16": "DBOS, 2 processes",
    "restate-2-32": "Restate, 2 service processes",
    "celery-2": "Celery chain, nothing lost",
    "celery-2-unsafe": "Celery chain, by default",
    "relay": "bare aio-pika relay",
}  # fmt: skip


def draw(results: Results, page: Path = PAGE) -> None:
    """Fills every block of the page, and writes the plots beside the results."""
    page.write_text(filled(page.read_text(), results))
    folder = page.parent / "benchmarks"
    folder.mkdir(exist_ok=True)
    for name, svg in plots_of(results.parts).items():
        (folder / f"{name}.svg").write_text(svg)


def filled(text: str, results: Results) -> str:
    """The page with the results in its blocks. What was not measured says so."""

    def fill(match: re.Match[str]) -> str:
        return "".join([match[1], "\n".join(_block(match["name"], results)), "\n", match[3]])

    return BLOCK.sub(fill, text)


def _block(name: str, results: Results) -> list[str]:
    if not results.parts:
        return NOT_YET
    if name == "machine":
        versions = ", ".join(f"{peer} {version}" for peer, version in sorted(results.peers.items()))
        rows = [*results.machine.items(), ("peers", versions or "not installed")]
        return table(("", ""), rows, words=2)
    if name == "goals":
        return goals(results.parts)
    found = results.parts.get(name)
    if found is None:
        return NOT_YET
    plot = [f"![{PLOT_TITLES[name]}](benchmarks/{name}.svg)", ""] if name in plots_of({name: found}) else []
    quick = ", in a quick run: each once, for a few seconds" if found["quick"] else ""
    return [*plot, *MAKERS[name](found), "", f"<sub>Measured on {found['on']}{quick}.</sub>"]


def plots_of(parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The plots of what was measured."""
    makers: dict[str, Callable[[dict[str, Any]], str | None]] = {
        "peers": _peers,
        "latency": _latency,
        "recovery": _recovery,
        "memory": _memory,
    }
    found = {name: make(parts[name]) for name, make in makers.items() if name in parts}
    return {name: svg for name, svg in found.items() if svg is not None}


def _peers(found: dict[str, Any]) -> str | None:
    rows = []
    for name, label in BAR_NAMES.items():
        rate = found["series"].get(name, {}).get("rate")
        if rate is not None:
            rows.append((label, rate["median"], rate["min"], rate["max"], name == FILLING.name))
    return (
        plots.bars("Sagas a second: three steps that do nothing, all filling the same machine", rows) if rows else None
    )


def _latency(found: dict[str, Any]) -> str | None:
    kept = [one for one in found["rates"] if "latency_ms" in one]
    series = {
        name: [(one["rate"], one["latency_ms"][name]["median"]) for one in kept] for name in ("p50", "p90", "p99")
    }
    if len(kept) < 2:
        return None
    title = "From the moment a start was due to the saga's end"
    return plots.lines(title, series, x_label="starts a second", y_label="ms, logarithmic", is_log=True)


def _recovery(found: dict[str, Any]) -> str:
    series = {"sagas ended": rates([(at_s, ended) for at_s, ended in found["ended"]])}
    title = f"{found['in_flight']:,} sagas on their way, and all processes killed"
    mark = [(found["killed_at_s"], "kill -9")]
    return plots.lines(title, series, x_label="seconds", y_label="sagas ended a second", marks=mark)


def _memory(found: dict[str, Any]) -> str:
    names = [name for name in found["samples"][0] if name != "at_s"]
    series = {name: [(one["at_s"], one[name] / 2**20) for one in found["samples"]] for name in names}
    return plots.lines("Resident memory under full load", series, x_label="seconds", y_label="MiB")
