"""The page of the benchmarks: drawn from results alone, each block from its part, a missing part said."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from tests.benchmarks import plots
from tests.benchmarks.accounts import Reading
from tests.benchmarks.bench import Bench, ratio, spread, without_paths
from tests.benchmarks.closed_loop import Ends
from tests.benchmarks.contenders import dbos, distributed
from tests.benchmarks.goals import goals
from tests.benchmarks.measures import PARTS
from tests.benchmarks.measures.cost import projection
from tests.benchmarks.measures.recovery import rates
from tests.benchmarks.page import BLOCK, PAGE, draw, filled, plots_of
from tests.benchmarks.results import Results
from tests.benchmarks.tables import MAKERS, number, size
from tests.support.servers import Session

RATE = spread([100.0, 120.0, 90.0])
SERIES = {
    "title": "Somebody", "settings": "quick", "processes": 2, "rate": RATE, "cpu_ms": {"client": 0.5, "RabbitMQ": 1.0},
    "latency_ms": {"p50": 3.0, "p90": 4.0, "p99": 9.0, "p999": 12.0},
}  # fmt: skip
FAILED = {"title": "Nobody", "settings": "none", "processes": 1, "failed": "celery is not installed in .venv-peers"}
PEERS = {
    "on": "2026-01-31", "quick": False, "series": {"watership-2-1": SERIES, "dbos-2-16": SERIES, "celery-2": FAILED},
    "ratios": {"cqrs-postgres-2-16": 8.0, "dbos-2-16": 3.0, "restate-2-32": 6.0, "celery-2": None, "relay": 2.5},
    "goals": {"cqrs-postgres-2-16": 7.0, "dbos-2-16": 9.0, "restate-2-32": 5.0, "celery-2": 5.0, "relay": 2.5},
}  # fmt: skip
LATENCY = {
    "on": "2026-01-31", "quick": True, "at_rest": {"watership-run-1": SERIES, "dbos-1-1": FAILED}, "dbos_ratio": None,
    "goal": 1.0,
    "rates": [
        {"rate": rate, "latency_ms": {name: spread([rate / 10]) for name in ("p50", "p90", "p99", "p999")}} for rate in (50, 500)
    ] + [{"rate": 5_000, "failed": "client said nothing"}],
}  # fmt: skip
RESULTS = Results({"CPU": "2 × one"}, {"DBOS": "3"}, {"peers": PEERS, "latency": LATENCY})


def test_every_part_has_a_table_and_a_place_on_the_page() -> None:
    named = {match["name"] for match in BLOCK.finditer(PAGE.read_text())}
    assert set(PARTS) == set(MAKERS)
    assert named == {"machine", "goals", *PARTS}


def test_what_was_measured_is_filled_in_and_the_rest_is_not() -> None:
    text = filled("a <!-- peers -->\nold\n<!-- /peers --> b\n<!-- cost -->\n<!-- /cost -->\n", RESULTS)
    assert "old" not in text
    assert "| Somebody<br><sub>quick</sub> | 2 | **100** (90–120) | 1.00× | 1.50 |" in text
    assert "| Nobody<br><sub>none</sub> | 1 | did not run | – | – |" in text
    assert "<!-- cost -->\nNot measured yet.\n<!-- /cost -->" in text
    assert filled(text, RESULTS) == text


def test_goals_are_met_missed_or_not_measured() -> None:
    lines = goals(RESULTS.parts)
    marks = {line.split(" | ")[0]: line.split(" | ")[-1].rstrip(" |") for line in lines[2:]}
    assert marks["| distributed, beside DBOS"] == "missed"
    assert marks["| distributed, beside a bare aio-pika relay"] == "met"
    assert marks["| distributed, beside a Celery chain that loses no task"] == "not measured"
    assert marks["| one saga at rest, p50, distributed, beside DBOS"] == "not measured"


def test_a_rate_that_was_not_kept_is_said() -> None:
    assert "| 5,000 | did not keep up |  |  |  |" in MAKERS["latency"](LATENCY)


def test_page_and_plots_are_written(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(PAGE.read_text())
    draw(RESULTS, page)
    written = sorted(path.name for path in (tmp_path / "benchmarks").iterdir())
    assert written == ["latency.svg", "peers.svg"]
    for name, svg in plots_of(RESULTS.parts).items():
        assert ET.fromstring(svg).tag.endswith("svg"), name


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    RESULTS.write(tmp_path / "r.json")
    assert Results.read(tmp_path / "r.json").parts["peers"]["series"]["dbos-2-16"] == SERIES


@pytest.mark.parametrize("values", [[0.3, 7.0], [0.0], [5_000.0, 12_345.0]])
def test_a_plot_holds_its_values(values: list[float]) -> None:
    svg = plots.lines("t", {"a & b": list(enumerate(values))}, x_label="x", y_label="y")
    heights = [
        float(point.split(",")[1]) for point in ET.fromstring(svg).findall(".//*[@points]")[0].get("points", "").split()
    ]
    assert all(60 <= height <= 290 for height in heights)


def test_a_peer_that_is_not_installed_is_left_out_and_one_that_fails_stops_nobody() -> None:
    said: list[str] = []
    bench = Bench(cast("Session", None), is_quick=True, say=said.append)  # without servers, every run fails
    absent = dataclasses.replace(dbos(), needs=(Path("/nowhere/python"),))
    found = bench.interleaved([absent, distributed()])
    assert found["dbos-1-16"]["failed"] == "python is not installed in .venv-peers"
    assert "failed" in found["watership-1-1"]
    assert len(said) == 1


def test_the_results_tell_nobody_whose_machine_it_was() -> None:
    assert (
        without_paths("Traceback\n  File x\nOSError: /opt/mine/.venv/bin/python is not there")
        == "OSError: python is not there"
    )


def test_ends_count_only_while_it_is_measured() -> None:
    ends = Ends(10.0)
    ends.add(count=5)
    ends.until_s = 0.0
    ends.add()
    assert ends.ended == 5


def test_what_was_due_counts_however_late_it_ends() -> None:
    now_s = time.perf_counter()
    ends = Ends(1.0, from_s=now_s - 10.0, until_s=now_s - 9.0)
    ends.add_due(now_s - 9.5)
    ends.add_due(now_s - 20.0)
    ends.add_due(now_s)
    assert ends.ended == 1
    assert ends.latencies_s[0] >= 9.5


def test_the_arithmetic() -> None:
    one: dict[str, Any] = {
        "cpu_ms": {"worker": 0.7}, "messages": 3.0,
        "written_bytes": {"write-ahead log": 5_000.0, "watership_saga": 600.0, "watership_log": 400.0},
    }  # fmt: skip
    first = projection(one)[0]
    assert first["cores"]["worker"] == pytest.approx(1.0)
    assert first["kept_bytes_a_day"] == 1_000 * 1_000 * 86_400
    assert rates([(0.0, 0), (1.0, 100), (2.0, 300)]) == [(1.0, 100.0), (2.0, 200.0)]
    assert ratio({"rate": {"median": 6.0}}, {"rate": {"median": 2.0}}) == 3.0
    assert ratio({"rate": {"median": 6.0}}, {}) is None
    assert Reading({"a": 3.0, "b": 1.0}).since(Reading({"a": 1.0})) == {"a": 2.0}
    assert (number(1234.5), number(0.1234), number(None)) == ("1,234", "0.123", "–")
    assert (size(999), size(12_300), size(5e13)) == ("999 B", "12.3 kB", "50 TB")
