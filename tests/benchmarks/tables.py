"""The results of each part as Markdown tables: numbers in, lines out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.benchmarks.bench import ratio
from tests.benchmarks.contenders import FILLING

Data = dict[str, Any]

GROUPS = (
    "client",
    "orchestrator",
    "worker",
    "reaper",
    "process",
    "server",
    "service",
    "relay",
    "RabbitMQ",
    "PostgreSQL",
)
RATE = "sagas/s, median (min–max)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> list[str]:
    """A Markdown table: so many columns of words first, and then numbers, set to the right."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * words}{'---:|' * (len(head) - words)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def number(value: float | None) -> str:
    """Three digits, thousands set apart."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(value: float | None) -> str:
    """A ratio."""
    return "–" if value is None else f"{value:.2f}×"


def size(value: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1_000:
            return f"{value:.3g} {unit}"
        value /= 1_000
    return f"{value:.3g} TB"


def spread(found: Data) -> str:
    """The median and the range; one run has no range."""
    if found["runs"] == 1:
        return f"**{number(found['median'])}**"
    return f"**{number(found['median'])}** ({number(found['min'])}–{number(found['max'])})"


def rate_of(series: Data) -> str:
    """Sagas a second, or that there are none."""
    return spread(series["rate"]) if "rate" in series else "did not run"


def cpu_of(cpu_ms: Data) -> str:
    """What each group of processes spends for a saga."""
    return ", ".join(f"{name} {cpu_ms[name]:.2f}" for name in GROUPS if cpu_ms.get(name, 0) >= 0.005) or "–"


def cpu_sum(series: Data) -> str:
    """All of it, the servers' too."""
    return f"{sum(series['cpu_ms'].values()):.2f}" if series.get("cpu_ms") else "–"


# --- the parts


def peers(found: Data) -> list[str]:
    """Ours and theirs."""
    rows = []
    for series in found["series"].values():
        title = f"{series['title']}<br><sub>{series['settings']}</sub>"
        rows.append(
            (
                title,
                str(series["processes"]),
                rate_of(series),
                times(ratio(found["series"][FILLING.name], series)),
                cpu_sum(series),
            )
        )
    return table(("", "processes", RATE, "ours is", "CPU ms a saga, in all"), rows)


def embedded(found: Data) -> list[str]:
    """In one process, or a few."""
    rows = [
        (f"{one['title']}<br><sub>{one['settings']}</sub>", str(one["processes"]), rate_of(one), cpu_sum(one))
        for one in found["series"].values()
    ]
    return table(("", "processes", RATE, "CPU ms a saga, in all"), rows)


def throughput(found: Data) -> list[str]:
    """Ours alone."""
    rows = []
    for one in found["series"].values():
        on_their_way = one["settings"].rpartition("; ")[2]
        rows.append((f"{one['title']}, {on_their_way}", rate_of(one), cpu_sum(one), cpu_of(one.get("cpu_ms", {}))))
    return table(("", RATE, "CPU ms a saga, in all", "of which"), rows)


