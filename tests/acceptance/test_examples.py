"""Every example as a newcomer runs it: a process of its own, and what it prints or answers."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import ROOT, Process, Processes

EXAMPLES = ROOT / "examples"
ORDER = {"order_id": "123", "items": ["item_1"], "total_cents": 10_000}


def run(processes: Processes, example: str) -> str:
    """The output of an example that ran to its end."""
    process = processes.python(str(EXAMPLES / example))
    assert process.wait(60) == 0, process.output
    return process.output


def test_saga(processes: Processes) -> None:
    first, second = run(processes, "saga.py").split("order 124:")
    assert re.findall(r"Step completed: (\w+)", first) == [
        "ReserveInventoryStep",
        "ProcessPaymentStep",
        "ShipOrderStep",
    ]
    assert "shipped as shipment-123" in first
    assert re.findall(r"Step completed: (\w+)", second) == ["ReserveInventoryStep"]
    assert "undone, because 99900 cents is over the card's limit" in second
    assert "still reserved: reservation-123\n" in second  # and not the second order's


def test_saga_fallback(processes: Processes) -> None:
    output = run(processes, "saga_fallback.py")
    asked = re.findall(r"order \d: the warehouse (was(?: not)? asked)", output)
    assert asked == ["was asked", "was asked", "was not asked", "was not asked"]
    assert [f"fallback_reservation_{number}" in output for number in range(1, 5)] == [True] * 4
    assert "4 orders, 2 calls of the warehouse" in output


def test_saga_recovery(processes: Processes) -> None:
    output = run(processes, "saga_recovery.py")
    forward, backward = output.split("an order whose card is declined")
    assert "the child is dead, exit code 9" in forward
    assert re.findall(r"\[child\] (.*)", forward) == ["reserve inventory", "charge the card"]
    assert re.findall(r"\[recovery\] (.*)", forward) == ["charge the card"]  # the stock is not reserved again
    assert "Saga recovered successfully!\n  completed, payment: payment-" in forward
    assert "the child is dead, exit code 9" in backward
    assert re.findall(r"\[recovery\] (.*)", backward) == ["release inventory"]  # it never goes forward again
    assert "Compensation completed\n  compensated, payment: None" in backward


# --- server-sent events, from a real server


def serve(processes: Processes, env: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client of the web service, once it listens; afterwards the service is stopped as an operator stops it."""
    server = processes.python("-m", "uvicorn", "examples.saga_fastapi_sse:app", "--port", "0", env=env)
    address = server.wait_for_line(r"running on (http://127\.0\.0\.1:\d+)", 30)[1]
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
    assert server.stop() in (0, -15), server.output  # uvicorn raises the signal again once it has shut down
    assert "Application shutdown complete" in server.output
    assert "Traceback" not in server.output


def frames(client: httpx.Client, **order: Any) -> list[dict[str, Any]]:
    with client.stream("POST", "/process-order", json={**ORDER, **order}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        body = "".join(answer.iter_text())
    events = [event for event in body.split("\n\n") if event]
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def expect_both_orders(client: httpx.Client) -> None:
    start, *steps, end = frames(client)
    assert start["type"] == "start"
    assert steps == [
        {"type": "step_progress", "step": "ReserveInventoryStep"},
        {"type": "step_progress", "step": "ProcessPaymentStep"},
    ]
    assert end == {"type": "complete", "payment_id": "payment-123"}

    other, *steps, end = frames(client, order_id="124", total_cents=99_900)
    assert other["type"] == "start"
    assert other["saga_id"] != start["saga_id"]
    assert steps == [{"type": "step_progress", "step": "ReserveInventoryStep"}]
    assert (end["type"], end["code"]) == ("error", "card_declined")
    assert end["message"] == "the card of order 124 was declined"


def test_saga_fastapi_sse_in_one_process(processes: Processes, sqlite_url: str) -> None:
    for client in serve(processes, {"WATERSHIP_DATABASE_URL": sqlite_url}):
        expect_both_orders(client)
        for number in range(20):  # a mediator for each request leaks nothing that a later request would miss
            assert frames(client, order_id=str(number))[-1]["type"] == "complete"
    assert "released reservation-124" in processes.all[0].output


# --- distributed


@pytest.fixture
def distributed(broker_url: str, database_url: str, namespace: str, processes: Processes) -> dict[str, str]:
    """The environment of a system with its mind up and no hands yet."""
    env = {
        "WATERSHIP_BROKER_URL": broker_url,
        "WATERSHIP_DATABASE_URL": database_url,
        "WATERSHIP_NAMESPACE": namespace,
    }
    migration = processes.watership("db", "upgrade", env=env)
    assert migration.wait(60) == 0, migration.output
    processes.watership("orchestrator", env=env)
    processes.watership("reaper", env=env)
    return env


@pytest.mark.servers
def test_saga_fastapi_sse_distributed(processes: Processes, distributed: dict[str, str], step_queues: set[str]) -> None:
    step_queues |= {"ReserveInventoryStep", "ProcessPaymentStep"}
    worker = processes.watership("worker", "examples.saga_fastapi_sse:worker", env=distributed)
    for client in serve(processes, distributed):
        expect_both_orders(client)
    assert "released reservation-124" in worker.output  # the worker's process did it, not the web server's


def rows(directory: Path, service: str, query: str) -> set[Any]:
    with closing(sqlite3.connect(directory / f"{service}.db")) as connection:
        return {row[0] for row in connection.execute(query)}


@pytest.mark.servers
def test_orders(processes: Processes, distributed: dict[str, str], step_queues: set[str], tmp_path: Path) -> None:
    services = ["inventory", "payments", "shipping"]
    step_queues |= set(services)
    env = {**distributed, "ORDERS_DATA_DIR": str(tmp_path / "data")}
    for service in services:
        processes.watership("worker", f"examples.orders.{service}:worker", env=env, name=service)
    client: Process = processes.python("-m", "examples.orders.place_orders", env=env)
    assert client.wait(100) == 0, client.output

    book, lamp, unicorn, declined, island = [line for line in client.output.splitlines() if " x " in line]
    assert "COMPLETED" in book
    assert "COMPLETED" in lamp
    assert "shipped by Swift as SWIFT-" in book
    assert "COMPENSATED" in unicorn
    assert "ReserveStock failed, OutOfStock: there are not 1 of 'unicorn'" in unicorn
    assert "COMPENSATED" in declined
    assert "ChargeCard failed, CardDeclined: the bank declined 7350 EUR cents" in declined
    assert "COMPLETED" in island
    assert "shipped by Post as POST-" in island

    # What the services hold agrees, and with what the client was told.
    shipped = rows(tmp_path / "data", "shipping", "SELECT order_id FROM parcel")
    assert shipped == {re.findall(r"(?:SWIFT|POST)-(\S+)", line)[0] for line in (book, lamp, island)}
    assert rows(tmp_path / "data", "payments", "SELECT order_id FROM charge WHERE NOT refunded") == shipped
    assert rows(tmp_path / "data", "inventory", "SELECT order_id FROM reservation") == shipped
