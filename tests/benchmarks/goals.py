"""What we want to reach, and whether we do: computed from the results, a row for each goal that was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.tables import number, table, times

PEERS = {
    "cqrs-postgres-2-16": "python-cqrs on Postgres",
    "dbos-2-16": "DBOS",
    "restate-2-32": "Restate",
    "celery-2": "a Celery chain that loses no task",
    "relay": "a bare aio-pika relay",
}
EMBEDDED = {
    "embedded-postgres": "embedded on Postgres, beside python-cqrs on Postgres",
    "embedded-memory": "embedded in memory, beside python-cqrs in memory",
}
Row = tuple[str, str, str, str]


def goals(parts: dict[str, dict[str, Any]]) -> list[str]:
    """The table."""
    return table(("", "goal", "measured", ""), list(_rows(parts)))


def _rows(parts: dict[str, dict[str, Any]]) -> Iterator[Row]:
    if found := parts.get("peers"):
        for name, title in PEERS.items():
            yield _at_least(f"distributed, beside {title}", found["goals"][name], found["ratios"][name])
    if found := parts.get("embedded"):
        for name, goal in found["goals"].items():  # with the processes and how many at once, as it was measured
            yield _at_least(EMBEDDED[name.rsplit("-", 2)[0]], goal, found["ratios"][name])
    if found := parts.get("latency"):
        yield _at_most("one saga at rest, p50, distributed, beside DBOS", found["goal"], found["dbos_ratio"], "×")
    if found := parts.get("finished"):
        yield _at_least(f"with {found['count']:,} finished sagas, beside none", found["goal"], found["ratio"])
    if found := parts.get("barrier"):
        title = "steps that write a row, behind the barrier beside without"
        yield _at_least(title, found["goal"], found["ratio"])
    if found := parts.get("recovery"):
        yield _at_most("sagas lost when all processes are killed", 0, found["lost"], "")
        yield _at_most("back at full rate after it", found["goals"]["back_s"], found["back_s"], " s")
        yield _at_most("all ended, beside undisturbed", found["goals"]["time_ratio"], found["time_ratio"], "×")


def _at_least(title: str, goal: float, found: float | None) -> Row:
    return title, f"≥ {goal:g}×", times(found), _mark(None if found is None else found >= goal)


def _at_most(title: str, goal: float, found: float | None, unit: str) -> Row:
    said = "–" if found is None else f"{number(found)}{unit}"
    return title, f"≤ {goal:g}{unit}", said, _mark(None if found is None else found <= goal)


def _mark(is_met: bool | None) -> str:
    return {True: "met", False: "missed", None: "not measured"}[is_met]