def latency(found: Data) -> list[str]:
    """At rest, and at rates."""
    rows = []
    for one in found["at_rest"].values():
        ms = one.get("latency_ms")
        rows.append((one["title"], number(ms["p50"]), number(ms["p99"])) if ms else (one["title"], "did not run", ""))
    lines = table(("one saga after the other", "p50 ms", "p99 ms"), rows)
    rates: list[tuple[str, ...]] = []
    for one in found["rates"]:
        ms = one.get("latency_ms")
        if ms is None:
            rates.append((number(one["rate"]), "did not keep up", "", "", ""))
        else:
            columns = [number(ms[name]["median"]) for name in ("p50", "p90", "p99", "p999")]
            rates.append((number(one["rate"]), *columns))
    return [*lines, "", *table(("starts a second", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"), rates)]


def cost(found: Data) -> list[str]:
    """CPU, bytes, messages; and for how many."""
    by_number = found["by_orchestrators"]
    groups = [name for name in GROUPS if name in by_number["1"]["cpu_ms"]]
    rows = [(f"CPU ms, {name}", *(f"{one['cpu_ms'][name]:.3f}" for one in by_number.values())) for name in groups]
    rows.append(("**CPU ms, in all**", *(f"**{sum(one['cpu_ms'].values()):.3f}**" for one in by_number.values())))
    rows += [
        (f"{name}, written", *(size(one["written_bytes"][name]) for one in by_number.values()))
        for name in by_number["1"]["written_bytes"]
    ]
    rows.append(("messages through the broker", *(number(one["messages"]) for one in by_number.values())))
    head = ("a saga costs", *(f"{name} orchestrator{'s' * (name != '1')}" for name in by_number))
    return [*table(head, rows), "", *projection(found["projection"])]


def projection(found: Sequence[Data]) -> list[str]:
    """What so many sagas a second would take."""
    groups = [name for name in GROUPS if name in found[0]["cores"]]
    rows = [(f"cores, {name}", *(number(one["cores"][name]) for one in found)) for name in groups]
    rows.append(("write-ahead log", *(f"{size(one['wal_bytes_a_second'])}/s" for one in found)))
    rows.append(("kept, until pruned", *(f"{size(one['kept_bytes_a_day'])} a day" for one in found)))
    rows.append(("messages", *(f"{number(one['messages_a_second'])}/s" for one in found)))
    return table(("at", *(f"{one['rate']:,} sagas/s" for one in found)), rows)


def growth(found: Data) -> list[str]:
    """Sizes of the context."""
    rows = [(one["title"], rate_of(one), cpu_sum(one)) for one in found["series"].values()]
    return table(("a context of", RATE, "CPU ms a saga, in all"), rows)


def finished(found: Data) -> list[str]:
    """Against empty tables."""
    rows = [
        ("empty tables", rate_of(found["series"]["empty"]), ""),
        (
            f"{found['count']:,} finished sagas ({size(found['bytes'])})",
            rate_of(found["series"]["full"]),
            times(found["ratio"]),
        ),
    ]
    return table(("", RATE, "of the rate of empty tables"), rows)


def barrier(found: Data) -> list[str]:
    """Without and with."""
    titles = {"watership-1-1-300": "steps that do nothing, no barrier"}
    rows = [
        (titles.get(name, one["title"]), rate_of(one), cpu_sum(one), cpu_of(one.get("cpu_ms", {})))
        for name, one in found["series"].items()
    ]
    return table(("", RATE, "CPU ms a saga, in all", "of which"), rows)


def recovery(found: Data) -> list[str]:
    """What was lost, and how long it took."""
    rows = [
        ("sagas on their way when all processes were killed", number(found["in_flight"])),
        ("lost", number(found["lost"])),
        ("back at the rate of before, after", f"{number(found['back_s'])} s"),
        ("all ended, from the first start", f"{number(found['hit_s'])} s"),
        ("the same sagas, undisturbed", f"{number(found['undisturbed_s'])} s"),
    ]
    return table(("", ""), rows)


def reaper(found: Data) -> list[str]:
    """What one reaper does."""
    rows = [
        ("overdue at once", number(found["count"])),
        ("of which broken, which must not hold up the others", number(found["broken"])),
        ("driven again, sagas/s", number(found["rate"])),
        ("CPU ms a saga, the reaper's", f"{found['cpu_ms']:.2f}"),
        ("its memory at the end", size(found["resident_bytes"][-1])),
    ]
    return table(("", ""), rows)


def memory(found: Data) -> list[str]:
    """At the beginning, in the middle, at the end."""
    samples = found["samples"]
    picked = [samples[round(share * (len(samples) - 1) / 4)] for share in range(5)]
    names = [name for name in samples[0] if name != "at_s"]
    rows = [(name, *(size(one[name]) for one in picked)) for name in names]
    return table(("resident, after", *(f"{one['at_s']:.0f} s" for one in picked)), rows)


MAKERS: dict[str, Callable[[Data], list[str]]] = {
    "peers": peers,
    "embedded": embedded,
    "latency": latency,
    "throughput": throughput,
    "cost": cost,
    "growth": growth,
    "finished": finished,
    "barrier": barrier,
    "recovery": recovery,
    "reaper": reaper,
    "memory": memory,
}
